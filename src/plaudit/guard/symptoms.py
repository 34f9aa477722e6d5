"""What a run's logs say about its health: each symptom with its evidence and the setting to change.

Pure functions of rows of ppo/metrics.jsonl and ppo/evaluations.jsonl, without tensors; the limits are in limits.py. A
column that is absent is not looked at. One update's numbers are those of a few replies, so every limit is held against
the mean of a window.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from plaudit.guard import limits
from plaudit.guard.gaming import gaming
from plaudit.guard.limits import LONG, WINDOW, Row, WatchConfig


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. A fault is a wrong computation, and certain; a symptom may have many causes."""

    name: str
    says: str
    evidence: str
    change: str
    level: Literal["fault", "symptom"] = "symptom"


@dataclass(frozen=True)
class Log:
    """What a run has logged so far: a row an update, a row a look at the validation prompts; the recipe's section ppo.

    The doctor adds to an update's row what it measured of the stored rollout (`arithmetic.measured`).
    """

    rows: Sequence[Row]
    looks: Sequence[Row]
    ppo: Mapping[str, Any]

    @property
    def watch(self) -> WatchConfig:
        """Settings that other versions of Plaudit had are left out."""
        return WatchConfig(**{k: v for k, v in self.ppo.get("watch", {}).items() if k in WatchConfig.model_fields})


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _last(rows: Sequence[Row], name: str, count: int = WINDOW) -> float | None:
    """Mean of the last `count` rows, None while there are fewer or the column is absent."""
    last = rows[-count:]
    return _mean(last, name) if len(last) == count and all(name in row for row in last) else None


def _seen(rows: Sequence[Row], name: str, count: int = WINDOW) -> str:
    """'kl 0.1, 0.2, 0.3 in updates 4 to 6'."""
    last = rows[-count:][-5:]
    values = ", ".join(f"{row[name]:.3g}" for row in last)
    return f"{name} {values} in updates {last[0]['update']:g} to {last[-1]['update']:g}"


@dataclass(frozen=True)
class Symptom:
    """A column whose mean over a window leaves its range."""

    name: str
    column: str
    allowed: Callable[[float, WatchConfig], tuple[float, float]]
    """Of the column's first value: the lowest and the highest value that are no symptom."""
    says: str
    limit: str
    """The end of the evidence, with what `limits` gives and the settings of the watch."""
    change: str
    at_looks: bool = False
    """Whether the evaluations show it too, over as many of them as the watch waits for."""

    def limits(self, first: Row, watch: WatchConfig) -> dict[str, float]:
        lowest, highest = self.allowed(first[self.column], watch)
        return {"first": first[self.column], "lowest": lowest, "highest": highest}

    def shows(self, value: float, first: Row, watch: WatchConfig) -> bool:
        if self.column not in first:
            return False
        limits = self.limits(first, watch)
        return not limits["lowest"] <= value <= limits["highest"]

    def __call__(self, log: Log) -> Finding | None:
        watch = log.watch
        for part, count in ((log.rows, WINDOW), (log.looks if self.at_looks else (), watch.patience)):
            rows = [row for row in part if self.column in row]
            now = _last(rows, self.column, count)
            if now is not None and self.shows(now, rows[0], watch):
                known = self.limits(rows[0], watch)
                says = self.says.format(way="longer" if now > known["first"] else "shorter")
                evidence = _seen(rows, self.column, count) + self.limit.format(**known, watch=watch)
                return Finding(self.name, says, evidence, self.change)
        return None


