"""Measures of replies, by hand."""

import pytest

from plaudit.guard.monitors import distinct_bigrams, repeated_trigrams


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0),
        ([1], 0),
        ([1, 2], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4, 5], 0),
        ([1, 2, 3, 1, 2, 3], 1 / 4),  # 123 231 312 123
        ([7] * 10, 7 / 8),
        ([1, 2] * 5, 6 / 8),
        ([1, 2, 1, 2, 1], 1 / 3),  # 121 212 121
    ],
)
def test_the_share_of_trigrams_that_occurred_before(ids: list[int], share: float) -> None:
    assert repeated_trigrams(ids) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        ([], 0),
        ([[1]], 0),
        ([[1, 2]], 1),
        ([[1, 2, 1, 2]], 2 / 3),  # 12 21 12
        ([[1, 2, 3], [1, 2, 3]], 1 / 2),
        ([[1, 2], [3, 4], [5]], 1),
        ([[9] * 11], 1 / 10),
    ],
)
def test_the_share_of_distinct_bigrams_over_all_replies(replies: list[list[int]], share: float) -> None:
    assert distinct_bigrams(replies) == pytest.approx(share, abs=1e-12)


def test_a_pair_across_two_replies_is_no_bigram() -> None:
    """12 and 34, but not 23: joined they would be three."""
    assert distinct_bigrams([[1, 2], [3, 4], [2, 3], [2, 3]]) == pytest.approx(3 / 4, abs=1e-12)


def test_the_order_of_the_tokens_counts() -> None:
    assert repeated_trigrams([1, 2, 3, 3, 2, 1]) == 0
    assert distinct_bigrams([[1, 2], [2, 1]]) == 1
