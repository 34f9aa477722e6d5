"""The worked example of the docs, computed by the library's own functions.

One state of a finished reply: V = 1.5, the reward on the last token is 5, γ = 0.9, π_old = 0.60, π = 0.75, ε = 0.2.
By hand: Â = 5 − 1.5 = 3.5, r = 0.75/0.60 = 1.25, unclipped 4.375, clipped 1.2·3.5 = 4.2, L_CLIP = 4.2.
"""

from dataclasses import dataclass

import torch

from plaudit.algo.advantages import gae
from plaudit.algo.losses import clipped_surrogate


@dataclass(frozen=True)
class WorkedExample:
    """Every number of the example, in the order in which PPO computes them."""

    value: float
    reward: float
    gamma: float
    old_probability: float
    probability: float
    clip_range: float
    advantage: float
    ratio: float
    unclipped: float
    clipped: float
    l_clip: float


def worked_example(reward: float = 5.0, probability: float = 0.75) -> WorkedExample:
    """The example, also for another reward or probability."""
    value, gamma, old_probability, clip_range = 1.5, 0.9, 0.60, 0.2
    one = torch.ones(1, 1, dtype=torch.float64)
    advantages_BT, _ = gae(reward * one, value * one, one.bool(), gamma=gamma, lam=1.0)
    ratio_BT = (torch.log(probability * one) - torch.log(old_probability * one)).exp()
    l_clip = clipped_surrogate(ratio_BT, advantages_BT, clip_range)
    clipped = ratio_BT.clamp(1 - clip_range, 1 + clip_range) * advantages_BT
    given = (value, reward, gamma, old_probability, probability, clip_range)
    computed = (advantages_BT, ratio_BT, ratio_BT * advantages_BT, clipped, l_clip)
    return WorkedExample(*given, *(number.item() for number in computed))