NEGATIVE_KL = Symptom(
    "negative KL",
    "kl",
    lambda first, watch: (limits.NEGATIVE_KL, math.inf),
    "the policy is less likely to say its own replies than the reference is: they were sampled from another law than "
    "the one that is trained",
    ", limit {lowest:g}",
    "sampling.temperature must be the only change to the sampling; a sampler of your own must not cut its law",
)
KL_RUNAWAY = Symptom(
    "KL runaway",
    "kl",
    lambda first, watch: (-math.inf, watch.max_kl),
    "the policy has left the reference, where the reward model knows nothing",
    " nats a reply, limit {highest:g} (ppo.watch.max_kl)",
    "raise ppo.kl_coef, or lower ppo.learning_rate",
    at_looks=True,
)
ENTROPY_COLLAPSE = Symptom(
    "entropy collapse",
    "entropy",
    lambda first, watch: (watch.min_entropy * first, math.inf),
    "the policy is nearly sure of every token: replies become one text",
    ", first {first:.3g}, limit {watch.min_entropy:g} of it",
    "raise ppo.kl_coef, lower ppo.learning_rate, or give a small ppo.entropy_coef",
    at_looks=True,
)
ENTROPY_EXPLOSION = Symptom(
    "entropy explosion",
    "entropy",
    lambda first, watch: (-math.inf, limits.ENTROPY_MORE * first),
    "the policy is being pushed towards noise",
    f", first {{first:.3g}}, limit {limits.ENTROPY_MORE:g} times it",
    "lower ppo.entropy_coef or ppo.learning_rate",
)
CUT_FROM_THE_START = Symptom(
    "replies do not end",
    "eos",
    lambda first, watch: (limits.ENDING, math.inf),
    "the SFT model's replies already meet the length limit",
    ", first {first:.3g}, limit {lowest:g}",
    "raise sampling.max_new_tokens, or shorten the demonstrations that SFT learns from",
)
ENDING_UNLEARNT = replace(
    CUT_FROM_THE_START,
    says="the policy has unlearnt to end its turn",
    change="raise ppo.missing_eos_penalty or sampling.max_new_tokens; look for a mask without the end-of-turn token",
)
LENGTH_DRIFT = Symptom(
    "length drift",
    "length",
    lambda first, watch: (first / watch.max_length_change, first * watch.max_length_change),
    "replies become {way}: the reward pays for length",
    " tokens, first {first:.3g}, limit a factor of {watch.max_length_change:g}",
    "look at the reward model's card for what length alone reaches; raise ppo.kl_coef",
    at_looks=True,
)
SCORES_ALIKE = Symptom(
    "score scale",
    "score_std",
    lambda first, watch: (limits.SPREAD_LEFT * first, math.inf),
    "the replies of a batch all score alike: there is nothing left to prefer",
    f", first {{first:.3g}}, limit {limits.SPREAD_LEFT:g} of it",
    "stop earlier (ppo.updates), or raise ppo.kl_coef or sampling.temperature to keep replies apart",
)
SCORES_APART = Symptom(
    "score scale",
    "score_std",
    lambda first, watch: (-math.inf, limits.SPREAD_MOST),
    "scores are far from a spread of 1, so the KL coefficient means something else than stated",
    ", limit {highest:g}",
    "give the sources in ppo.rewards their mean and std, or lower ppo.score_clip",
)
SAMPLER_DRIFTS = Symptom(
    "sampler and trainer drift apart",
    "sampler_gap_mean",
    lambda first, watch: (-math.inf, limits.GAP_MOST),
    "replies come from a law that is not quite the one that is trained",
    " nats a token, limit {highest:g}",
    "set dtype to float32, or lower ppo.learning_rate so that weights stay small",
)
STANDS_STILL = Symptom(
    "policy does not move",
    "approx_kl",
    lambda first, watch: (limits.STANDS_STILL, math.inf),
    "the ratio stays 1 through all epochs: the weights do not learn, or old log-probabilities are taken anew at every "
    "step",
    ", limit {lowest:g}",
    "raise ppo.learning_rate",
)
REPEATED_TEXT = Symptom(
    "repeated text",
    "repeated_trigrams",
    lambda first, watch: (-math.inf, max(watch.max_repetition * first, limits.REPEATS_THAT_NEVER_COUNT)),
    "replies go in circles",
    ", first {first:.3g}, limit {highest:.3g}",
    "raise ppo.kl_coef, or lower ppo.learning_rate; look for a reward that pays for it",
    at_looks=True,
)
REPLIES_ALIKE = Symptom(
    "replies alike",
    "distinct_bigrams",
    lambda first, watch: (watch.min_variety * first, math.inf),
    "different prompts get nearly the same reply",
    ", first {first:.3g}, limit {lowest:.3g}",
    "raise ppo.kl_coef (or give ppo.kl_target), or stop earlier",
    at_looks=True,
)


