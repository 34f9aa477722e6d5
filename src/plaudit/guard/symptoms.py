"""What a run's logs say about its health: each symptom with its limit, its evidence and the setting to change.

Pure functions of rows of ppo/metrics.jsonl and ppo/evaluations.jsonl, without tensors. A column that is absent is not
looked at. One update's numbers are those of a few replies, so every limit is held against the mean of a window.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plaudit.guard.watch import KL_BUDGET, WatchConfig, verdict

Row = Mapping[str, float]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. A fault is a wrong computation, and certain; a symptom may have many causes."""

    name: str
    says: str
    evidence: str
    change: str
    level: Literal["fault", "symptom"] = "symptom"


WINDOW = 3
"""Updates whose mean is judged: one batch is too few replies, and a fault must not go on for long."""
LONG = 10
"""Updates after which a critic must explain something, and a clip fraction of 0 is no accident."""
NEGATIVE_KL = -0.5
"""Nats a reply. The KL is never negative; its estimate from 32 replies strays by some tenths while it is near 0."""
KL_BUDGETS = 2.0
"""Times the budget (ppo.kl_budget, or the usual one): at twice that the run no longer comes back."""
ENTROPY_LEFT = 0.25
"""Share of the first entropy. Healthy runs keep more than half; at a quarter a prompt's replies are nearly one text."""
ENTROPY_MORE = 2.0
"""Times the first entropy: the policy is being pushed towards noise."""
ENDING = 0.5
"""Share of replies that end by themselves; below it the score mostly judges cut texts."""
LENGTH_FACTOR = 2.0
"""Times the first length, or one part in it: no task that SFT has learnt needs that."""
VARIETY_LEFT = 0.6
"""Share of the first distinct 2-grams over all replies of a look; a run that nothing held back fell from 0.83 to 0.11
while its gold score rose, for all its replies had become one (docs/benchmarks.md)."""
SPREAD_LEFT = 0.05
"""Share of the first spread of the scores; below it only noise is left to learn from."""
SPREAD_MOST = 5.0
"""Normalised scores of SFT replies have a spread of 1."""
CLIPPED_MOST = 0.3
"""Share of clipped tokens; papers and our runs stay below 0.1. At 0.3 the update mostly works against its own bound."""
APPROX_KL_MOST = 0.05
"""Nats a token that one update moves the policy; ours move it by 0.002 to 0.01, and 0.02 is a usual early stop."""
GRAD_NORM_GROWTH = 10.0
"""Times the mean of the first updates, and that far above ppo.max_grad_norm."""
STANDS_STILL = 1e-7
"""Nats a token: an update that moves the policy by less than this moved nothing but rounding."""
GAP_MOST = 0.1
"""Nats a token between sampler and trainer: bf16 shows 0.05, and the run stops at 0.15."""
REPEATS = (2.0, 0.1)
"""Repeated 3-grams: times the first share, and the share below which they never count."""


def symptoms(rows: Sequence[Row], looks: Sequence[Row] = (), ppo: Settings | None = None) -> list[Finding]:
    """What the metrics `rows` and evaluations `looks` show, with the recipe's section `ppo`; the gravest first."""
    settings = {} if ppo is None else ppo
    found = [check(rows, settings) for check in CHECKS] if rows else []
    found += [check(looks, settings) for check in LOOK_CHECKS] if looks else []
    return [finding for finding in found if finding is not None]


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _last(rows: Sequence[Row], name: str, count: int = WINDOW) -> float | None:
    """Mean of the last `count` rows, None while there are fewer or the column is absent."""
    last = rows[-count:]
    return _mean(last, name) if len(last) == count and all(name in row for row in last) else None


def _seen(rows: Sequence[Row], name: str, count: int = WINDOW) -> str:
    """'0.1, 0.2, 0.3 in updates 4 to 6'."""
    last = rows[-count:]
    values = ", ".join(f"{row[name]:.3g}" for row in last[-5:])
    return f"{name} {values} in updates {last[-5:][0]['update']:g} to {last[-1]['update']:g}"


