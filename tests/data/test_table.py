"""Demonstrations on disk: what goes in comes out, views share the file, and nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest

from plaudit.data.cache import cache_folder
from plaudit.data.table import DemonstrationTable
from plaudit.records import Demonstration, Message, Prompt

TURNS = (Message("system", "Be brief."), Message("user", "Wie geht's? 你好"), Message("assistant", "Well."))


def row(number: int) -> Demonstration:
    messages = (*(TURNS if number % 2 else ()), Message("user", f"Question {number}\n\x0b?"))
    split = ("train", "validation", "test")[number % 3]
    return Demonstration(Prompt(f"row-{number}", messages, ("a", "b")[number % 2], split), f"Answer {number}.")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def test_rows_come_back_as_they_were(cache: Path) -> None:
    rows = [row(number) for number in range(2500)]
    table = DemonstrationTable.of(iter(rows))
    assert len(table) == 2500
    assert list(table) == rows
    assert table[1023:1026][1] == rows[1024]
    assert table[-1] == rows[-1]
    with pytest.raises(IndexError):
        table[2500]
    assert list(cache.iterdir()) == [], "the file has no name"


def test_views_keep_order_and_know_their_row(cache: Path) -> None:
    rows = [row(number) for number in range(60)]
    table = DemonstrationTable.of(rows)
    held = table.where(table.splits != "train")
    assert list(held) == [item for item in rows if item.prompt.split != "train"]
    both = held.where(held.kinds == "b")
    assert [item.prompt.id for item in both] == [
        i.prompt.id for i in rows if i.prompt.split != "train" and i.prompt.kind == "b"
    ]
    assert set(both.keys) < set(held.keys) < set(table.keys)
    assert not set(table.keys) & set(DemonstrationTable.of(rows).keys), "another file, other rows"


def test_a_label_replaces_the_kind_of_a_view_only(cache: Path) -> None:
    table = DemonstrationTable.of([row(number) for number in range(6)])
    named = table.labelled("mine")
    assert {item.prompt.kind for item in named} == {"mine"}
    assert set(named.kinds) == {"mine"}
    assert {item.prompt.kind for item in table} == {"a", "b"}
    assert named.keys == table.keys


def test_no_rows(cache: Path) -> None:
    table = DemonstrationTable.of([])
    assert (len(table), list(table)) == (0, [])
    assert not (table.splits == "train").any()
    assert isinstance(table.kinds, np.ndarray)


def test_a_row_that_fails_leaves_nothing(cache: Path) -> None:
    def rows() -> object:
        yield row(0)
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        DemonstrationTable.of(rows())  # type: ignore[arg-type]
    assert list(cache.iterdir()) == []
