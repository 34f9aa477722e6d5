"""Shares, exhausted sources and the order of an epoch."""

import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit import rng
from plaudit.data.mixture import Share, counts, epoch_order
from plaudit.errors import UserError

THREE = [Share("a", 500, weight=50), Share("b", 120, weight=30), Share("c", 300, weight=20)]


def test_the_first_exhausted_source_ends_the_epoch() -> None:
    """120 rows are 30 %, so an epoch has 400 examples: 200, 120 and 80."""
    assert counts(THREE) == [200, 120, 80]


def test_repeat_gives_a_source_more_turns() -> None:
    twice = [THREE[0], Share("b", 120, weight=30, repeat=2), THREE[2]]
    assert counts(twice) == [400, 240, 160]
    rows = Counter(row for source, row in epoch_order(twice, 0, 0) if source == 1)
    assert set(rows.values()) == {2} and len(rows) == 120


def test_rows() -> None:
    assert counts([Share("a", 10, rows=4), Share("b", 7), Share("c", 3, rows=5, repeat=2)]) == [4, 7, 5]


def test_one_whole_source_is_the_plain_shuffle() -> None:
    assert epoch_order([Share("a", 24)], 3, 2) == [(0, row) for row in rng.permutation(3, "sft", 2, 24)]


def test_epochs_take_other_rows_and_other_orders() -> None:
    first, second = epoch_order(THREE, 0, 0), epoch_order(THREE, 0, 1)
    assert first == epoch_order(THREE, 0, 0) != epoch_order(THREE, 1, 0)
    assert {row for source, row in first if source == 0} != {row for source, row in second if source == 0}
    assert len(set(first)) == len(first), "without repeat no row comes twice in an epoch"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 5), st.integers(1, 3)), min_size=1, max_size=4))
def test_shares_hold_to_one_example(sources: list[tuple[int, float, int]]) -> None:
    shares = [Share(str(i), size, weight=weight, repeat=repeat) for i, (size, weight, repeat) in enumerate(sources)]
    with contextlib.suppress(UserError):  # a weight may be too small for the epoch's length
        check_shares(sources, shares, counts(shares))


def check_shares(sources: list[tuple[int, float, int]], shares: list[Share], found: list[int]) -> None:
    total = sum(weight for _, weight, _ in sources)
    for (size, weight, repeat), count in zip(sources, found, strict=True):
        assert 0 < count <= size * repeat
        assert abs(count - sum(found) * weight / total) <= 1 + 1e-6
    assert Counter(source for source, _ in epoch_order(shares, 0, 0)) == dict(enumerate(found))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([Share("a", 0, weight=1)], "a: no training demonstration"),
        ([Share("a", 3, rows=7, repeat=2)], "rows=7 is more than its 3 demonstrations 2 times; set repeat to 3"),
        ([Share("a", 3, weight=1), Share("b", 3, rows=2)], "give all of them a weight, or none"),
        ([Share("a", 3, weight=1), Share("b", 3, weight=1e-6)], "b: its weight is too small"),
    ],
)
def test_what_cannot_be_mixed(shares: list[Share], message: str) -> None:
    with pytest.raises(UserError, match=message):
        counts(shares)
