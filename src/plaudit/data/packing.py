"""Which examples share a row: the pure layout of packed and of padded micro-batches, no tensors.

A packed row holds its examples end to end, without padding. That they do not see each other is the model's work
(`kernels.attention`); here is only who goes where. An example is never cut and never moved to another optimiser step,
so packing changes speed and memory and not the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation; `learnt[i]` is true where token i is a target of the loss (never the first)."""

    ids: Sequence[int]
    learnt: Sequence[bool] | bytes
    kind: str

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.learnt) and not self.learnt[0]

    @property
    def targets(self) -> int:
        """How many tokens count in the loss."""
        return sum(self.learnt)


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of `size`, neighbours in length together: little padding where rows cannot be packed."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def balanced(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in the fewest groups of at most `size`, each with about as many tokens.

    The longest example goes first, always to the group with the fewest tokens that still has room (Graham 1969), so
    a packed row is at most `size` examples long and no micro-batch needs much more memory than the others.
    """
    groups: list[list[int]] = [[] for _ in range(-(-len(lengths) // size))]
    tokens = [0] * len(groups)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [g for g in range(len(groups)) if len(groups[g]) < size]
        lightest = min(room, key=lambda g: (tokens[g], g))
        groups[lightest].append(i)
        tokens[lightest] += lengths[i]
    return groups
