"""Do the replies come from the policy that is trained? The sampler's log-probabilities against the trainer's.

Two engines compute them, so they differ by rounding; more is a mistake. Two measures see different ones: how far they
are apart (`sampler_gap`), and where between policy and reference the sampler is (`sampler_slope`), which sees an
adapter that is lost, half there or of yesterday while it is still too small to be far from anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.errors import RunStopped

GAP_BOUND = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.15, 0.8)}
"""(mean, 99th percentile) of |sampler − trainer| in nats a token. The bf16 bounds are about three times the largest
seen on SmolLM2-135M over whole demo runs (docs/benchmarks.md)."""
SERVED_BOUND = {torch.float32: (1e-3, 5e-3), torch.bfloat16: (0.15, 0.8)}
"""The same for another engine, whose kernels are other ones and whose adapter is not merged."""
SLOPE_BOUND = 0.1
"""Share of the way to the reference beyond which, and `SLOPE_ERRORS` standard errors, the sampler is not the policy.
One that never got the adapter is at 1; a merge rounded to the nearest bfloat16 was at 0.27 to 0.93, one rounded at
random within 0.01 to 0.07 of 0 (docs/benchmarks.md)."""
SLOPE_ERRORS = 4.0
CLEAR_OF_NOISE = 4.0
"""Mean square of |reference − policy| over that of the noise below which there is nothing to measure a slope on."""
TOO_NEAR = 1e-9
"""Nats², so 3e-5 nats a token: nearer than that, rounding in float32 may be all there is between the two."""


@dataclass(frozen=True)
class Slope:
    """Where the sampler is: 0 at the policy, 1 at the reference; and the standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:+.2g} ± {self.error:.1g}"

    @property
    def lost(self) -> bool:
        return abs(self.value) > SLOPE_BOUND + SLOPE_ERRORS * self.error


def sampler_gap(sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor) -> tuple[float, float]:
    """Mean and 99th percentile of |sampler − trainer| over the reply tokens, in nats."""
    gap_N = (sampler_logprobs_BT - logprobs_BT)[mask_BT].abs()
    return gap_N.mean().item(), gap_N.quantile(0.99).item()


