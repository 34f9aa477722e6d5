"""Sums and means over the elements that count.

A mask is True where something counts and comes from lengths, never from comparing ids with the pad id. The
denominator is always passed in: it is the count of the whole update, so a sum over micro-batches or ranks is exact
(docs/correctness.md, rows 10, 14 and 17).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NO_SPREAD = 1e-12
"""A variance below this share of the mean square is rounding (a std of a millionth of the size), and counts as 0."""


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of some numbers, in float64: what their mean and variance need.

    The three add up over updates: as the state of a running scale they are saved with the checkpoint.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """0 where nothing was counted."""
        return self.total / max(self.count, 1.0)

    @property
    def variance(self) -> float:
        """Divided by the count, so that one number has variance 0; what is only rounding is 0 (`NO_SPREAD`)."""
        mean_square = self.squares / max(self.count, 1.0)
        variance = mean_square - self.mean**2
        return 0.0 if variance <= NO_SPREAD * mean_square else variance

    @property
    def std(self) -> float:
        return self.variance**0.5


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask` is True. `x` and `mask` have one shape; what is masked may even be NaN."""
    assert x.shape == mask.shape, (x.shape, mask.shape)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """masked_sum / the number of True elements of this mask (at least 1)."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def moments_of(x: Tensor, mask: Tensor) -> Moments:
    """Count, sum and sum of squares of the masked elements.

    Computed in float64 on the CPU (not every accelerator has float64), so that the difference of two large sums keeps
    its digits.
    """
    assert x.shape == mask.shape, (x.shape, mask.shape)
    counted = x.detach()[mask].cpu().double()
    return Moments(float(counted.numel()), counted.sum().item(), (counted**2).sum().item())


def whiten(x: Tensor, mask: Tensor, *, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """(x − mean) / max(std, floor) over the masked elements of a whole update; masked-out elements become 0.

    The variance is the biased one (divided by N), so that a batch of equal numbers or of one number is finite: it comes
    out as 0, and its std as 1. Returns the whitened tensor and the std used.
    """
    moments = moments_of(x, mask)
    std = max(1.0 if moments.std == 0 else moments.std, floor)
    # Equal numbers may differ from their mean by rounding: that is not a spread to keep.
    whitened = torch.zeros_like(x) if moments.std == 0 else (x - moments.mean) / std
    return torch.where(mask, whitened, torch.zeros_like(whitened)), torch.tensor(std, dtype=x.dtype, device=x.device)
