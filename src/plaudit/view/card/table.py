"""A reward model's report card as a person reads it in a terminal: one table, then the alarms with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from plaudit.run.display import console
from plaudit.view.text import temperature

PARTS = {
    "by_kind": "kind",
    "by_source": "source",
    "by_length_gap": "length",
    "by_judge_margin": "judge's margin",
}
"""The cards' divisions of the pairs, and what the rows of each are called."""
_ROWS = 8


def print_card(card: Mapping[str, Any], to: Console = console) -> None:
    """The card of stages/card.py."""
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
    for name, value in _numbers(card).items():
        to.print(f"{name}: {value}", soft_wrap=True)
    print_alarms(card, to)


def print_alarms(card: Mapping[str, Any], to: Console = console) -> None:
    """Every alarm and warning, with what to do about it; a line that there is none."""
    for alarm in card["alarms"]:
        to.print(f"{alarm['level']}: {alarm['kind']}. {alarm['says']}", soft_wrap=True)
        to.print(f"  To do: {alarm['do']}", soft_wrap=True)
    if not card["alarms"]:
        to.print("No alarm.")


def _sections(card: Mapping[str, Any]) -> Iterator[list[tuple[str, ...]]]:
    pairs = f"{card['counts']['strict_pairs']:,}"
    length, position, ceiling = card["length"], card["position"], card["ceiling"]
    longer = percent(length["longer_won"])
    first: list[tuple[str, ...]] = [
        ("reward model", percent(card["accuracy"]), interval(card["accuracy_ci"]), longer, pairs),
        (
            f"length alone: {length['rule']}",
            percent(length["accuracy"]),
            interval(length["accuracy_ci"]),
            longer,
            pairs,
        ),
    ]
    if position["listed"] == "either way":
        first.append(
            ("place alone: listed first wins", percent(position["accuracy"]), interval(position["accuracy_ci"]),
             longer, pairs)
        )  # fmt: skip
    if ceiling["compared"]:
        first.append(
            ("annotators with each other", percent(ceiling["agreement"]), interval(ceiling["agreement_ci"]), "",
             f"{ceiling['compared']:,}")
        )  # fmt: skip
        if ceiling.get("pairs"):
            first.append(
                ("reward model there", percent(ceiling["accuracy"]), interval(ceiling["accuracy_ci"]), "",
                 f"{ceiling['pairs']:,}")
            )  # fmt: skip
    yield first
    for part, what in PARTS.items():
        rows = part_rows(card, part)
        if len(rows) > 1:
            yield [_part(f"{what}: {row['name']}", row) for row in rows[:_ROWS]]


def part_rows(card: Mapping[str, Any], part: str) -> Sequence[Mapping[str, Any]]:
    found = card[part]
    return list(found["rows"] if part == "by_judge_margin" else found)


def _part(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    ends = interval(row["accuracy_ci"]) if row["accuracy_ci"] else ""
    return name, percent(row["accuracy"]), ends, percent(row["longer_won"]), f"{row['pairs']:,}"


def _numbers(card: Mapping[str, Any]) -> dict[str, str]:
    """The numbers that are no accuracies."""
    calibration, length, ceiling, suspects = (card[n] for n in ("calibration", "length", "ceiling", "suspects"))
    low, high = length["gain_ci"]
    found = {
        "better than length alone by": f"{100 * length['gain']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}); "
        f"direction learnt on {length['learnt_on']}",
        "score and length": f"r = {length['score_correlation']:.2f}, within a prompt "
        f"{length['score_correlation_within']:.2f}",
        "calibration": f"ECE {calibration['ece']:.3f}, {calibration['ece_expected']:.3f} if it were perfectly "
        f"calibrated; claims {percent(calibration['confidence'])} %",
    }
    after = calibration["temperature"]
    if after is not None:
        found["calibration"] += f"; with temperature {temperature(after['value'])}: ECE {after['ece']:.3f}"
    if ceiling["compared"]:
        alpha = "undefined" if ceiling["alpha"] is None else f"{ceiling['alpha']:.3f}"
        found["annotators"] = (
            f"{ceiling['annotators']}, Krippendorff's alpha {alpha}; at their agreement no model can expect more than "
            f"{percent(ceiling['best_accuracy'])} %"
        )
    else:
        found["human ceiling"] = f"unknown: {ceiling['why']}"
    if card.get("model", {}).get("changed_replies"):
        found["texts"] = (
            f"{card['model']['changed_replies']:,} replies did not survive the model's tokenizer or template"
        )
    if suspects["found"] is None:
        found["label-noise suspects"] = f"unknown: {suspects['why']}"
    else:
        found["label-noise suspects"] = (
            f"{suspects['found']:,} pairs ({percent(suspects['share'])} %) that all {suspects['members']} members "
            "judge the other way"
        )
    return found


def percent(value: float | None) -> str:
    """A share in percent, without its sign."""
    return "" if value is None else f"{100 * value:.1f}"


def interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
