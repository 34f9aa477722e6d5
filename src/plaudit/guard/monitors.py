"""Measures of replies that tell a better policy from one that games its reward."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def repeated_trigrams(ids: Sequence[int]) -> float:
    """Share of a reply's token 3-grams that occurred before in it: 0 for no repetition, near 1 for a loop."""
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def distinct_bigrams(replies: Sequence[Sequence[int]]) -> float:
    """Distinct token 2-grams over all replies, divided by all 2-grams (distinct-2, Li et al. 2016)."""
    counts = Counter(pair for ids in replies for pair in pairwise(ids))
    return len(counts) / max(1, counts.total())
