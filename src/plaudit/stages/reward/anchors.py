"""One scale over rounds: replies whose scores stay where the first round's reward model put them.

The anchors are the first replies of round 1's training rankings. A later round's reward model, which knows nothing of
the first one's raw scores, is normalised so that the anchors have the mean and the spread that they had; so a score of
one round means in another what it meant there, and a policy is not judged by a ruler that has moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plaudit.algo.statistics import correlation
from plaudit.data.files import read_rankings
from plaudit.records import Completion, Prompt
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.score import score_replies
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.reward.training import comparisons
from plaudit.train.run import Run

ANCHORS = 256
"""Replies: as many as round 1 normalises by."""


@dataclass(frozen=True)
class Anchors:
    """The replies, and what the first round's reward model scores them."""

    replies: Sequence[tuple[Prompt, Completion]]
    scores_B: Tensor


def anchors_of(config: RewardConfig, run: Run) -> Anchors | None:
    """Those of the run; None in round 1, whose own normalisation sets the scale."""
    if not run.before:
        return None
    first = run.before[0]
    rankings = read_rankings(first / "preferences" / "rankings.jsonl")
    learnt = [r for r in rankings if r.prompt.split == "train" and comparisons(config, r)]
    replies = [(r.prompt, reply) for r in learnt for reply in r.replies][:ANCHORS]
    reward = load_reward_model(first / "reward", run.machine.dtype, run.machine.device)
    return Anchors(replies, reward.contract.normalised(score_replies(reward.model, reward.chat, replies)).cpu())


def on_one_scale(contract: RewardContract, raw_BM: Tensor, scores_B: Tensor) -> RewardContract:
    """The contract under which the anchors, whose raw scores are `raw_BM`, have the mean and std of `scores_B`.

        μ'_m = μ_m − b·σ_m / a,   σ'_m = σ_m / a,   a = std(s) / std(f),   b = mean(s) − a·mean(f)

    for each member m, f being the scores under `contract`: then member m's normalised score n becomes a·n + b. Means,
    minima and mean − k·std follow such a change exactly; the pessimistic mean, whose β has a scale of its own, after a
    few turns.
    """
    for _ in range(10):
        f_B = contract.normalised(raw_BM).double()
        if f_B.std(correction=0) < 1e-6:
            return contract  # it scores all of them alike, and `told` says so
        a = float(scores_B.double().std(correction=0) / f_B.std(correction=0))
        b = float(scores_B.double().mean()) - a * float(f_B.mean())
        contract = replace(
            contract,
            mean=tuple(m - b * s / a for m, s in zip(contract.mean, contract.std, strict=True)),
            std=tuple(s / a for s in contract.std),
        )
    return contract


def told(contract: RewardContract, raw_BM: Tensor, anchors: Anchors) -> dict[str, Any]:
    """What the card says of the anchors: mean and std of their scores in round 1 and now, how far they are `off` in
    standard deviations of round 1, and how far both reward models agree about them (Pearson's r)."""
    now_B, then_B = contract.normalised(raw_BM).double().cpu(), anchors.scores_B.double()
    mean, std = ([float(f(x)) for x in (then_B, now_B)] for f in (torch.mean, _std))
    return {
        "replies": len(anchors.replies),
        "mean": mean,
        "std": std,
        "off": max(abs(mean[1] - mean[0]), abs(std[1] - std[0])) / max(std[0], 1e-6),
        "correlation": correlation(then_B.numpy(), now_B.numpy()),
    }


def _std(x: Tensor) -> Tensor:
    return x.std(correction=0)
