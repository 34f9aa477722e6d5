"""The arithmetic of a stored rollout, done again: what was written must follow from what it was computed from.

Nothing here needs a model. From the stored tokens, lengths, log-probabilities, values and scores each step of PPO is
recomputed: mask, KL, reward per token, advantages, returns; by formulas.py, not by the code that a run computes with. A
difference has a pattern (a score one token late, moments taken over the padding), and the pattern gives the finding its
name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plaudit.guard import formulas
from plaudit.guard.formulas import Floats
from plaudit.guard.limits import Row
from plaudit.guard.monitors import repeated_trigrams
from plaudit.guard.sampler import CLEAR_OF_NOISE, TOO_NEAR, Slope, gap_pattern
from plaudit.guard.symptoms import Finding

EXACT = 1e-4
"""Relative difference that float32 sums in another order may show; a wrong formula is off by far more."""
FLOAT32 = 1e-6
"""Relative rounding of a reply's float32 sums; where numbers are nearly alike, dividing by their std blows it up."""
FRESH_KL = 1e-6
"""Nats a token by which a policy that has not learnt yet may differ from the reference."""
BEHAVIOUR = "behaviour_logprobs_BT"
NO_SETTING = "no setting: this is a fault of the program, or of a change that was made to it"
FAULTS = {
    "end of turn masked out": "the mask leaves out end-of-turn tokens, so the policy never learns to stop",
    "mask not from lengths": "the mask is not the one that the lengths give",
    "wrong end of turn": "replies are said to have ended, or not, against their own tokens",
    "stale or lost adapter": "the sampler does not sample the policy: it is nearer to the reference, or "
    "farther from it, than the policy",
    "KL sign flipped": "the KL is log π_ref − log π: its penalty drives the policy away from the reference",
    "KL does not follow": "the stored KL is not the one of the stored log-probabilities",
    "wrong reference": "the reference is not the model that the policy started from",
    "KL penalty paid out": "tokens are paid for leaving the reference: the penalty has the wrong sign",
    "another KL coefficient": "the KL penalty that was applied is not the one that is stated",
    "score at the wrong token": "the score does not lie at the last token of the reply",
    "scores not whitened": "the scores of the batch do not have mean 0 and a std of at most 1",
    "advantages not masked": "columns that are no reply tokens have an advantage: whitening saw the padding",
    "returns do not follow": "what the critic learns is not advantage + value of the stored rewards and values",
    "whitening off": "advantages are scaled otherwise than the recipe says: not to mean 0 and std 1 over the update's "
    "reply tokens, or to that though it says not to",
    "whitening per micro-batch": "each part of the update was whitened by its own moments, so the same token weighs "
    "differently from part to part",
    "advantages do not follow": "the advantages are not those of the stored rewards and values",
    "frozen critic": "the critic says the same value of every state, so it does not learn",
}
"""Name -> what is wrong."""
CHANGES = {
    "end of turn masked out": "masks come from lengths, not from ids that equal the pad or end-of-turn id",
    "wrong end of turn": "check the end-of-turn token of the chat template",
    "wrong reference": "the reference must be sft/model of this run",
    "frozen critic": "raise ppo.critic_learning_rate and ppo.value_coef above 0",
}
"""What to change, where it is not `NO_SETTING`."""