def sampler_noise(sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean square of sampler − trainer, in nats². In a run's first rollout policy, reference and sampler are one
    model, so there it is rounding alone."""
    return (sampler_logprobs_BT - logprobs_BT)[mask_BT].double().square().mean().item()


def sampler_slope(
    sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, noise: float
) -> Slope | None:
    """The slope of (sampler − policy) on (reference − policy) through the origin, over the reply tokens; None where
    policy and reference are too near each other to tell.

    The policy's own rounding is in both differences and would pull the slope up, as any error of a regressor does
    (Fuller 1987, "Measurement Error Models", section 1.1); `noise`, of the first rollout, is that of two passes, so
    half of it is taken from the sum of products and all of it from the sum of squares. Tokens of a reply err
    alike, so the error is the one of whole replies (Liang and Zeger 1986, "Longitudinal data analysis using
    generalized linear models", equation 7 for independent working correlation).
    """
    zero_BT = torch.zeros_like(logprobs_BT, dtype=torch.float64)
    sampler_BT = torch.where(mask_BT, sampler_logprobs_BT.double() - logprobs_BT.double(), zero_BT)
    reference_BT = torch.where(mask_BT, ref_logprobs_BT.double() - logprobs_BT.double(), zero_BT)
    count, replies = int(mask_BT.sum()), len(mask_BT)
    squares = reference_BT.square().sum().item()
    if replies < 2 or squares <= CLEAR_OF_NOISE * noise * count or squares < TOO_NEAR * count:
        return None
    squares -= noise * count
    value = ((sampler_BT * reference_BT).sum().item() - noise / 2 * count) / squares
    of_reply_B = (reference_BT * (sampler_BT - value * reference_BT)).sum(dim=1)
    of_reply_B -= of_reply_B.mean()  # what the noise adds to each
    return Slope(value, (of_reply_B.square().sum().item() * replies / (replies - 1)) ** 0.5 / squares)


def gap_pattern(sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor) -> tuple[str, str] | None:
    """(name, what it means) when the gap between sampler and trainer has the shape of a known mistake, else None.

    - another temperature: log p(T₁) of a token is log p(T₂)·T₂/T₁ plus what its state adds, so a line through the pairs
      has another slope than 1. Noise, stale weights and rounding leave it at 1 (within 0.05).
    - top-k, top-p: the sampler spreads the law over fewer tokens, so each that it draws is more likely to it.
    """
    sampler_N, trainer_N = sampler_logprobs_BT[mask_BT].double(), logprobs_BT[mask_BT].double()
    gap_N = sampler_N - trainer_N
    spread = trainer_N - trainer_N.mean()
    if len(gap_N) < 8 or gap_N.abs().mean() <= GAP_BOUND[torch.float32][0] or (spread**2).sum() < 1e-9:
        return None
    slope = ((sampler_N * spread).sum() / (spread**2).sum()).item()
    if gap_N.min() > -1e-5 and abs(slope - 1) < 0.5:
        return (
            "sampling law cut short",
            "the sampler holds each of its tokens more likely than the trainer: top-k or top-p",
        )
    if abs(slope - 1) > 0.05:
        says = f"the sampler's log-probabilities change {slope:.3g} times as much as the trainer's"
        return "temperature mismatch", says
    return None


def explained(sampler_logprobs_BT: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> float:
    """Share of the mean square of (sampler − policy) that lies on the way from policy to reference."""
    gap_N = (sampler_logprobs_BT - logprobs_BT)[mask_BT].double()
    way_N = (ref_logprobs_BT - logprobs_BT)[mask_BT].double()
    both = (gap_N.square().sum() * way_N.square().sum()).item()
    return (gap_N @ way_N).item() ** 2 / both if both > 0 else 0.0


def check_sampler(
    sampler_logprobs_BT: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    dtype: torch.dtype,
    noise: float | None,
    bounds: Mapping[torch.dtype, tuple[float, float]] = GAP_BOUND,
) -> dict[str, float]:
    """Stop when the replies were sampled from another law than the one that is trained; else what the log says.

    `noise` is that of the run's first rollout, None in that rollout itself: there the slope is not asked.
    """
    gap = sampler_gap(sampler_logprobs_BT, logprobs_BT, mask_BT)
    slope = None
    if noise is not None:
        slope = sampler_slope(sampler_logprobs_BT, logprobs_BT, ref_logprobs_BT, mask_BT, noise)
    far = too_far(gap, dtype, bounds)
    if far is not None or (slope is not None and slope.lost):
        pattern = gap_pattern(sampler_logprobs_BT, logprobs_BT, mask_BT)
        on_the_way = explained(sampler_logprobs_BT, logprobs_BT, ref_logprobs_BT, mask_BT)
        raise RunStopped(likeliest(far, slope, pattern, on_the_way))
    row = {"sampler_gap_mean": gap[0], "sampler_gap_p99": gap[1]}
    return row if slope is None else {**row, "sampler_slope": slope.value, "sampler_slope_se": slope.error}


def too_far(
    gap: tuple[float, float], dtype: torch.dtype, bounds: Mapping[torch.dtype, tuple[float, float]] = GAP_BOUND
) -> str | None:
    """Which of the two measures of the gap is over its bound, in words; None where neither is."""
    for name, value, bound in zip(("mean", "99th percentile"), gap, bounds[dtype], strict=True):
        if not value <= bound:
            return f"the {name} of |Δ log-prob| is {value:.3g} nats a token, allowed {bound:g}"
    return None


def likeliest(far: str | None, slope: Slope | None, pattern: tuple[str, str] | None, on_the_way: float) -> str:
    """The mistake by its name. `far` is what `too_far` says, `pattern` what `gap_pattern` made of the gap, `on_the_way`
    the share of it that an adapter which is lost explains."""
    disagree = "" if far is None else f"sampler and trainer disagree: {far}"
    lost = slope is not None and slope.lost
    if pattern is not None and not (lost and on_the_way > 0.5):
        return f"{pattern[0]}: {pattern[1]} ({disagree or 'the replies do not come from the policy'})"
    if slope is not None and lost:
        return says_lost(slope) + (f" ({disagree})" if disagree else "")
    return f"{disagree}; the replies do not come from the policy that is trained"


def says_lost(slope: Slope) -> str:
    """What a slope beyond its bound means."""
    kind = "stale or lost adapter" if slope.value > 0 else "adapter applied more than once, or scaled twice"
    return (
        f"the sampler does not sample the policy ({kind}): sampler − policy is {slope} of "
        "reference − policy, where 0 is the policy and 1 the reference"
    )
