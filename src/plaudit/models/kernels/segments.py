"""How the examples of a packed row lie in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

Segment = int | tuple[int, ...]
"""An example of a packed row by its length, or by those of a prompt and of the replies that share it."""


def parts(segment: Segment) -> tuple[int, ...]:
    """The lengths of what it is made of: a prompt and its replies, or a sequence alone."""
    return (segment,) if isinstance(segment, int) else segment


def positions(segments: Sequence[Segment], device: torch.device) -> Tensor:
    """Position ids [1, T] of a packed row: they start at 0 with every example, and every reply follows its prompt."""
    spans = []
    for segment in segments:
        prompt, *replies = parts(segment)
        spans += [(0, prompt), *((prompt, prompt + reply) for reply in replies)]
    return torch.cat([torch.arange(start, end, device=device) for start, end in spans])[None]
