"""The arithmetic of a stored rollout, done again: what was written must follow from what it was computed from.

Nothing here needs a model. From the stored tokens, lengths, log-probabilities, values and scores each step of PPO is
recomputed: mask, KL, reward per token, advantages, returns. A difference has a pattern (a score one token late, moments
taken over the padding), and the pattern gives the finding its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.algo import advantages as estimators
from plaudit.algo.masked import whiten
from plaudit.algo.rewards import kl_estimate
from plaudit.guard.invariants import gap_pattern
from plaudit.guard.monitors import repeated_trigrams
from plaudit.guard.symptoms import REPEATS, Finding

EXACT = 1e-4
"""Relative difference that float32 sums in another order may show; a wrong formula is off by far more."""
FRESH_KL = 1e-6
"""Nats a token by which a policy that has not learnt yet may differ from the reference."""
NO_SETTING = "no setting: this is a fault of the program, or of a change that was made to it"


@dataclass(frozen=True)
class Stored:
    """The rollout of one update: its tensors by their glossary names, the recipe's section ppo, its metrics row."""

    update: int
    tensors: Mapping[str, Tensor]
    ppo: Mapping[str, Any]
    row: Mapping[str, float]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name; KeyError for one that was not stored."""
        return self.tensors[name]

    @property
    def lengths_mask_BT(self) -> Tensor:
        """The mask that follows from the lengths."""
        t = torch.arange(self["tokens_BT"].shape[1])
        return (t >= self["prompt_lengths_B"][:, None] - 1) & (t < self["lengths_B"][:, None] - 1)

    def fault(self, name: str, says: str, evidence: str, change: str = NO_SETTING) -> Finding:
        return Finding(name, says, f"update {self.update}: {evidence}", change, "fault")


def _apart(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() > EXACT * (1 + b.abs())).any())


def mask(stored: Stored) -> Finding | None:
    """True from the first reply token to the last, the end-of-turn token included (docs/correctness.md, row 2)."""
    wanted_BT, mask_BT = stored.lengths_mask_BT, stored["mask_BT"]
    if torch.equal(wanted_BT, mask_BT):
        return None
    last_B = stored["lengths_B"] - 2
    left_out_B = ~mask_BT[torch.arange(len(last_B)), last_B]
    missing = int((left_out_B & stored["finished_B"]).sum())
    if missing:
        return stored.fault(
            "end of turn masked out", "the mask leaves out end-of-turn tokens, so the policy never learns to stop",
            f"in {missing} of {int(stored['finished_B'].sum())} replies that ended, their last token does not count",
            "masks come from lengths, not from ids that equal the pad or end-of-turn id",
        )  # fmt: skip
    return stored.fault(
        "mask not from lengths", "the mask is not the one that the lengths give",
        f"{int((wanted_BT != mask_BT).sum())} tokens differ",
    )  # fmt: skip


def endings(stored: Stored) -> Finding | None:
    """Replies that ended end with one and the same token; the others were cut at the limit."""
    final_B = stored["tokens_BT"][torch.arange(len(stored["lengths_B"])), stored["lengths_B"] - 1]
    ended_B = stored["finished_B"]
    lengths_B, limit = stored["lengths_B"] - stored["prompt_lengths_B"], stored.ppo.get("max_new_tokens")
    ids = final_B[ended_B].unique()
    early = 0 if limit is None else int((~ended_B & (lengths_B < limit)).sum())
    if len(ids) <= 1 and not early:
        return None
    return stored.fault(
        "wrong end of turn", "replies are said to have ended, or not, against their own tokens",
        f"{early} replies count as cut below the limit of {limit} tokens; those that ended do so with {len(ids)} ids",
        "check the end-of-turn token of the chat template",
    )  # fmt: skip


def kl(stored: Stored) -> Finding | None:
    """kl_BT is the estimate from the stored log-probabilities, with its sign."""
    mask_BT, kl_BT = stored["mask_BT"], stored["kl_BT"]
    estimator = stored.ppo.get("kl_estimator", "k1")
    wanted_BT = kl_estimate(stored["old_logprobs_BT"], stored["ref_logprobs_BT"], estimator)
    if not _apart(kl_BT[mask_BT], wanted_BT[mask_BT]):
        return None
    if not _apart(-kl_BT[mask_BT], wanted_BT[mask_BT]):
        return stored.fault(
            "KL sign flipped", "the KL is log π_ref − log π: its penalty drives the policy away from the reference",
            f"mean {kl_BT[mask_BT].mean():.3g} nats a token, by the log-probabilities {wanted_BT[mask_BT].mean():.3g}",
        )  # fmt: skip
    return stored.fault(
        "KL does not follow", "the stored KL is not the one of the stored log-probabilities",
        f"largest difference {(kl_BT - wanted_BT)[mask_BT].abs().max():.3g} nats a token",
    )  # fmt: skip


def fresh_reference(stored: Stored) -> Finding | None:
    """Before the first update the policy is the reference (docs/correctness.md, row 18)."""
    if stored.update != 1:
        return None
    gap = (stored["old_logprobs_BT"] - stored["ref_logprobs_BT"])[stored["mask_BT"]].abs().max().item()
    if gap <= FRESH_KL:
        return None
    return stored.fault(
        "wrong reference", "the reference is not the model that the policy started from",
        f"before anything was learnt they differ by up to {gap:.3g} nats a token",
        "the reference must be sft/model of this run",
    )  # fmt: skip


def negative_kl(stored: Stored) -> Finding | None:
    """Over an update's replies the mean KL may be below 0 by chance, not by four standard errors."""
    kl_B = ((stored["old_logprobs_BT"] - stored["ref_logprobs_BT"]) * stored["mask_BT"]).sum(dim=1)
    if len(kl_B) < 8:
        return None
    mean, error = kl_B.mean().item(), kl_B.std().item() / len(kl_B) ** 0.5
    if mean >= min(-0.05, -4 * error):
        return None
    return Finding(
        "negative KL", "the policy is less likely to say its own replies than the reference is: they were sampled from "
        "another law than the one that is trained",
        f"update {stored.update}: KL {mean:.3g} ± {error:.2g} nats a reply over {len(kl_B)} replies",
        "ppo.temperature must be the only change to the sampling; a sampler of your own must not cut its law",
    )  # fmt: skip


