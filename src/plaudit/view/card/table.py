"""A reward model's report card as a person reads it in a terminal: one table, then the alarms with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from plaudit.run.display import console
from plaudit.view.page import words
from plaudit.view.text import plain_interval, plain_percent

PARTS = {"by_kind": "kind", "by_source": "source", "by_length_gap": "length", "by_judge_margin": "judge's margin"}
"""The cards' divisions of the pairs, and what the rows of each are called."""
_ROWS = 8


def print_card(card: Mapping[str, Any], to: Console = console) -> None:
    """The card that `report_card` gives."""
    counts = card["counts"]
    title = f"Report card: {counts['strict_pairs']:,} strict pairs of {counts['prompts']:,} prompts"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "accuracy %", "95 % interval", "longer won %", "pairs"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for section in _sections(card):
        for row in section:
            table.add_row(*row)
        table.add_section()
    to.print(table)
    to.print(words("card/card.txt.j2", "numbers", card), soft_wrap=True)
    print_alarms(card, to)


def print_alarms(card: Mapping[str, Any], to: Console = console) -> None:
    """Every alarm and warning, with what to do about it; a line that there is none."""
    to.print(words("card/card.txt.j2", "alarms", card), soft_wrap=True)


def _sections(card: Mapping[str, Any]) -> Iterator[list[tuple[str, ...]]]:
    pairs, length, position, ceiling = card["counts"]["strict_pairs"], card["length"], card["position"], card["ceiling"]
    beside = {"longer_won": length["longer_won"], "pairs": pairs}
    rows = [_row("reward model", card, **beside), _row(f"length alone: {length['rule']}", length, **beside)]
    if position["listed"] == "either way":
        rows.append(_row("place alone: listed first wins", position, **beside))
    if ceiling["compared"]:
        people = {"accuracy": ceiling["agreement"], "accuracy_ci": ceiling["agreement_ci"]}
        rows.append(_row("annotators with each other", people, pairs=ceiling["compared"]))
        if ceiling.get("pairs"):
            rows.append(_row("reward model there", ceiling, pairs=ceiling["pairs"]))
    yield rows
    for part, what in PARTS.items():
        found = part_rows(card, part)
        if len(found) > 1:
            yield [
                _row(f"{what}: {row['name']}", row, longer_won=row["longer_won"], pairs=row["pairs"])
                for row in found[:_ROWS]
            ]


def part_rows(card: Mapping[str, Any], part: str) -> Sequence[Mapping[str, Any]]:
    return list(card[part]["rows"] if part == "by_judge_margin" else card[part])


def _row(name: str, row: Mapping[str, Any], *, pairs: int, longer_won: float | None = None) -> tuple[str, ...]:
    ends = plain_interval(row["accuracy_ci"], "") if row["accuracy_ci"] else ""
    longer = "" if longer_won is None else plain_percent(longer_won, "")
    return name, plain_percent(row["accuracy"], ""), ends, longer, f"{pairs:,}"
