"""From what was shown to what is kept: by hand, and there and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.hashes import sha256_text
from plaudit.label.db.schema import TASKS
from plaudit.label.kinds import KINDS, body_of
from plaudit.label.kinds.shared import BadAnswer, canonical

FLAGS = ("unsafe", "untrue", "too long")


def test_every_task_of_the_schema_is_a_kind() -> None:
    assert set(KINDS) == set(TASKS) and all(kind.name == task for task, kind in KINDS.items())


def test_what_the_page_of_each_kind_is_given() -> None:
    replies = [{"text": "a"}, {"text": "b"}]
    assert KINDS["rank"].shown([1, 0], replies) == KINDS["compare"].shown([1, 0], replies) == (replies[::-1], None)
    assert KINDS["write"].shown([0], replies[:1]) == ([], "a")
    assert KINDS["write"].shown([], []) == ([], "")


def test_ranks_and_flags_go_to_the_reply_that_was_shown_there() -> None:
    """Shown: reply 2, reply 0, reply 1. First place to the one shown first: that is reply 2."""
    body = body_of("rank", [2, 0, 1], FLAGS, {"ranks": [1, 3, 2], "flags": [["untrue", "unsafe"], [], ["too long"]]})
    assert body["ranks"] == [3, 2, 1]
    assert body["flags"] == [[], ["too long"], ["unsafe", "untrue"]]


def test_ranks_are_made_dense() -> None:
    assert body_of("rank", [0, 1, 2, 3], (), {"ranks": [4, 2, 2, 4]})["ranks"] == [2, 1, 1, 2]


def test_a_body_has_one_text() -> None:
    body = body_of("compare", [1, 0], FLAGS, {"reason": "é\n", "ranks": [1, 2], "strength": 3})
    assert canonical(body) == ('{"flags":[[],[]],"ranks":[2,1],"reason":"\\u00e9\\n","strength":3,"verdict":null}')
    # printf '{"a":1}' | sha256sum
    assert sha256_text('{"a":1}') == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_a_written_reply() -> None:
    assert body_of("write", [], (), {"text": " x ", "ranks": None}) == {"text": " x ", "reason": ""}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({}, "ranks"),
        ({"ranks": None}, "ranks"),
        ({"ranks": [1, 2]}, "ranks"),
        ({"ranks": [1, 2, 4]}, "ranks"),
        ({"ranks": [0, 1, 2]}, "ranks"),
        ({"ranks": [1, 2, True]}, "ranks"),
        ({"ranks": [1, 2, 2.0]}, "ranks"),
        ({"ranks": "123"}, "ranks"),
        ({"ranks": [1, 2, 3], "verdict": "cannot_judge"}, "ranks"),
        ({"ranks": [1, 2, 3], "verdict": "fine"}, "verdict"),
        ({"ranks": [1, 2, 3], "verdict": ["all_bad"]}, "verdict"),
        ({"ranks": [1, 2, 3], "strength": 4}, "strength"),
        ({"ranks": [1, 2, 3], "strength": True}, "strength"),
        ({"ranks": [1, 2, 3], "strength": []}, "strength"),
        ({"ranks": [1, 2, 3], "reason": 5}, "reason"),
        ({"ranks": [1, 2, 3], "reason": "x" * 5001}, "reason"),
        ({"ranks": [1, 2, 3], "reason": "a\0b"}, "reason"),
        ({"ranks": [1, 2, 3], "reason": "\ud800"}, "reason"),
        ({"ranks": [1, 2, 3], "flags": [[], []]}, "flags"),
        ({"ranks": [1, 2, 3], "flags": [[], [], ["rude"]]}, "flags"),
        ({"ranks": [1, 2, 3], "flags": [[], [], [["unsafe"]]]}, "flags"),
        ({"ranks": [1, 2, 3], "flags": {"0": []}}, "flags"),
        ({"ranks": [1, 2, 3], "text": "x"}, "text"),
        ({"ranks": [1, 2, 3], "rank": 1}, "'rank'"),
    ],
)
def test_what_is_wrong_is_named(sent: dict[str, Any], field: str) -> None:
    with pytest.raises(BadAnswer) as told:
        body_of("rank", [0, 1, 2], FLAGS, sent)
    assert told.value.field == field and told.value.fix


@pytest.mark.parametrize("sent", [{}, {"text": "  "}, {"text": "x", "ranks": [1]}, {"text": "x\0"}, {"text": 3}])
def test_a_written_reply_that_is_none(sent: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        body_of("write", [], (), sent)


@pytest.mark.parametrize("verdict", ["all_bad", "cannot_judge"])
def test_a_verdict_needs_no_ranks(verdict: str) -> None:
    body = body_of("rank", [1, 0], FLAGS, {"verdict": verdict})
    assert (body["ranks"], body["verdict"]) == (None, verdict)


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.tuples(st.permutations(range(k)), st.lists(st.integers(1, k), min_size=k, max_size=k))
    )
)
def test_there_and_back(case: tuple[list[int], list[int]]) -> None:
    """What was sent, with dense ranks, comes back; and the best that was shown is the best that is kept."""
    order, ranks = case
    body = body_of("rank", order, FLAGS, {"ranks": ranks})
    back = KINDS["rank"].sent(order, body)
    values = sorted(set(ranks))
    assert back["ranks"] == [values.index(rank) + 1 for rank in ranks]
    assert {order[p] for p, rank in enumerate(ranks) if rank == min(ranks)} == {
        reply for reply, rank in enumerate(body["ranks"]) if rank == 1
    }
