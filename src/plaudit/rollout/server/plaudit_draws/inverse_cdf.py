"""Sampling by inverse CDF: one uniform number picks the token, whichever engine computed the logits."""

import torch
from torch import Tensor

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first: the cumulative sum runs over blocks, then in one."""


def sample(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling in float32: token ids [B] and their log-probabilities [B] under softmax(logits/temperature).

    The token is the first whose cumulative probability exceeds u times the total. The sums are those of the row itself,
    and a token is looked for up to the last one that has probability: rounding can neither fall off the vocabulary's
    end nor onto a token that cannot be sampled.
    """
    rows, size = logits_BV.shape
    z_BV = logits_BV.new_full((rows, size + -size % BLOCK), -torch.inf, dtype=torch.float32)
    z_BV[:, :size] = logits_BV
    p_BV = torch.softmax(z_BV if temperature == 1.0 else z_BV.div_(temperature), dim=1)
    blocks_BKV = p_BV.unflatten(1, (-1, BLOCK))
    sums_BK = blocks_BKV.sum(dim=2).cumsum(dim=1)
    target_B1 = uniforms_B.float()[:, None] * sums_BK[:, -1:]
    block_B1 = _first_above(sums_BK, target_B1)
    before_B1 = torch.where(block_B1 > 0, sums_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BV = blocks_BKV[torch.arange(rows, device=block_B1.device), block_B1[:, 0]].cumsum(dim=1)
    tokens_B1 = block_B1 * BLOCK + _first_above(inside_BV, target_B1 - before_B1)
    return tokens_B1.squeeze(1), p_BV.gather(1, tokens_B1).log().squeeze(1)


def _first_above(sums_BN: Tensor, target_B1: Tensor) -> Tensor:
    """The first place [B, 1] where a cumulative sum exceeds its target, at most the last place that adds to it."""
    last_B1 = torch.searchsorted(sums_BN, sums_BN[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(sums_BN, target_B1.contiguous(), right=True), last_B1)