@dataclass(frozen=True)
class Stored:
    """The rollout of one update: its tensors by their glossary names, the recipe's section ppo, its metrics row."""

    update: int
    tensors: Mapping[str, Tensor]
    ppo: Mapping[str, Any]
    row: Row

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor by its name, real numbers in float64; KeyError for one that was not stored."""
        found = self.tensors[name]
        return found.double().numpy() if found.is_floating_point() else found.numpy()

    @property
    def lengths_mask_BT(self) -> NDArray[np.bool_]:
        """The mask that follows from the lengths."""
        t = np.arange(self["tokens_BT"].shape[1])
        return (t >= self["prompt_lengths_B"][:, None] - 1) & (t < self["lengths_B"][:, None] - 1)

    @property
    def behaviour(self) -> str:
        """The name of the log-probs of the policy that sampled: the old one, but with `rollout.lag: 1`."""
        return BEHAVIOUR if BEHAVIOUR in self.tensors else "old_logprobs_BT"

    def replies(self, name: str) -> list[Floats]:
        """A [B, T] tensor at the tokens of each reply that the run counted."""
        return [row[counts] for row, counts in zip(self[name], self["mask_BT"], strict=True)]

    def fault(self, name: str, evidence: str) -> Finding:
        change = CHANGES.get(name, NO_SETTING)
        return Finding(name, FAULTS[name], f"update {self.update}: {evidence}", change, "fault")


def _apart(a: Floats, b: Floats, rounding: float = EXACT) -> bool:
    return bool((np.abs(a - b) > rounding * (1 + np.abs(b))).any())


def mask(stored: Stored) -> Finding | None:
    """True from the first reply token to the last, the end-of-turn token included (docs/correctness.md, row 2)."""
    wanted_BT, mask_BT, finished_B = stored.lengths_mask_BT, stored["mask_BT"], stored["finished_B"]
    if np.array_equal(wanted_BT, mask_BT):
        return None
    last_B = stored["lengths_B"] - 2
    missing = int((~mask_BT[np.arange(len(last_B)), last_B] & finished_B).sum())
    if missing:
        evidence = f"in {missing} of {int(finished_B.sum())} replies that ended, their last token does not count"
        return stored.fault("end of turn masked out", evidence)
    return stored.fault("mask not from lengths", f"{int((wanted_BT != mask_BT).sum())} tokens differ")


def endings(stored: Stored) -> Finding | None:
    """A token that ends a reply (a model may have several) stands at the end of those that ended and nowhere else; the
    others were cut at the limit."""
    ended_B, tokens_BT, first_B, beyond_B = (
        stored[name] for name in ("finished_B", "tokens_BT", "prompt_lengths_B", "lengths_B")
    )
    ids = np.unique(tokens_BT[np.arange(len(ended_B)), beyond_B - 1][ended_B])
    t = np.arange(tokens_BT.shape[1])
    # The tokens behind which a reply went on, or was cut.
    open_BT = (t >= first_B[:, None]) & (t < (beyond_B - ended_B)[:, None])
    passed = int((np.isin(tokens_BT, ids) & open_BT).any(axis=1).sum())
    limit = stored.ppo.get("max_new_tokens")
    early = 0 if limit is None else int((~ended_B & (beyond_B - first_B < limit)).sum())
    if not passed and not early:
        return None
    cut = f"{early} replies count as cut below the limit of {limit} tokens"
    return stored.fault("wrong end of turn", f"{cut}; {passed} do not end at a token that ends others")


def kl(stored: Stored) -> Finding | None:
    """kl_BT is the estimate from the stored log-probabilities, with its sign."""
    old, ref, found = (stored[name][stored["mask_BT"]] for name in ("old_logprobs_BT", "ref_logprobs_BT", "kl_BT"))
    penalty = stored.ppo.get("kl_penalty", "k1")
    wanted = formulas.kl_estimates(old, ref, "k1" if penalty == "loss" else penalty)
    if not _apart(found, wanted):
        return None
    if not _apart(-found, wanted):
        evidence = f"mean {found.mean():.3g} nats a token, by the log-probabilities {wanted.mean():.3g}"
        return stored.fault("KL sign flipped", evidence)
    return stored.fault("KL does not follow", f"largest difference {np.abs(found - wanted).max():.3g} nats a token")


def fresh_reference(stored: Stored) -> Finding | None:
    """Before the first update the policy is the reference (docs/correctness.md, row 18), but for a round that goes on
    with the policy of the one before."""
    rounds = stored.ppo.get("rounds", {})
    if rounds.get("number", 1) > 1 and rounds["start"] != rounds["reference"]:
        return None
    gap = np.abs(stored["old_logprobs_BT"] - stored["ref_logprobs_BT"])[stored["mask_BT"]].max()
    if stored.update != 1 or gap <= FRESH_KL:
        return None
    return stored.fault("wrong reference", f"before anything was learnt they differ by up to {gap:.3g} nats a token")


def sampler(stored: Stored) -> Finding | None:
    """The sampler's log-probabilities against the trainer's: a pattern in the gap names its cause."""
    names = ("sampler_logprobs_BT", stored.behaviour, "mask_BT")
    pattern = gap_pattern(*(stored.tensors[name] for name in names))
    if pattern is None:
        return None
    evidence = f"update {stored.update}: over {int(stored['mask_BT'].sum())} tokens"
    return Finding(*pattern, evidence, "set one sampling.temperature for both", "fault")


def sampler_slope(first: Stored, stored: Stored) -> Slope | None:
    """Where the sampler was between policy and reference, less the rounding that the run's `first` rollout shows; None
    where that cannot be told (see guard/sampler.py)."""
    if first.update != 1 or stored.update == 1 or len(stored["mask_BT"]) < 2:
        return None

    def differences(one: Stored, a: str, b: str) -> list[Floats]:
        return [x - y for x, y in zip(one.replies(a), one.replies(b), strict=True)]

    noise = float((np.concatenate(differences(first, "sampler_logprobs_BT", "old_logprobs_BT")) ** 2).mean())
    gap = differences(stored, "sampler_logprobs_BT", stored.behaviour)
    way = differences(stored, "ref_logprobs_BT", stored.behaviour)
    if float((np.concatenate(way) ** 2).mean()) <= max(CLEAR_OF_NOISE * noise, TOO_NEAR):
        return None
    return Slope(*formulas.through_origin(gap, way, noise))


def lost_adapter(first: Stored, stored: Stored) -> Finding | None:
    """The sampler is not the policy (docs/correctness.md, row 31)."""
    slope = sampler_slope(first, stored)
    if slope is None or not slope.lost:
        return None
    return stored.fault("stale or lost adapter", f"sampler − policy is {slope} of reference − policy")


def rewards(stored: Stored) -> Finding | None:
    """R_t = −β·kl_t, plus the score at the last reply token and nowhere else (docs/correctness.md, row 3)."""
    rewards_BT, mask_BT, kl_BT = stored["rewards_BT"], stored.lengths_mask_BT, stored["kl_BT"]
    coef = stored.row.get("kl_coef", stored.ppo.get("kl_coef", 0.05))
    stated = 0.0 if stored.ppo.get("kl_penalty") == "loss" else coef
    last_BT = np.zeros_like(mask_BT)
    last_BT[np.arange(len(mask_BT)), stored["lengths_B"] - 2] = True
    # β by which tokens were charged: the median of −R/kl, away from the end, where a score may have strayed.
    clear_BT = mask_BT & ~last_BT & ~np.roll(last_BT, -1, axis=1) & (np.abs(kl_BT) > 1e-3)
    coef = float(np.median(-rewards_BT[clear_BT] / kl_BT[clear_BT])) if clear_BT.any() else stated
    if coef < -EXACT:
        evidence = f"reward per nat of KL {-coef:+.3g}, stated {-stated:+.3g}"
        return stored.fault("KL penalty paid out", evidence)
    if abs(coef - stated) > 0.01 * stated + EXACT:
        return stored.fault("another KL coefficient", f"applied {coef:.4g}, stated {stated:.4g}")
    score_BT = rewards_BT + coef * np.where(mask_BT, kl_BT, 0)
    if not _apart(score_BT, np.where(last_BT, stored["scores_B"][:, None], 0)):
        return None
    return stored.fault("score at the wrong token", _where(score_BT, last_BT))


def _where(score_BT: Floats, last_BT: NDArray[np.bool_]) -> str:
    """Where the scores went: 'one token late in 3 replies', and so on."""
    found_BT, last_B = np.abs(score_BT) > EXACT, last_BT.argmax(axis=1)
    shifts = [int(place - last_B[row]) for row, place in np.argwhere(found_BT)]
    late, early = sum(s > 0 for s in shifts), sum(s < 0 for s in shifts)
    missing = int((~(found_BT & last_BT).any(axis=1)).sum())
    steps = sorted({abs(s) for s in shifts if s})
    where = f", {steps[0]} token{'s' if steps[0] > 1 else ''} off" if len(steps) == 1 else ""
    return f"{late} scores late, {early} early{where}; {missing} replies of {len(score_BT)} have none at their end"


def advantages(stored: Stored) -> Finding | None:
    """Advantages and returns from the stored rewards and values (docs/correctness.md, rows 10, 12 and 13)."""
    outside = stored["advantages_BT"][~stored["mask_BT"]]
    if (outside != 0).any():
        evidence = f"{int((outside != 0).sum())} of {outside.size} such columns, up to {np.abs(outside).max():.3g}"
        return stored.fault("advantages not masked", evidence)
    raw, whitens = _estimates(stored)
    tokens = np.concatenate
    if "returns_BT" in stored.tensors:
        wanted = [a + v for a, v in zip(raw, stored.replies("values_BT"), strict=True)]
        difference = np.abs(tokens(stored.replies("returns_BT")) - tokens(wanted)).max()
        if _apart(tokens(stored.replies("returns_BT")), tokens(wanted)):
            return stored.fault("returns do not follow", f"largest difference {difference:.3g}")
    found, wanted = stored.replies("advantages_BT"), formulas.whitened(raw) if whitens else raw
    if not _apart(tokens(found), tokens(wanted), EXACT + FLOAT32 * _blown_up(stored, raw)):
        return None
    moments = f"mean {tokens(found).mean():.3g}, std {tokens(found).std():.3g}"
    evidence = f"over the update's reply tokens {moments}; the recipe {'whitens' if whitens else 'does not whiten'}"
    if _affine(tokens(found), tokens(raw)):
        return stored.fault("whitening off", evidence)
    if all(_affine(y, x) for y, x in zip(found, raw, strict=True) if len(x) > 2) and max(map(len, raw)) > 2:
        return stored.fault("whitening per micro-batch", evidence)
    difference = np.abs(tokens(found) - tokens(wanted)).max()
    return stored.fault("advantages do not follow", f"largest difference {difference:.3g}; {evidence}")


def _estimates(stored: Stored) -> tuple[list[Floats], bool]:
    """The advantages of each reply by the recipe's estimator, and whether they are whitened after that."""
    ppo, rewards = stored.ppo, stored.replies("rewards_BT")
    estimator, whitens = ppo.get("advantages", "gae"), ppo.get("whiten_advantages")
    gamma, group = ppo.get("gamma", 1.0), ppo.get("replies_per_prompt", 1)
    whitens = estimator == "gae" if whitens is None else whitens
    if estimator == "gae":
        cut_B = ~stored["finished_B"]
        beyond_B = stored["last_values_B"] * cut_B if "last_values_B" in stored.tensors else np.zeros(len(cut_B))
        rows = zip(rewards, stored.replies("values_BT"), beyond_B, strict=True)
        return [formulas.gae(r, v, beyond, gamma, ppo.get("lam", 0.95)) for r, v, beyond in rows], whitens
    if estimator == "reinforce_pp":
        return formulas.whitened([formulas.discounted(r, gamma) for r in rewards]), whitens
    returns_B = np.array([r.sum() for r in rewards])
    if estimator == "rloo":
        of_reply_B = formulas.leave_one_out(returns_B, group)
    else:
        of_reply_B = formulas.in_group(returns_B, group, estimator == "grpo")
    return [np.full_like(r, a) for r, a in zip(rewards, of_reply_B, strict=True)], whitens


