"""docs/label-quality.md names the alarms and limits that the code has, and the formats and options that it takes."""

import re
from pathlib import Path
from typing import Any

import pytest

from plaudit.label.quality import alarms
from plaudit.label.quality.dashboard import dashboard
from plaudit.label.transfer.export import AGGREGATES, FORMATS
from test_docs import DOCS, quoted, tables

PAGE = (DOCS / "label-quality.md").read_text(encoding="utf-8")
ROWS = dict(tables(PAGE))


def test_every_alarm_of_the_code_is_on_the_page_and_no_other() -> None:
    source = Path(alarms.__file__).read_text(encoding="utf-8")
    assert len(ROWS["The alarms"][1:]) == source.count('yield "')
    for name, _ in ROWS["The alarms"][1:]:
        assert name in source, name


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("too fast", f"{alarms.TOO_FAST:.0%}"),
        ("always first position", f"{alarms.ALWAYS_FIRST:.0%}"),
        ("position bias", f"{alarms.POSITION_GAP:g}"),
        ("disagrees with gold", f"{alarms.GOLD:.0%}"),
        ("disagrees with themselves", f"{alarms.SELF:.0%}"),
        ("disagrees with the others", f"{alarms.POSITION_GAP:g}"),
        ("length bias", f"{alarms.LENGTH_GAP:g}"),
        ("cannot judge", f"{alarms.CANNOT_JUDGE:.0%}"),
        ("are ties", f"{alarms.TOO_MANY_TIES:.0%}"),
        ("people hardly agree", f"{alarms.LOW_ALPHA:g}"),
        ("no item was labelled by two people", f"{10 * alarms.LEAST}"),
    ],
)
def test_the_limits_of_the_alarms_are_those_of_the_page(name: str, limit: str) -> None:
    told = dict(ROWS["The alarms"][1:])[name].replace(" %", "%")
    assert re.search(rf"(?<![\d.]){re.escape(limit)}(?!\d)", told), (told, limit)


def test_formats_and_aggregates() -> None:
    text = PAGE[PAGE.index("## Labels out") :]
    found = [quoted(row[0])[0] for rows in _tables_of(text, "format") for row in rows]
    assert tuple(found) == FORMATS
    assert all(f"--aggregate {how}" in text for how in AGGREGATES)


def _tables_of(text: str, head: str) -> list[Any]:
    return [rows[1:] for _, rows in tables(text) if rows[0][0] == head]


def test_the_dict_of_the_dashboard_is_documented_where_the_page_says() -> None:
    assert "src/plaudit/label/quality/dashboard.py" in PAGE
    assert dashboard.__module__ == "plaudit.label.quality.dashboard"
