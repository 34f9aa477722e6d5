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


def cost_of(prompt: Sequence[int], replies: Sequence[Sequence[int]], *, shared: bool) -> int:
    """Tokens of a prompt with its replies in a pass: the prompt once where they share it, else padded beside it."""
    if shared:
        return len(prompt) + sum(map(len, replies))
    return len(replies) * (len(prompt) + max(map(len, replies)))


def by_length(lengths: Sequence[int], size: int, most: int | None = None) -> list[list[int]]:
    """Indices in groups of `size`, or as many as have at most `most` tokens with their padding; neighbours in length
    together: little padding where rows cannot be packed."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        count = len(groups[-1])
        if count == size or (count and most is not None and (count + 1) * lengths[i] > most):
            groups.append([])
        groups[-1].append(i)
    return [group for group in groups if group]


def balanced(lengths: Sequence[int], size: int, most: int | None = None) -> list[list[int]]:
    """Indices in the fewest groups of at most `size`, and of at most `most` tokens, each with about as many tokens. An
    example that is longer than that goes alone.

    The longest example goes first, always to the group with the fewest tokens that still has room (Graham 1969), so
    a packed row is at most `size` examples long and no micro-batch needs much more memory than the others.
    """
    least = -(-len(lengths) // size)
    if most is not None:
        least = max(least, -(-sum(min(length, most) for length in lengths) // most))
    for count in range(min(least, len(lengths)), len(lengths) + 1):
        groups = _spread(lengths, size, count)
        if most is None or all(len(group) == 1 or sum(lengths[i] for i in group) <= most for group in groups):
            break
    return groups


def _spread(lengths: Sequence[int], size: int, count: int) -> list[list[int]]:
    """Indices in `count` groups of at most `size`."""
    groups: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [g for g in range(len(groups)) if len(groups[g]) < size]
        lightest = min(room, key=lambda g: (tokens[g], g))
        groups[lightest].append(i)
        tokens[lightest] += lengths[i]
    return groups