def negative_kl(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    """The KL of the policy from the reference is an expectation that cannot be negative."""
    kl = _last(rows, "kl")
    if kl is None or kl >= NEGATIVE_KL:
        return None
    return Finding(
        "negative KL", "the policy is less likely to say its own replies than the reference is: they were sampled from "
        "another law than the one that is trained", f"{_seen(rows, 'kl')}, limit {NEGATIVE_KL:g}",
        "sampling.temperature must be the only change to the sampling; a sampler of your own must not cut its law",
    )  # fmt: skip


def kl_runaway(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    kl, limit = _last(rows, "kl"), KL_BUDGETS * (ppo.get("kl_budget") or KL_BUDGET)
    if kl is None or kl <= limit:
        return None
    return Finding(
        "KL runaway", "the policy has left the reference, where the reward model knows nothing",
        f"{_seen(rows, 'kl')} nats a reply, limit {limit:g} ({KL_BUDGETS:g} times the budget)",
        "raise ppo.kl_coef, or lower ppo.learning_rate",
    )  # fmt: skip


def dead_critic(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    last = rows[-LONG:]
    if len(last) < LONG or not all(row.get("explained_variance", 1.0) <= 0 for row in last):
        return None
    return Finding(
        "dead critic", "the values explain nothing of the returns: advantages are as noisy as without a critic",
        f"{_seen(rows, 'explained_variance', LONG)}; at most 0 for {LONG} updates",
        "raise ppo.critic_learning_rate or ppo.value_coef; when the value loss grows, lower them",
    )  # fmt: skip


def entropy(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    now = _last(rows, "entropy")
    if now is None:
        return None
    first = rows[0]["entropy"]
    if now < ENTROPY_LEFT * first:
        return Finding(
            "entropy collapse", "the policy is nearly sure of every token: replies become one text",
            f"{_seen(rows, 'entropy')}, first {first:.3g}, limit {ENTROPY_LEFT:g} of it",
            "raise ppo.kl_coef, lower ppo.learning_rate, or give a small ppo.entropy_coef",
        )  # fmt: skip
    if now > ENTROPY_MORE * first:
        return Finding(
            "entropy explosion", "the policy is being pushed towards noise",
            f"{_seen(rows, 'entropy')}, first {first:.3g}, limit {ENTROPY_MORE:g} times it",
            "lower ppo.entropy_coef or ppo.learning_rate",
        )  # fmt: skip
    return None


def no_eos(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    """Not asked where cut replies are meant: the missing-EOS rule is none."""
    ending = _last(rows, "eos")
    if ending is None or ending >= ENDING or ppo.get("missing_eos") in ("none", "bootstrap"):
        return None
    evidence = f"{_seen(rows, 'eos')}, first {rows[0]['eos']:.3g}, limit {ENDING:g}"
    if rows[0]["eos"] < ENDING:
        return Finding(
            "replies do not end", "the SFT model's replies already meet the length limit",
            evidence, "raise sampling.max_new_tokens, or shorten the demonstrations that SFT learns from",
        )  # fmt: skip
    return Finding(
        "replies do not end", "the policy has unlearnt to end its turn", evidence,
        "raise ppo.missing_eos_penalty or sampling.max_new_tokens; look for a mask without the end-of-turn token",
    )  # fmt: skip


def length_drift(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    length = _last(rows, "length")
    if length is None or rows[0]["length"] / LENGTH_FACTOR <= length <= rows[0]["length"] * LENGTH_FACTOR:
        return None
    longer = length > rows[0]["length"]
    return Finding(
        "length drift", f"replies become {'longer' if longer else 'shorter'}: the reward pays for length",
        f"{_seen(rows, 'length')} tokens, first {rows[0]['length']:.3g}, limit a factor of {LENGTH_FACTOR:g}",
        "look at the reward model's card for what length alone reaches; raise ppo.kl_coef",
    )  # fmt: skip


def score_scale(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    spread = _last(rows, "score_std")
    if spread is None:
        return None
    first = rows[0]["score_std"]
    if spread < SPREAD_LEFT * first:
        return Finding(
            "score scale", "the replies of a batch all score alike: there is nothing left to prefer",
            f"{_seen(rows, 'score_std')}, first {first:.3g}, limit {SPREAD_LEFT:g} of it",
            "stop earlier (ppo.updates), or raise ppo.kl_coef or sampling.temperature to keep replies apart",
        )  # fmt: skip
    if spread > SPREAD_MOST:
        return Finding(
            "score scale", "scores are far from a spread of 1, so the KL coefficient means something else than stated",
            f"{_seen(rows, 'score_std')}, limit {SPREAD_MOST:g}",
            "give the sources in ppo.rewards their mean and std, or lower ppo.score_clip",
        )  # fmt: skip
    return None


def learning_rate(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    """Three signs of steps that are too large; any one is enough."""
    signs = []
    clipped, moved, norm = (_last(rows, name) for name in ("clip_fraction", "approx_kl", "grad_norm"))
    if clipped is not None and clipped > CLIPPED_MOST:
        signs.append(f"{_seen(rows, 'clip_fraction')}, limit {CLIPPED_MOST:g}")
    if moved is not None and moved > APPROX_KL_MOST:
        signs.append(f"{_seen(rows, 'approx_kl')} nats a token in one update, limit {APPROX_KL_MOST:g}")
    bound = GRAD_NORM_GROWTH * ppo.get("max_grad_norm", 1.0)
    if (
        norm is not None
        and len(rows) >= 2 * WINDOW
        and norm > max(GRAD_NORM_GROWTH * _mean(rows[:WINDOW], "grad_norm"), bound)
    ):
        signs.append(f"{_seen(rows, 'grad_norm')}, limit {GRAD_NORM_GROWTH:g} times its start")
    if not signs:
        return None
    return Finding(
        "learning rate too high", "one update moves the policy farther than its old replies can tell the way",
        "; ".join(signs), "lower ppo.learning_rate, or ppo.epochs; ppo.target_kl ends such an update early",
    )  # fmt: skip


def stands_still(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    """Ratios that stay 1 over several epochs, and a clip that never binds."""
    warm = rows[ppo.get("critic_warmup", 0) :]
    moved = _last(warm, "approx_kl")
    if moved is not None and moved < STANDS_STILL and ppo.get("epochs", 2) > 1:
        return Finding(
            "policy does not move", "the ratio stays 1 through all epochs: the weights do not learn, or old "
            "log-probabilities are taken anew at every step", f"{_seen(warm, 'approx_kl')}, limit {STANDS_STILL:g}",
            "raise ppo.learning_rate",
        )  # fmt: skip
    clipped = _last(warm, "clip_fraction", LONG)
    if clipped is not None and clipped == 0:
        return Finding(
            "clip fraction zero", "no ratio ever left the clip range: the policy could learn faster",
            f"clip_fraction 0 in the last {LONG} updates", "raise ppo.learning_rate or ppo.epochs",
        )  # fmt: skip
    return None


def sampler_drifts(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    gap = _last(rows, "sampler_gap_mean")
    if gap is None or gap <= GAP_MOST:
        return None
    return Finding(
        "sampler and trainer drift apart", "replies come from a law that is not quite the one that is trained",
        f"{_seen(rows, 'sampler_gap_mean')} nats a token, limit {GAP_MOST:g}",
        "set dtype to float32, or lower ppo.learning_rate so that weights stay small",
    )  # fmt: skip


def loss_sum(rows: Sequence[Row], ppo: Settings) -> Finding | None:
    """loss = −(L_CLIP − c1·L_VF + c2·S): which sign of each part gives the loss that was logged?

    The logged entropy is that of the batch as sampled, the one in the loss a little later; so the check asks which sign
    is nearer. Other terms in the loss (KL loss, PTX) leave it unasked.
    """
    value, bonus = ppo.get("value_coef", 0.1), ppo.get("entropy_coef", 0.0)
    warm = rows[ppo.get("critic_warmup", 0) :]
    last = [row for row in warm[-WINDOW:] if {"loss", "l_clip", "l_vf", "entropy"} <= row.keys()]
    if not last or ppo.get("kl_penalty") == "loss" or ppo.get("ptx_coef"):
        return None

    def off(value_sign: int, bonus_sign: int) -> float:
        return sum(
            abs(r["loss"] + r["l_clip"] - value_sign * value * r["l_vf"] + bonus_sign * bonus * r["entropy"])
            for r in last
        )

    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    best = min(signs, key=lambda pair: off(*pair))
    # Equal but for rounding is not a finding: a coefficient of 0 leaves the sign open.
    if off(*best) >= 0.5 * off(1, 1) or off(1, 1) < 1e-6 * len(last):
        return None
    wrong = [what for sign, what in zip(best, ("value loss", "entropy bonus"), strict=True) if sign < 0]
    if not wrong:
        return None
    return Finding(
        f"{wrong[-1]} sign", f"the {' and the '.join(wrong)} enters the loss with the wrong sign",
        f"{_seen(last, 'loss', len(last))}; the stated signs are off by {off(1, 1) / len(last):.3g} on average",
        "no setting: the loss that was computed is not −(L_CLIP − c1·L_VF + c2·S)", "fault",
    )  # fmt: skip


def score_falls(looks: Sequence[Row], ppo: Settings) -> Finding | None:
    score, first = _last(looks, "score"), looks[0]["score"]
    if score is None or len(looks) <= WINDOW:
        return None
    noise = max(2 * looks[-1].get("score_gain_se", 0.25), 0.1)
    if score >= first - noise:
        return None
    return Finding(
        "score falls", "the policy earns less on validation prompts than the SFT model did",
        f"{_seen(looks, 'score')}, first {first:.3g}, noise {noise:.2g}",
        "lower ppo.learning_rate; look at the other findings first",
    )  # fmt: skip


def over_budget(looks: Sequence[Row], ppo: Settings) -> Finding | None:
    judged = any("held_out_score" in row for row in looks) and ppo.get("keep_by") != "score"
    budget = ppo.get("kl_budget") or (math.inf if judged else KL_BUDGET)
    if len(looks) < WINDOW or not all(row["kl"] > budget for row in looks[-WINDOW:]):
        return None
    return Finding(
        "KL over its budget", "policies this far from the reference are not kept: these updates are in vain",
        f"{_seen(looks, 'kl')} nats a reply, the budget is {budget:g}",
        "raise ppo.kl_coef (or give ppo.kl_target), or allow more with ppo.kl_budget",
    )  # fmt: skip


def repeated_text(looks: Sequence[Row], ppo: Settings) -> Finding | None:
    repeats, (factor, floor) = _last(looks, "repeated_trigrams"), REPEATS
    if repeats is None or "repeated_trigrams" not in looks[0]:
        return None
    limit = max(factor * looks[0]["repeated_trigrams"], floor)
    if repeats <= limit:
        return None
    return Finding(
        "repeated text", "replies go in circles", f"{_seen(looks, 'repeated_trigrams')}, first "
        f"{looks[0]['repeated_trigrams']:.3g}, limit {limit:.3g}",
        "raise ppo.kl_coef, or lower ppo.learning_rate; look for a reward that pays for it",
    )  # fmt: skip


def alike_replies(looks: Sequence[Row], ppo: Settings) -> Finding | None:
    variety = _last(looks, "distinct_bigrams")
    if variety is None or "distinct_bigrams" not in looks[0]:
        return None
    limit = VARIETY_LEFT * looks[0]["distinct_bigrams"]
    if variety >= limit:
        return None
    return Finding(
        "replies alike", "different prompts get nearly the same reply",
        f"{_seen(looks, 'distinct_bigrams')}, first {looks[0]['distinct_bigrams']:.3g}, limit {limit:.3g}",
        "raise ppo.kl_coef (or give ppo.kl_target), or stop earlier",
    )  # fmt: skip


def reward_hacking(looks: Sequence[Row], ppo: Settings) -> Finding | None:
    """The watch's own rules with a held-out score, wherever in the run one first held."""
    config = WatchConfig(**{**ppo.get("watch", {}), "enabled": True})
    watched = [row for row in looks if "held_out_score" in row]
    found = next((why for end in range(1, len(watched) + 1) if (why := verdict(watched[:end], config))), None)
    if found is None:
        return None
    return Finding(
        "reward hacking", "the policy games what it is paid by", found,
        "raise ppo.kl_coef, stop earlier, or train the reward model on fresh rankings of these replies",
    )  # fmt: skip


Check = Callable[[Sequence[Row], Settings], Finding | None]
CHECKS: tuple[Check, ...] = (
    loss_sum, negative_kl, learning_rate, stands_still, kl_runaway, entropy, no_eos, length_drift, dead_critic,
    score_scale, sampler_drifts,
)  # fmt: skip
LOOK_CHECKS: tuple[Check, ...] = (reward_hacking, repeated_text, alike_replies, score_falls, over_budget)
