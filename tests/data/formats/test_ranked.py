"""Several answers in columns of their own and their ranks beside them."""

from pathlib import Path

import pytest

from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Ranking

_GERMAN = {"answer": "Antwort", "rank": "Rang"}
Ranked = list[tuple[str, int]]


def read(path: Path, text: str) -> list[Ranking]:
    (path / "a.csv").write_text(text, encoding="utf-8")
    return [record for _, record in Reader(path / "a.csv") if isinstance(record, Ranking)]


def ranked(path: Path, text: str) -> list[Ranked]:
    return [[(r.text, rank) for r, rank in zip(one.replies, one.ranks, strict=True)] for one in read(path, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt,answer_a,answer_b,answer_c,rank_a,rank_b,rank_c\nQ?,x,y,z,2,1,1.0\n", [[2, 1, 1]]),
        ("Prompt;Answer 1;Rank 1;Answer 2;Rank 2;Answer 3;Rank 3\nQ?;x;3;y;1;z;2\n", [[3, 1, 2]]),
        ("question,response_a,response_a_rank,response_b,response_b_rank\nQ?,x,2,y,1\n", [[2, 1]]),
        ("prompt,answer_a,answer_b,answer_c,ranking\nQ?,x,y,z,B > A = C\nQ?,x,y,z,C>B>A\n", [[2, 1, 2], [3, 2, 1]]),
        (
            "prompt,answer_a,answer_b,winner\nQ?,x,y,A>B\nQ?,x,y,[[B>>A]]\nQ?,x,y,A=B\nQ?,x,y,tie\nQ?,x,y,b\n",
            [[1, 2], [2, 1], [1, 1], [1, 1], [2, 1]],
        ),
        ("prompt,response_1,response_2,ranking\nQ?,x,y,Response 2 > Response 1\n", [[2, 1]]),
    ],
)
def test_ranks_beside_answers(text: str, expected: list[list[int]], tmp_path: Path) -> None:
    rows = read(tmp_path, text)
    assert [list(row.ranks) for row in rows] == expected
    for row in rows:
        assert [reply.text for reply in row.replies] == ["x", "y", "z"][: len(row.ranks)] and row.prompt.text == "Q?"


def test_fewer_answers_than_columns(tmp_path: Path) -> None:
    by_rank = "prompt,answer_a,answer_b,answer_c,rank_a,rank_b,rank_c\nQ?,x,y,,2,1,\n"
    by_order = "prompt,answer_a,answer_b,answer_c,ranking\nQ?,x,y,,B > A\n"
    assert ranked(tmp_path, by_rank) == ranked(tmp_path, by_order) == [[("x", 2), ("y", 1)]]


def test_the_user_names_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Frage,Antwort A,Antwort B,Antwort C,Rang A,Rang B,Rang C\nQ?,x,y,z,2,3,1\n")
    given = {f"{ours}_{side}": f"{theirs} {side.upper()}" for ours, theirs in _GERMAN.items() for side in "abc"}
    ((_, row),) = Reader(tmp_path / "a.csv", columns={"prompt": "Frage", **given})
    assert isinstance(row, Ranking) and row.ranks == (2, 3, 1)


def test_who_wrote_the_answers_is_kept(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "prompt,answer_a,answer_b,rank_a,rank_b,model_a,model_b\nQ?,x,y,2,1,sft,ppo\n")
    assert row.sources == ("sft", "ppo")


def test_a_verdict_that_is_the_answer_itself_is_no_order(tmp_path: Path) -> None:
    rows = "prompt,answer_a,answer_b,winner\nQ?,3>2,2>3,2>3\nQ?,x=1,x=2,x=1\n"
    assert [row.ranks for row in read(tmp_path, rows)] == [(2, 1), (1, 2)]
    with pytest.raises(UserError, match="look like two answers"):
        read(tmp_path, "prompt,answer_a,answer_b,answer_c,best\nQ?,3 > 2,2 > 3,1 > 2,3 > 2\n")


def test_a_verdict_beside_ranks_counts(tmp_path: Path) -> None:
    """As where the ranks are those of another judge."""
    assert ranked(tmp_path, "prompt,answer_a,answer_b,rank_a,rank_b,winner\nQ?,x,y,2,1,a\n") == [[("x", 1), ("y", 2)]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("answer_c,rank_a,rank_b,rank_c\nQ?,x,y,z,2,1,\n", "'answer_c' needs a text and a rank.*found 'z' and ''"),
        ("answer_c,rank_a,rank_b,rank_c\nQ?,x,y,,2,1,3\n", "'answer_c' needs a text and a rank.*found '' and '3'"),
        ("answer_c,rank_a,rank_b,rank_c\nQ?,x,y,z,2,1,0\n", "a whole number from 1 up, found 'z' and '0'"),
        ("answer_c,rank_a,rank_b,rank_c\nQ?,x,y,#REF!,2,1,3\n", "'#REF!' stands for no text"),
        ("answer_c,rank_a,rank_b,rank_c\nQ?,,,,,,\n", "at least two replies"),
        ("answer_c,ranking\nQ?,x,y,z,B > A\n", "'ranking' must name each answer once, as in a > b > c"),
        ("answer_c,ranking\nQ?,x,y,z,B > A > D\n", "must name each answer once"),
        ("answer_c,ranking\nQ?,x,y,z,B > A > C > B\n", "must name each answer once"),
        ("answer_c,ranking\nQ?,x x,y y,z z,B < A < C\n", "look like two answers"),
        ("position_a,position_b\nQ?,x,y,2,1\n", "no one column says which"),  # where it stood on a page, perhaps
    ],
)
def test_what_does_not_rank_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a.csv:2: .*{says}"):
        read(tmp_path, "prompt,answer_a,answer_b," + text)