def sampler(stored: Stored) -> Finding | None:
    """The sampler's log-probabilities against the trainer's: a pattern in the gap names its cause."""
    pattern = gap_pattern(stored["sampler_logprobs_BT"], stored["old_logprobs_BT"], stored["mask_BT"])
    if pattern is None:
        return None
    name, says = pattern
    return stored.fault(name, says, f"over {int(stored['mask_BT'].sum())} tokens", "set one ppo.temperature for both")


def rewards(stored: Stored) -> Finding | None:
    """R_t = −β·kl_t, plus the score at the last reply token and nowhere else (docs/correctness.md, row 3)."""
    rewards_BT, mask_BT, kl_BT = stored["rewards_BT"], stored.lengths_mask_BT, stored["kl_BT"]
    stated = 0.0 if stored.ppo.get("kl_in") == "loss" else stored.row.get("kl_coef", stored.ppo.get("kl_coef", 0.05))
    last_BT = torch.zeros_like(mask_BT)
    last_BT[torch.arange(len(mask_BT)), stored["lengths_B"] - 2] = True
    paid = _coefficient(rewards_BT, kl_BT, mask_BT, last_BT)
    coef = stated if paid is None else paid
    if coef < -EXACT:
        return stored.fault(
            "KL penalty paid out", "tokens are paid for leaving the reference: the penalty has the wrong sign",
            f"reward per nat of KL {-coef:+.3g}, stated {-stated:+.3g}",
        )  # fmt: skip
    if abs(coef - stated) > 0.01 * stated + EXACT:
        return stored.fault(
            "another KL coefficient", "the KL penalty that was applied is not the one that is stated",
            f"applied {coef:.4g}, stated {stated:.4g}",
        )  # fmt: skip
    score_BT = rewards_BT + coef * torch.where(mask_BT, kl_BT, torch.zeros_like(kl_BT))
    wanted_BT = torch.where(last_BT, stored["scores_B"][:, None].expand_as(score_BT), torch.zeros_like(score_BT))
    if not _apart(score_BT, wanted_BT):
        return None
    return stored.fault(
        "score at the wrong token", "the score does not lie at the last token of the reply", _where(score_BT, last_BT)
    )