def negative_kl(log: Log) -> Finding | None:
    """The KL is an expectation that cannot be negative: its mean over a window, or one stored rollout that is below 0
    by more than chance."""
    for row in log.rows:
        error = row.get("kl_se", math.inf)
        if row.get("kl", 0.0) < min(-0.05, -limits.NEGATIVE_KL_ERRORS * error):
            evidence = f"update {row['update']:g}: KL {row['kl']:.3g} ± {error:.2g} nats a reply"
            return Finding(NEGATIVE_KL.name, NEGATIVE_KL.says, evidence, NEGATIVE_KL.change)
    return NEGATIVE_KL(log)


def dead_critic(log: Log) -> Finding | None:
    rows = [row for row in log.rows if "explained_variance" in row]
    if len(rows) < LONG or any(row["explained_variance"] > 0 for row in rows[-LONG:]):
        return None
    return Finding(
        "dead critic",
        "the values explain nothing of the returns: advantages are as noisy as without a critic",
        f"{_seen(rows, 'explained_variance', LONG)}; at most 0 for {LONG} updates",
        "raise ppo.critic_learning_rate or ppo.value_coef; when the value loss grows, lower them",
    )


def no_eos(log: Log) -> Finding | None:
    """Not asked where cut replies are meant: the missing-EOS rule is none."""
    if not log.rows or log.ppo.get("missing_eos") in ("none", "bootstrap"):
        return None
    return (CUT_FROM_THE_START if log.rows[0].get("eos", 1.0) < limits.ENDING else ENDING_UNLEARNT)(log)


def learning_rate(log: Log) -> Finding | None:
    """Three signs of steps that are too large; any one is enough."""
    rows, signs = log.rows, []
    clipped, moved, norm = (_last(rows, name) for name in ("clip_fraction", "approx_kl", "grad_norm"))
    if clipped is not None and clipped > limits.CLIPPED_MOST:
        signs.append(f"{_seen(rows, 'clip_fraction')}, limit {limits.CLIPPED_MOST:g}")
    if moved is not None and moved > limits.APPROX_KL_MOST:
        signs.append(f"{_seen(rows, 'approx_kl')} nats a token in one update, limit {limits.APPROX_KL_MOST:g}")
    if norm is not None and len(rows) >= 2 * WINDOW:
        start = max(_mean(rows[:WINDOW], "grad_norm"), log.ppo.get("max_grad_norm", 1.0))
        if norm > limits.GRAD_NORM_GROWTH * start:
            signs.append(f"{_seen(rows, 'grad_norm')}, limit {limits.GRAD_NORM_GROWTH:g} times its start")
    if not signs:
        return None
    return Finding(
        "learning rate too high",
        "one update moves the policy farther than its old replies can tell the way",
        "; ".join(signs),
        "lower ppo.learning_rate, or ppo.epochs; ppo.target_kl ends such an update early",
    )


def stands_still(log: Log) -> Finding | None:
    """Ratios that stay 1 over several epochs, and a clip that never binds; neither where an update is one step, before
    which every ratio is 1."""
    warm, epochs = log.rows[log.ppo.get("critic_warmup", 0) :], log.ppo.get("epochs", 2)
    found = STANDS_STILL(replace(log, rows=warm)) if epochs > 1 else None
    one_step = epochs == 1 and log.ppo.get("batch_size", 32) == log.ppo.get("minibatch_size", 16)
    if found is not None or one_step or _last(warm, "clip_fraction", LONG) != 0:
        return found
    return Finding(
        "clip fraction zero",
        "no ratio ever left the clip range: the policy could learn faster",
        f"clip_fraction 0 in the last {LONG} updates",
        "raise ppo.learning_rate or ppo.epochs",
    )


