"""The objectives, as losses: what an optimiser minimises, = −objective. One formula, one home.

Those of preferences are in preferences.py.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from plaudit.algo.masked import masked_sum
from plaudit.algo.names import SamplerCorrection

TIS_CAP = 2.0
"""The cap of Yao et al. 2025."""
ICEPOP = (0.5, 5.0)
"""The bounds of Ling Team 2025."""


@dataclass(frozen=True)
class PPOTerms:
    """The parts of one PPO loss, each already divided by the update's token count, so parts of an update add up."""

    loss: Tensor
    l_clip: Tensor
    l_vf: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def clipped_surrogate(
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """L_CLIP per token: min(r_t·Â_t, clip(r_t, 1−ε, 1+ε)·Â_t); Schulman et al. 2017, arXiv:1707.06347, equation 7.

    - `clip_range_high`: the upper bound is 1 + this, ε bounds below only (Yu et al. 2025, DAPO, arXiv:2503.14476,
      "clip-higher"): rare tokens may gain more before they are cut off, which holds the entropy up. None: both are ε.
    - `dual_clip` c > 1: for Â < 0 the objective is not less than c·Â (Ye et al. 2020, arXiv:1912.09729, equation 5).
      A bad token that the policy has made far more likely, r > c, then has no gradient. Without it, its gradient grows
      with r. ValueError for c ≤ 1.

    ε = 0.2, c = 3: (r, Â) = (1.25, 3.5) gives 4.2; (4, −1) gives −4, and −3 with the dual clip.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + high)
    objective_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    if dual_clip is None:
        return objective_BT
    if dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip} must be above 1: at 1 it would cut the gradient of the first step")
    bounded_BT = torch.maximum(objective_BT, dual_clip * advantages_BT)
    return torch.where(advantages_BT < 0, bounded_BT, objective_BT)


def value_error(
    values_BT: Tensor, returns_BT: Tensor, old_values_BT: Tensor | None = None, value_clip: float | None = None
) -> Tensor:
    """L_VF per token: (V − return)², without ½; with `value_clip` ε_v clipped around the old value:

        max( (V − return)², (clip(V, V_old − ε_v, V_old + ε_v) − return)² )

    The clipped form is that of OpenAI's baselines; Andrychowicz et al. 2021 (arXiv:2006.05990) found no gain in it, so
    it is off by default. `old_values_BT` are the values the returns were computed with (docs/correctness.md, row 16).
    V = 1, V_old = 0, return 3, ε_v = ½: 6.25, and no gradient, since V has moved far enough for this update.
    """
    assert (old_values_BT is None) == (value_clip is None), "a value clip needs old values, and they a value clip"
    error_BT = (values_BT - returns_BT) ** 2
    if old_values_BT is None or value_clip is None:
        return error_BT
    near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-value_clip, value_clip)
    return torch.maximum(error_BT, (near_BT - returns_BT) ** 2)


def truncated_importance_weight(logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, cap: float) -> Tensor:
    """min(π_trainer/π_sampler, C) at the sampled tokens, without a gradient; [B, T].

    For replies that another engine sampled: the same weights, other kernels or precision, so another law (Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training"; Ionides 2008 for the truncation).
    `logprobs_BT` are the trainer's before its first step. 1 where both agree (docs/correctness.md, row 8). cap = 2 and
    gaps of 0, ln 1.5, ln 5 nats: 1, 1.5, 2.
    """
    assert logprobs_BT.shape == sampler_logprobs_BT.shape, (logprobs_BT.shape, sampler_logprobs_BT.shape)
    if cap < 1:
        raise ValueError(f"cap={cap} must be at least 1, or tokens on which both agree would be weighed down")
    return (logprobs_BT - sampler_logprobs_BT).detach().exp().clamp(max=cap)


def bounded_importance_weight(logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, low: float, high: float) -> Tensor:
    """π_trainer/π_sampler at the sampled tokens where that is within [low, high], and 0 elsewhere, without a gradient;
    [B, T]. A token that the two engines hold so differently likely teaches an error of one of them (IcePop; Ling Team
    2025, arXiv:2510.18855). Within 0.5 and 5, gaps of 0, ln 4, ln 6 and −ln 4 nats: 1, 4, 0, 0.
    """
    assert logprobs_BT.shape == sampler_logprobs_BT.shape, (logprobs_BT.shape, sampler_logprobs_BT.shape)
    ratio_BT = (logprobs_BT - sampler_logprobs_BT).detach().exp()
    return torch.where((ratio_BT >= low) & (ratio_BT <= high), ratio_BT, 0.0)


def sampler_weights(rule: SamplerCorrection, logprobs_BT: Tensor, sampler_logprobs_BT: Tensor) -> Tensor | None:
    """The weight of each token by the rule of the recipe, [B, T]; None where all weigh the same."""
    match rule:
        case "none":
            return None
        case "tis":
            return truncated_importance_weight(logprobs_BT, sampler_logprobs_BT, TIS_CAP)
        case "icepop":
            return bounded_importance_weight(logprobs_BT, sampler_logprobs_BT, *ICEPOP)
        case _:
            assert_never(rule)


def ppo_loss(
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    values_BT: Tensor | None,
    returns_BT: Tensor | None,
    entropy_BT: Tensor,
    mask_BT: Tensor,
    count: float,
    clip_range: float,
    value_coef: float,
    entropy_coef: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    old_values_BT: Tensor | None = None,
    value_clip: float | None = None,
    weights_BT: Tensor | None = None,
) -> PPOTerms:
    """loss = −Ê_t[ L_CLIP − c1·L_VF + c2·S[π] ] (arXiv:1707.06347, equation 9); all tensors [B, T].

    L_VF is the squared error against the return, without ½ and unclipped unless `value_clip` says so; without values
    (an estimator that needs no critic) it is 0. Ê_t divides by `count`, the reply tokens of the whole optimiser step:
    micro-batches add up to the same number however the step was split. `weights_BT` multiplies L_CLIP (truncated
    importance weights). approx_kl is the k3 estimate of D_KL(π_old‖π): mean of (r − 1) − log r, never negative;
    clip_fraction the share of tokens whose ratio left the clip range. What else is minimised (`kl_loss`, the SFT loss)
    the caller adds with its own coefficient.
    """
    tensors = [logprobs_BT, old_logprobs_BT, advantages_BT, entropy_BT, mask_BT]
    tensors += [x for x in (values_BT, returns_BT, old_values_BT, weights_BT) if x is not None]
    assert len({x.shape for x in tensors}) == 1, [x.shape for x in tensors]
    assert (values_BT is None) == (returns_BT is None), "values and returns come together"
    # Masked columns hold zeros on both sides, so their ratio is 1 and their gradient is cut by masked_sum.
    log_ratio_BT = logprobs_BT - old_logprobs_BT
    ratio_BT = log_ratio_BT.exp()
    surrogate_BT = clipped_surrogate(ratio_BT, advantages_BT, clip_range, clip_range_high, dual_clip)
    if weights_BT is not None:
        surrogate_BT = weights_BT * surrogate_BT
    l_clip = masked_sum(surrogate_BT, mask_BT) / count
    if values_BT is None or returns_BT is None:
        l_vf = torch.zeros_like(l_clip)
    else:
        l_vf = masked_sum(value_error(values_BT, returns_BT, old_values_BT, value_clip), mask_BT) / count
    entropy = masked_sum(entropy_BT, mask_BT) / count
    loss = -(l_clip - value_coef * l_vf + entropy_coef * entropy)
    with torch.no_grad():
        approx_kl = masked_sum(ratio_BT - 1 - log_ratio_BT, mask_BT) / count
        high = clip_range if clip_range_high is None else clip_range_high
        outside_BT = (ratio_BT < 1 - clip_range) | (ratio_BT > 1 + high)
        clip_fraction = masked_sum(outside_BT.to(ratio_BT.dtype), mask_BT) / count
    return PPOTerms(loss, l_clip.detach(), l_vf.detach(), entropy.detach(), approx_kl, clip_fraction)


def kl_loss(
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    count: float,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """A loss whose expected gradient is that of D_KL(π‖π_ref) at every state: Ê_t[ sg(r_t)·½(log π − log π_ref)² ].

    The gradient of a token is r_t·log(π/π_ref)·∇log π. Under the old policy, which sampled the token, the expectation
    of that is ∇KL in every epoch; without the ratio (sg: its gradient is stopped) only in the first step
    (docs/correctness.md, row 9; Tang and Munos 2025, arXiv:2506.09477). k1 as a loss has no gradient in expectation;
    k3's is (−.3, 0, .3) where ∇KL is (−.238236, −.082466, .320702).

    Two things to know. The number is E[k2] (0.293856 where the KL is 0.274887): log the KL from `kl_estimate`. And the
    states stay fixed: it is Σ_t KL at the states that were visited, and does not see that a token leads to other
    states. The KL in the reward does, and only that has π* ∝ π_ref·exp(r/β) as its optimum for replies of more than
    one token. `weights_BT` as in `ppo_loss`.
    """
    shapes = {x.shape for x in (logprobs_BT, old_logprobs_BT, ref_logprobs_BT, mask_BT)}
    assert len(shapes) == 1, shapes
    ratio_BT = (logprobs_BT - old_logprobs_BT).detach().exp()
    weight_BT = ratio_BT if weights_BT is None else weights_BT * ratio_BT
    return masked_sum(weight_BT * 0.5 * (logprobs_BT - ref_logprobs_BT) ** 2, mask_BT) / count
