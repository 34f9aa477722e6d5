"""The formulas of PPO a second time, for the doctor: NumPy, one reply at a time, straight from their definitions.

They share nothing with algo/, which a run computes with: what is wrong there must not be wrong here too. Sources and
notes are in algo/advantages.py, algo/rewards.py and algo/masked.py. Arrays are [tokens] of one reply's R_t and V_t, or
[replies].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kl_estimates(logprobs: Floats, ref_logprobs: Floats, estimator: str) -> Floats:
    """k1 = log π − log π_ref, k2 = k1²/2, k3 = π_ref/π − 1 + k1."""
    k1 = logprobs - ref_logprobs
    return {"k1": k1, "k2": k1**2 / 2, "k3": np.exp(-k1) - 1 + k1}[estimator]


def through_origin(y: Sequence[Floats], x: Sequence[Floats], noise: float) -> tuple[float, float]:
    """The slope of y on x, an array a reply, and its standard error with replies as clusters. x and y share an error
    of variance noise/2, and x has another one like it (see guard/sampler.py)."""
    products = np.array([a @ b - noise / 2 * len(a) for a, b in zip(y, x, strict=True)])
    squares = np.array([b @ b - noise * len(b) for b in x])
    slope = products.sum() / squares.sum()
    errors = products - slope * squares
    return float(slope), float(np.sqrt((errors**2).sum() * len(x) / (len(x) - 1)) / squares.sum())


def discounted(values: Floats, discount: float) -> Floats:
    """Σ_{k ≥ t} discount^(k−t)·x_k for every t."""
    places = np.arange(len(values))
    steps = places[None, :] - places[:, None]  # k − t
    weights = np.where(steps >= 0, discount ** np.maximum(steps, 0).astype(np.float64), 0.0)
    return weights @ values


def gae(rewards: Floats, values: Floats, beyond: float, gamma: float, lam: float) -> Floats:
    """Σ_{k ≥ t} (γλ)^(k−t)·δ_k with δ_t = R_t + γ·V_{t+1} − V_t; after the last token V is `beyond`."""
    return discounted(rewards + gamma * np.append(values[1:], beyond) - values, gamma * lam)


def leave_one_out(returns: Floats, group: int) -> Floats:
    """Each reply's return less the mean of the others of its group: RLOO."""
    groups = returns.reshape(-1, group)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (group - 1)
    return (groups - others).ravel()


def in_group(returns: Floats, group: int, scale_std: bool) -> Floats:
    """Each reply's return less the mean of its group, over the group's std: GRPO; without the std Dr. GRPO."""
    groups = returns.reshape(-1, group)
    return np.concatenate([whitened([one])[0] if scale_std else one - one.mean() for one in groups])


def whitened(replies: Sequence[Floats]) -> list[Floats]:
    """Mean 0 and std 1 (divided by N) over all tokens of all replies; 0 where they differ by rounding only."""
    tokens = np.concatenate(replies)
    mean, std = tokens.mean(), tokens.std()
    return [(one - mean) / std if blow_up(tokens) else np.zeros_like(one) for one in replies]


def blow_up(x: Floats) -> float:
    """How far whitening blows up relative rounding errors: root mean square over std; 0 where rounding is all there
    is, and numbers count as alike."""
    size, std = float((x**2).mean()) ** 0.5, float(x.std())
    return size / std if std > 1e-6 * size else 0.0