def _coefficient(rewards_BT: Tensor, kl_BT: Tensor, mask_BT: Tensor, last_BT: Tensor) -> float | None:
    """β by which tokens were charged: the median of −R/kl, away from the end, where a score may have strayed."""
    near_BT = last_BT | last_BT.roll(-1, dims=1)
    clear_BT = mask_BT & ~near_BT & (kl_BT.abs() > 1e-3)
    ratios_N = -rewards_BT[clear_BT] / kl_BT[clear_BT]
    return ratios_N.median().item() if len(ratios_N) else None


def _where(score_BT: Tensor, last_BT: Tensor) -> str:
    """Where the scores went: 'one token late in 3 replies', and so on."""
    found_BT = score_BT.abs() > EXACT
    last_B = last_BT.int().argmax(dim=1)
    shifts = [int(p) - int(last_B[b]) for b, p in found_BT.nonzero().tolist()]
    late, early = sum(s > 0 for s in shifts), sum(s < 0 for s in shifts)
    missing = int((~(found_BT & last_BT).any(dim=1)).sum())
    steps = sorted({abs(s) for s in shifts if s})
    where = f", {steps[0]} token{'s' if steps[0] > 1 else ''} off" if len(steps) == 1 else ""
    return f"{late} scores late, {early} early{where}; {missing} replies of {len(score_BT)} have none at their end"


def advantages(stored: Stored) -> Finding | None:
    """Advantages and returns from the stored rewards and values, by the recipe's estimator (rows 10, 12 and 13)."""
    mask_BT, advantages_BT = stored["mask_BT"], stored["advantages_BT"]
    outside = advantages_BT[~mask_BT]
    if bool((outside != 0).any()):
        return stored.fault(
            "advantages not masked", "columns that are no reply tokens have an advantage: whitening saw the padding",
            f"{int((outside != 0).sum())} of {outside.numel()} such columns, up to {outside.abs().max():.3g}",
        )  # fmt: skip
    raw_BT, returns_BT = _estimate(stored)
    if "returns_BT" in stored.tensors and returns_BT is not None and _apart(stored["returns_BT"], returns_BT):
        return stored.fault(
            "returns do not follow", "what the critic learns is not advantage + value of the stored rewards and values",
            f"largest difference {(stored['returns_BT'] - returns_BT).abs().max():.3g}",
        )  # fmt: skip
    whitens = stored.ppo.get("whiten_advantages")
    if whitens is None:
        whitens = stored.ppo.get("advantages", "gae") == "gae"
    wanted_BT = whiten(raw_BT, mask_BT)[0] if whitens else raw_BT
    if not _apart(advantages_BT, wanted_BT):
        return None
    mean, std = advantages_BT[mask_BT].mean().item(), advantages_BT[mask_BT].std(unbiased=False).item()
    evidence = f"over the update's reply tokens mean {mean:.3g}, std {std:.3g}"
    if _affine(advantages_BT[mask_BT], raw_BT[mask_BT]):
        return stored.fault(
            "whitening off", "advantages are scaled otherwise than the recipe says: not to mean 0 and std 1 over the "
            "update's reply tokens" if whitens else "advantages are whitened though the recipe says not to", evidence,
        )  # fmt: skip
    rows = [row for row in range(len(mask_BT)) if int(mask_BT[row].sum()) > 2]
    if rows and all(_affine(advantages_BT[row][mask_BT[row]], raw_BT[row][mask_BT[row]]) for row in rows):
        return stored.fault(
            "whitening per micro-batch", "each part of the update was whitened by its own moments, so the same token "
            "weighs differently from part to part", evidence,
        )  # fmt: skip
    return stored.fault(
        "advantages do not follow", "the advantages are not those of the stored rewards and values",
        f"largest difference {(advantages_BT - wanted_BT).abs().max():.3g}; {evidence}",
    )  # fmt: skip


