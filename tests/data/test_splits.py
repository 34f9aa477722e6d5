"""Splits where the rows name none: one a prompt, in every file and for good."""

from collections import Counter
from pathlib import Path

from conftest import write_lines
from plaudit.data.splits import names_split, split_of
from plaudit.records import Message


def asked(text: str, system: str | None = None) -> tuple[Message, ...]:
    opened = (Message("system", system),) if system else ()
    return (*opened, Message("user", text))


def test_the_shares_are_those_asked_for() -> None:
    counts = Counter(split_of(asked(f"Question {i}?"), 0.1, 0.2) for i in range(5000))
    # Three standard deviations of a binomial of 5,000: 64 and 85 rows.
    assert abs(counts["validation"] - 500) < 64 and abs(counts["test"] - 1000) < 85


def test_a_copy_stays_on_the_same_side_and_growing_a_share_moves_only_into_it() -> None:
    for i in range(200):
        said = split_of(asked(f"How do I prune rose {i}?"), 0.2, 0.2)
        assert said == split_of(asked(f"how do I prune  rose {i}", "You are kind."), 0.2, 0.2)
        if split_of(asked(f"How do I prune rose {i}?"), 0.1, 0.1) == "test":
            assert said == "test"


def test_whether_a_file_names_splits(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("prompt,split\nHi,\nHo,test\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("prompt,split\nHi,\n", encoding="utf-8")
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": "Hi"}, {"prompt": "Ho", "Split": "train"}])
    assert names_split(tmp_path / "cells.csv") and not names_split(tmp_path / "empty.csv")
    assert names_split(rows) and not names_split(tmp_path / "absent.jsonl")