def _blown_up(stored: Stored, raw: Sequence[Floats]) -> float:
    """How far rounding was blown up on the way to the advantages: by whitening, or in a group of GRPO."""
    returns_B, size = np.array([r.sum() for r in stored.replies("rewards_BT")]), stored.ppo.get("replies_per_prompt", 1)
    return max(map(formulas.blow_up, [np.concatenate(raw), *returns_B.reshape(-1, size)]))


def _affine(y: Floats, x: Floats) -> bool:
    """Whether y = a·x + b for one a > 0."""
    dx, dy = x - x.mean(), y - y.mean()
    if np.linalg.norm(dx) < 1e-9:
        return bool(np.linalg.norm(dy) < 1e-6)
    slope = (dx @ dy) / (dx @ dx)
    return bool(slope > 0 and np.abs(dy - slope * dx).max() <= 1e-3 * np.abs(dy).max())


def whitened_scores(stored: Stored) -> Finding | None:
    """Scores of mean 0, and of a std of at most 1 (less where its floor held)."""
    mean, std = stored["scores_B"].mean(), stored["scores_B"].std()
    if (
        stored.ppo.get("score_scale", "whiten") != "whiten"
        or len(stored["scores_B"]) < 2
        or (abs(mean) < 1e-3 and std < 1.001)
    ):
        return None
    return stored.fault("scores not whitened", f"mean {mean:.3g}, std {std:.3g}")


