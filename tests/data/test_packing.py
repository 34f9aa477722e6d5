"""Who shares a row: nothing is lost, groups hold to their size, and tokens are spread."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.packing import Example, balanced, by_length


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


def test_the_first_token_is_never_learnt() -> None:
    with pytest.raises(AssertionError):
        Example((1, 2), (True, True), "instruction")
    assert Example((1, 2, 3), (False, True, True), "instruction").targets == 2
