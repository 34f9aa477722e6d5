"""The objectives, as losses: what an optimiser minimises, = −objective. One formula, one home.

Those of preferences are in preferences.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.algo.masked import masked_sum


@dataclass(frozen=True)
class PPOTerms:
    """The parts of one PPO loss, each already divided by the update's token count, so parts of an update add up."""

    loss: Tensor
    l_clip: Tensor
    l_vf: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def clipped_surrogate(ratio_BT: Tensor, advantages_BT: Tensor, clip_range: float) -> Tensor:
    """L_CLIP per token: min(r_t·Â_t, clip(r_t, 1−ε, 1+ε)·Â_t); Schulman et al. 2017, arXiv:1707.06347, equation 7."""
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    return torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)


def ppo_loss(
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    values_BT: Tensor,
    returns_BT: Tensor,
    entropy_BT: Tensor,
    mask_BT: Tensor,
    count: float,
    clip_range: float,
    value_coef: float,
    entropy_coef: float,
) -> PPOTerms:
    """loss = −Ê_t[ L_CLIP − c1·L_VF + c2·S[π] ] (arXiv:1707.06347, equation 9); all tensors [B, T].

    L_VF is the squared error against the return, without ½ and unclipped. Ê_t divides by `count`, the reply tokens of
    the whole optimiser step: micro-batches add up to the same number however the step was split. approx_kl is the
    k3 estimate of D_KL(π_old‖π): mean of (r − 1) − log r, never negative.
    """
    shapes = {
        x.shape for x in (logprobs_BT, old_logprobs_BT, advantages_BT, values_BT, returns_BT, entropy_BT, mask_BT)
    }
    assert len(shapes) == 1, shapes
    # Masked columns hold zeros on both sides, so their ratio is 1 and their gradient is cut by masked_sum.
    log_ratio_BT = logprobs_BT - old_logprobs_BT
    ratio_BT = log_ratio_BT.exp()
    l_clip = masked_sum(clipped_surrogate(ratio_BT, advantages_BT, clip_range), mask_BT) / count
    l_vf = masked_sum((values_BT - returns_BT) ** 2, mask_BT) / count
    entropy = masked_sum(entropy_BT, mask_BT) / count
    loss = -(l_clip - value_coef * l_vf + entropy_coef * entropy)
    with torch.no_grad():
        approx_kl = masked_sum(ratio_BT - 1 - log_ratio_BT, mask_BT) / count
        clip_fraction = masked_sum(((ratio_BT - 1).abs() > clip_range).to(ratio_BT.dtype), mask_BT) / count
    return PPOTerms(loss, l_clip.detach(), l_vf.detach(), entropy.detach(), approx_kl, clip_fraction)


def language_model_loss(logprobs_BT: Tensor, mask_BT: Tensor, count: float) -> Tensor:
    """Negative log-likelihood per completion token: −Σ log π(a_t) / count, in nats."""
    return -masked_sum(logprobs_BT, mask_BT) / count