def loss_sum(log: Log) -> Finding | None:
    """loss = −(L_CLIP − c1·L_VF + c2·S): which sign of each part gives the loss that was logged?

    The logged entropy is that of the batch as sampled, the one in the loss a little later; so the check asks which sign
    is nearer. Other terms in the loss (KL loss, PTX) leave it unasked.
    """
    value, bonus = log.ppo.get("value_coef", 0.1), log.ppo.get("entropy_coef", 0.0)
    warm = log.rows[log.ppo.get("critic_warmup", 0) :]
    last = [row for row in warm[-WINDOW:] if {"loss", "l_clip", "l_vf", "entropy"} <= row.keys()]
    if not last or log.ppo.get("kl_penalty") == "loss" or log.ppo.get("ptx_coef"):
        return None

    def off(value_sign: int, bonus_sign: int) -> float:
        return sum(
            abs(r["loss"] + r["l_clip"] - value_sign * value * r["l_vf"] + bonus_sign * bonus * r["entropy"])
            for r in last
        )

    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    best = min(signs, key=lambda pair: off(*pair))
    # Equal but for rounding is not a finding: a coefficient of 0 leaves the sign open.
    if best == (1, 1) or off(*best) >= 0.5 * off(1, 1) or off(1, 1) < 1e-6 * len(last):
        return None
    wrong = [what for sign, what in zip(best, ("value loss", "entropy bonus"), strict=True) if sign < 0]
    return Finding(
        f"{wrong[-1]} sign",
        f"the {' and the '.join(wrong)} enters the loss with the wrong sign",
        f"{_seen(last, 'loss', len(last))}; the stated signs are off by {off(1, 1) / len(last):.3g} on average",
        "no setting: the loss that was computed is not −(L_CLIP − c1·L_VF + c2·S)",
        "fault",
    )


def score_falls(log: Log) -> Finding | None:
    looks = log.looks
    score = _last(looks, "score")
    if score is None or len(looks) <= WINDOW:
        return None
    first, noise = looks[0]["score"], max(2 * looks[-1].get("score_gain_se", 0.25), 0.1)
    if score >= first - noise:
        return None
    return Finding(
        "score falls",
        "the policy earns less on validation prompts than the SFT model did",
        f"{_seen(looks, 'score')}, first {first:.3g}, noise {noise:.2g}",
        "lower ppo.learning_rate; look at the other findings first",
    )


def over_budget(log: Log) -> Finding | None:
    judged = any("held_out_score" in row for row in log.looks) and log.ppo.get("keep_by") != "score"
    budget = log.ppo.get("kl_budget") or (math.inf if judged else limits.KL_BUDGET)
    if len(log.looks) < WINDOW or not all(row["kl"] > budget for row in log.looks[-WINDOW:]):
        return None
    return Finding(
        "KL over its budget",
        "policies this far from the reference are not kept: these updates are in vain",
        f"{_seen(log.looks, 'kl')} nats a reply, the budget is {budget:g}",
        "raise ppo.kl_coef (or give ppo.kl_target), or allow more with ppo.kl_budget",
    )


def constraint_missed(log: Log) -> Finding | None:
    last = log.looks[-WINDOW:]
    if len(last) < WINDOW or any(row.get("constraints_met", 1.0) for row in last):
        return None
    missed = [name for name in last[-1] if name.startswith("constraint_")]
    return Finding(
        "constraint missed",
        "policies that miss a constraint are not kept: these updates are in vain",
        "; ".join(_seen(log.looks, name) for name in missed),
        "give it more updates, raise ppo.kl_coef, or lower at_least of the source",
    )


def reward_hacking(log: Log) -> Finding | None:
    """The watch's rule for a held-out score, wherever in the run it first held."""
    ends, patience = range(1, len(log.looks) + 1), log.watch.patience
    found = next((why for end in ends if (why := gaming(log.looks[:end], patience))), None)
    if found is None:
        return None
    return Finding(
        "reward hacking",
        "the policy games what it is paid by",
        found,
        "raise ppo.kl_coef, stop earlier, or train the reward model on fresh rankings of these replies",
    )


Check = Callable[[Log], Finding | None]
CHECKS: tuple[Check, ...] = (
    loss_sum,
    negative_kl,
    learning_rate,
    stands_still,
    KL_RUNAWAY,
    ENTROPY_COLLAPSE,
    ENTROPY_EXPLOSION,
    no_eos,
    LENGTH_DRIFT,
    dead_critic,
    SCORES_ALIKE,
    SCORES_APART,
    SAMPLER_DRIFTS,
    reward_hacking,
    REPEATED_TEXT,
    REPLIES_ALIKE,
    score_falls,
    over_budget,
    constraint_missed,
)
"""The gravest first."""


def symptoms(rows: Sequence[Row], looks: Sequence[Row], ppo: Mapping[str, Any]) -> list[Finding]:
    """What the metrics `rows` and evaluations `looks` show, with the recipe's section `ppo`."""
    log = Log(rows, looks, ppo)
    return [finding for check in CHECKS if (finding := check(log)) is not None]