def _estimate(stored: Stored) -> tuple[Tensor, Tensor | None]:
    ppo, rewards_BT, mask_BT = stored.ppo, stored["rewards_BT"], stored["mask_BT"]
    gamma, group = ppo.get("gamma", 1.0), ppo.get("replies_per_prompt", 1)
    match ppo.get("advantages", "gae"):
        case "rloo":
            return estimators.rloo(rewards_BT, mask_BT, group_size=group)
        case "grpo":
            return estimators.grpo(rewards_BT, mask_BT, group_size=group, scale_std=ppo.get("grpo_std", True))
        case "reinforce_pp":
            return estimators.reinforce_plus_plus(rewards_BT, mask_BT, gamma=gamma)
        case _:
            beyond = stored.tensors.get("last_values_B")
            bootstrap_B = (
                None if beyond is None else torch.where(stored["finished_B"], torch.zeros_like(beyond), beyond)
            )
            lam = ppo.get("lam", 0.95)
            return estimators.gae(
                rewards_BT, stored["values_BT"], mask_BT, gamma=gamma, lam=lam, bootstrap_B=bootstrap_B
            )


def _affine(y: Tensor, x: Tensor) -> bool:
    """Whether y = a·x + b for one a > 0."""
    dx, dy = (x - x.mean()).double(), (y - y.mean()).double()
    if dx.norm() < 1e-9:
        return bool(dy.norm() < 1e-6)
    slope = (dx * dy).sum() / (dx * dx).sum()
    return bool(slope > 0 and (dy - slope * dx).abs().max() <= 1e-3 * dy.abs().max())


def whitened_scores(stored: Stored) -> Finding | None:
    """Scores of mean 0, and of a std of at most 1 (less where its floor held)."""
    if not stored.ppo.get("whiten_scores", True) or len(stored["scores_B"]) < 2:
        return None
    mean, std = stored["scores_B"].mean().item(), stored["scores_B"].std(unbiased=False).item()
    if abs(mean) < 1e-3 and std < 1.001:
        return None
    return stored.fault(
        "scores not whitened", "the scores of the batch do not have mean 0 and a std of at most 1",
        f"mean {mean:.3g}, std {std:.3g}",
    )  # fmt: skip


CHECKS: tuple[Callable[[Stored], Finding | None], ...] = (
    mask, endings, fresh_reference, sampler, kl, rewards, advantages, whitened_scores, negative_kl,
)  # fmt: skip


def frozen_critic(first: Stored, last: Stored) -> Finding | None:
    """A critic that learns says another value sooner or later than the constant a zero head starts with."""
    if "values_BT" not in last.tensors or first.update == last.update or not last.ppo.get("value_coef", 0.1):
        return None
    spreads = [stored["values_BT"][stored["mask_BT"]].std().item() for stored in (first, last)]
    if max(spreads) > 1e-9:
        return None
    value = last["values_BT"][last["mask_BT"]][0].item()
    return last.fault(
        "frozen critic", "the critic says the same value of every state, so it does not learn",
        f"every value is {value:.3g}, in update {first.update} and still",
        "raise ppo.critic_learning_rate and ppo.value_coef above 0",
    )  # fmt: skip


def repeats(first: Stored, last: Stored) -> Finding | None:
    """Repeated 3-grams of the last update's replies beside those of the first."""
    factor, floor = REPEATS
    then, now = (_repeated(stored) for stored in (first, last))
    limit = max(factor * then, floor)
    if first.update == last.update or now <= limit:
        return None
    return Finding(
        "repeated text", "replies go in circles",
        f"repeated 3-grams {now:.3g} in update {last.update}, {then:.3g} in update {first.update}, limit {limit:.3g}",
        "raise ppo.kl_coef, or lower ppo.learning_rate; look for a reward that pays for it",
    )  # fmt: skip


def _repeated(stored: Stored) -> float:
    spans = zip(
        stored["tokens_BT"].tolist(), stored["prompt_lengths_B"].tolist(), stored["lengths_B"].tolist(), strict=True
    )
    shares = [repeated_trigrams(ids[start:end]) for ids, start, end in spans]
    return sum(shares) / len(shares)
