"""Sums and means over the elements that count.

A mask is True where something counts and comes from lengths, never from comparing ids with the pad id. The
denominator is always passed in: it is the count of the whole update, so a sum over micro-batches or ranks is exact
(correctness.md rows 10, 14 and 17).
"""

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask` is True. `x` and `mask` have one shape; what is masked may even be NaN."""
    assert x.shape == mask.shape, (x.shape, mask.shape)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).sum()


def masked_mean(x: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """masked_sum / count; without `count` the number of True elements of this mask (at least 1)."""
    return masked_sum(x, mask) / (mask.sum().clamp(min=1) if count is None else count)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """(x − mean) / max(std, floor) over the masked elements of the whole update; masked-out elements become 0.

    The variance is the biased one (divided by N), so that a batch of equal numbers or of one number is finite: it
    comes out as 0, and its std as 1. `shift_mean=False` divides only. Returns the whitened tensor and the std used.
    """
    count = mask.sum().clamp(min=1)
    mean = masked_sum(x, mask) / count
    centred = x - mean
    # Equal numbers differ from their rounded mean by a few units of rounding: that is not a spread to blow up.
    rounding = 16 * torch.finfo(x.dtype).eps * torch.where(mask, x, torch.zeros_like(x)).abs().max()
    centred = torch.where(centred.abs() <= rounding, torch.zeros_like(x), centred)
    spread = (masked_sum(centred**2, mask) / count).sqrt()
    std = torch.where(spread > 0, spread, torch.ones_like(spread)).clamp(min=floor)
    whitened = (centred if shift_mean else x) / std
    return torch.where(mask, whitened, torch.zeros_like(whitened)), std
