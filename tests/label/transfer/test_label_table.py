"""Labels as a spreadsheet: what a row says, that a spreadsheet runs none of it, and the filters of every format."""

import csv
import io

import pytest
from label_rows import item, label, ledger, person

from plaudit.errors import UserError
from plaudit.label.transfer.export import Filters, export

ANN = person(1, "ann")
NOON = 1764072000.0  # 25 November 2025, 12:00 UTC


def read(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")  # or a spreadsheet takes UTF-8 for something else
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_a_row_says_who_when_what_and_why() -> None:
    three = item("i", ["a", "b, c", "d"], ["sft", "ppo", None], kind="poem", split="test", number=7)
    said = label(
        three,
        (2, 1, 2),
        created=NOON,
        seconds=61.25,
        active=40.0,
        strength=2,
        reason="two\nlines",
        flags=(("unsafe", "untrue"), (), ()),
        guidelines=3,
        seq=5,
    )
    (row,) = read("".join(export(ledger([three], [ANN], [said]), "table").lines()))
    assert row | {"seq": "5", "time": "2025-11-25 12:00:00", "person": "ann", "seconds": "61.2"} == row
    assert row | {"active_seconds": "40.0", "verdict": "ranked", "strength": "2", "reason": "two\nlines"} == row
    assert row | {"item": "7", "kind": "poem", "split": "test", "guidelines": "3", "late": "no"} == row
    assert [row[f"rank_{n}"] for n in (1, 2, 3)] == ["2", "1", "2"]
    assert [row[f"reply_{n}"] for n in (1, 2, 3)] == ["a", "b, c", "d"]
    assert [row[f"source_{n}"] for n in (1, 2, 3)] == ["sft", "ppo", ""]
    assert row["flags_1"] == "unsafe; untrue" and row["flags_2"] == ""


def test_the_table_has_what_cannot_be_trained_on() -> None:
    two, known, prompt = item("i", "ab"), item("g", "ab", gold=(1, 2)), item("w", [], task="write")
    labels = [
        label(two, None, verdict="cannot_judge"),
        label(two, (1, 2), 2, late=True),
        label(known, (1, 2), purpose="gold"),
        label(prompt, None, text="An ideal reply."),
    ]
    rows = read("".join(export(ledger([two, known, prompt], [ANN, person(2, "bo")], labels), "table").lines()))
    assert [row["verdict"] for row in rows] == ["cannot_judge", "ranked", "ranked", "written"]
    assert [row["late"] for row in rows] == ["no", "yes", "no", "no"]
    assert [row["purpose"] for row in rows] == ["normal", "normal", "gold", "normal"]
    assert rows[3]["written"] == "An ideal reply."


@pytest.mark.parametrize("evil", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")'])
def test_no_text_is_a_formula(evil: str) -> None:
    one = item("i", [evil, "b"])
    book = ledger([one], [ANN], [label(one, (1, 2), reason=evil)])
    (row,) = read("".join(export(book, "table").lines()))
    assert row["reply_1"] == row["reason"] == f"'{evil}"


def test_numbers_stay_numbers_and_nothing_is_an_empty_file() -> None:
    one = item("i", "ab")
    (row,) = read("".join(export(ledger([one], [ANN], [label(one, (1, 2), created=-60.0)]), "table").lines()))
    assert row["rank_1"] == "1" and row["time"] == "1969-12-31 23:59:00"
    assert list(export(ledger([one], [ANN], []), "table").lines()) == []


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"kinds": ("poem",)}, [1]),
        ({"splits": ("test", "validation")}, [2]),
        ({"sources": ("ppo",)}, [2]),
        ({"verdicts": ("all_bad",)}, [3]),
        ({"verdicts": ("ranked", "cannot_judge")}, [1, 2]),
        ({"kinds": ("poem",), "splits": ("test",)}, []),
    ],
)
def test_filters_by_kind_split_source_and_verdict(filters: dict[str, tuple[str, ...]], kept: list[int]) -> None:
    poem, tested, bad = item("i", "ab", kind="poem"), item("j", [], ["sft", "ppo"], split="test"), item("k", "ab")
    labels = [label(poem, (1, 2)), label(tested, (1, 2)), label(bad, (1, 2), verdict="all_bad")]
    book = ledger([poem, tested, bad], [ANN], labels)
    numbers = {"i": 1, "j": 2, "k": 3}
    assert [numbers[row["id"]] for row in export(book, "rankings", Filters(**filters)).rows] == kept
    left = export(book, "table", Filters(**filters)).left_out
    assert sum(left.values()) == 3 - len(kept)


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(UserError, match="unknown; it is one of ranked, all_bad, cannot_judge, written"):
        Filters(verdicts=("good",))


def test_demonstrations_say_who_wrote_them() -> None:
    prompt = item("w", [], task="write")
    unnamed = person(2, "(not named)")
    labels = [label(prompt, None, 1, text="By ann."), label(prompt, None, 2, text="By nobody known.")]
    rows = export(ledger([prompt], [ANN, unnamed], labels), "demonstrations").rows
    written = [(row["completion"], row.get("annotator")) for row in rows]
    assert written == [("By ann.", "ann"), ("By nobody known.", None)]
