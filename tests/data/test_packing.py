"""Who shares a row: nothing is lost, groups hold to their size, and tokens are spread."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.packing import Example, balanced, by_length, cost_of


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 9))
def test_every_example_is_in_one_group(lengths: list[int], size: int) -> None:
    for layout in (balanced, by_length):
        groups = layout(lengths, size)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        assert all(0 < len(group) <= size for group in groups)
        assert len(groups) == -(-len(lengths) // size)


def test_tokens_are_spread() -> None:
    """Longest first, each to the lightest group with room: {9, 2, 1} and {8, 3, 1}, by hand."""
    lengths = [1, 9, 2, 8, 3, 1]
    assert [sorted(lengths[i] for i in group) for group in balanced(lengths, 3)] == [[1, 2, 9], [1, 3, 8]]


def test_neighbours_in_length_are_padded_together() -> None:
    lengths = [5, 1, 4, 2]
    assert [[lengths[i] for i in group] for group in by_length(lengths, 2)] == [[1, 2], [4, 5]]


def test_a_budget_of_tokens_by_hand() -> None:
    """28 tokens in passes of 12: two are not enough, since {9, 5} would be 14, and what is longer goes alone. Padded,
    three rows of 4 are 12 tokens and a fourth is one too many."""
    lengths = [9, 5, 4, 4, 3, 3]
    assert [sorted(lengths[i] for i in group) for group in balanced(lengths, 6, 12)] == [[9], [3, 3, 5], [4, 4]]
    assert balanced([20, 3, 3], 3, 10) == [[0], [1, 2]]
    assert [[lengths[i] for i in group] for group in by_length(lengths, 6, 12)] == [[3, 3, 4], [4, 5], [9]]
    assert by_length([20, 3, 3], 3, 10) == [[1, 2], [0]]
    assert balanced(lengths, 6, 28) == [[0, 1, 2, 3, 4, 5]]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 900))
def test_a_budget_is_kept_and_loses_nobody(lengths: list[int], size: int, most: int) -> None:
    for layout, tokens in (
        (balanced, lambda group: sum(lengths[i] for i in group)),
        (by_length, lambda group: len(group) * max(lengths[i] for i in group)),
    ):
        groups = layout(lengths, size, most)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        assert all(len(group) == 1 or (len(group) <= size and tokens(group) <= most) for group in groups)


def test_what_a_ranking_costs_by_hand() -> None:
    """A prompt of 4 with replies of 3 and 5: once 4 + 8, or two rows as long as the longer one, 9 each."""
    assert cost_of([0] * 4, [[0] * 3, [0] * 5], shared=True) == 12
    assert cost_of([0] * 4, [[0] * 3, [0] * 5], shared=False) == 18


def test_the_first_token_is_never_learnt() -> None:
    with pytest.raises(AssertionError):
        Example((1, 2), (True, True), "instruction")
    assert Example((1, 2, 3), (False, True, True), "instruction").targets == 2
