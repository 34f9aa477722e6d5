"""Numbers that must hold in every run; when one does not, the run stops with the reason.

- Before the first optimiser step of an update the trainer's ratio is 1 (float32: within 1e-6; bf16: exactly, because
  old log-probs are computed in the very micro-batches that are trained on) and no token is clipped.
- A fresh policy adapter changes nothing, so the KL before the first update is 0.
- Sampler and trainer agree about the log-probabilities of the sampled tokens.
- Losses, gradients and scores are finite before the optimiser moves anything.
"""

import math

import torch
from torch import Tensor

from plaudit.errors import RunStopped

RATIO_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.0}
# (mean, 99th percentile) of |sampler − trainer| in nats a token. The bf16 bounds are about three times the largest seen
# on SmolLM2-135M over whole demo runs (docs/benchmarks.md).
GAP_BOUND = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.15, 0.8)}


def check_first_ratio(largest: float, dtype: torch.dtype) -> None:
    """`largest` is max |ratio − 1| over the first optimiser step of an update."""
    if not largest <= RATIO_TOLERANCE[dtype]:
        raise RunStopped(
            f"before the first step of the update the probability ratio is off by {largest:.3g}, allowed "
            f"{RATIO_TOLERANCE[dtype]:g}: the trainer does not reproduce its own old log-probabilities"
        )


def check_fresh_kl(kl_BT: Tensor, dtype: torch.dtype) -> None:
    """Before the first update policy and reference are one model."""
    largest = kl_BT.abs().max().item()
    if not largest <= RATIO_TOLERANCE[dtype]:
        raise RunStopped(
            f"a fresh policy differs from the reference by {largest:.3g} nats a token, allowed "
            f"{RATIO_TOLERANCE[dtype]:g}: the reference is not the model the policy started from"
        )


def sampler_gap(sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor) -> tuple[float, float]:
    """Mean and 99th percentile of |sampler − trainer| over the reply tokens, in nats."""
    gap_N = (sampler_logprobs_BT - logprobs_BT)[mask_BT].abs()
    return gap_N.mean().item(), gap_N.quantile(0.99).item()


def check_sampler_gap(mean: float, p99: float, dtype: torch.dtype) -> None:
    """Stop when the replies were sampled from another law than the one that is trained."""
    for name, value, bound in zip(("mean", "99th percentile"), (mean, p99), GAP_BOUND[dtype], strict=True):
        if not value <= bound:
            raise RunStopped(
                f"sampler and trainer disagree: the {name} of |Δ log-prob| is {value:.3g} nats a token, allowed "
                f"{bound:g}; the replies do not come from the policy that is trained"
            )


def check_finite(name: str, value: float, where: str) -> None:
    """Stop before a NaN or an infinity reaches the weights."""
    if not math.isfinite(value):
        raise RunStopped(f"{where}: {name} is {value}; nothing was changed by this step")