Check = Callable[[Stored], Finding | None]
CHECKS: tuple[Check, ...] = (mask, endings, fresh_reference, sampler, kl, rewards, advantages, whitened_scores)


def frozen_critic(first: Stored, last: Stored) -> Finding | None:
    """A critic that learns says another value sooner or later than the constant a zero head starts with."""
    if "values_BT" not in last.tensors or first.update == last.update or not last.ppo.get("value_coef", 0.1):
        return None
    values = [stored["values_BT"][stored["mask_BT"]] for stored in (first, last)]
    if max(found.std() for found in values) > 1e-9:
        return None
    evidence = f"every value is {values[1][0]:.3g}, in update {first.update} and still"
    return last.fault("frozen critic", evidence)


def measured(stored: Stored) -> Row:
    """What the symptoms ask of a rollout, as columns of its update's row: the mean KL of its replies in nats and its
    standard error, the share of repeated 3-grams."""
    kl_B = np.array([k.sum() for k in stored.replies(stored.behaviour)])
    kl_B -= np.array([k.sum() for k in stored.replies("ref_logprobs_BT")])
    spans = zip(stored["tokens_BT"].tolist(), stored["prompt_lengths_B"], stored["lengths_B"], strict=True)
    shares = [repeated_trigrams(ids[start:end]) for ids, start, end in spans]
    error = {"kl_se": kl_B.std(ddof=1) / len(kl_B) ** 0.5} if len(kl_B) >= 8 else {}
    return {"update": stored.update, "kl": kl_B.mean(), **error, "repeated_trigrams": np.mean(shares)}
