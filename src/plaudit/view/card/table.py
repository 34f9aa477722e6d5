"""A reward model's report card as a person reads it in a terminal: one table, then the alarms with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from plaudit.run.display import console
from plaudit.view.text import plain_interval, plain_percent, plain_points, temperature

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
    for line in _numbers(card):
        to.print(line, soft_wrap=True)
    print_alarms(card, to)


def print_alarms(card: Mapping[str, Any], to: Console = console) -> None:
    """Every alarm and warning, with what to do about it; a line that there is none."""
    for alarm in card["alarms"]:
        to.print(f"{alarm['level']}: {alarm['kind']}. {alarm['says']}", soft_wrap=True)
        to.print(f"  To do: {alarm['do']}", soft_wrap=True)
    if not card["alarms"]:
        to.print("No alarm.")


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


def _numbers(card: Mapping[str, Any]) -> Iterator[str]:
    """The numbers that are no accuracies, a line each."""
    calibration, length, ceiling, suspects = (card[n] for n in ("calibration", "length", "ceiling", "suspects"))
    gain = plain_points(length["gain"], length["gain_ci"])
    yield f"better than length alone by: {gain}; direction learnt on {length['learnt_on']}"
    whole, within = length["score_correlation"], length["score_correlation_within"]
    yield f"score and length: r = {whole:.2f}, within a prompt {within:.2f}"
    after = calibration["temperature"]
    tempered = f"; with temperature {temperature(after['value'])}: ECE {after['ece']:.3f}" if after is not None else ""
    yield (
        f"calibration: ECE {calibration['ece']:.3f}, {calibration['ece_expected']:.3f} if it were perfectly "
        f"calibrated; claims {plain_percent(calibration['confidence'])}{tempered}"
    )
    if ceiling["compared"]:
        alpha = "undefined" if ceiling["alpha"] is None else f"{ceiling['alpha']:.3f}"
        yield (
            f"annotators: {ceiling['annotators']}, Krippendorff's alpha {alpha}; at their agreement no model can "
            f"expect more than {plain_percent(ceiling['best_accuracy'])}"
        )
    else:
        yield f"human ceiling: unknown: {ceiling['why']}"
    if changed := card.get("model", {}).get("changed_replies"):
        yield f"texts: {changed:,} replies did not survive the model's tokenizer or template"
    if suspects["found"] is None:
        yield f"label-noise suspects: unknown: {suspects['why']}"
    else:
        share = plain_percent(suspects["share"])
        members = f"all {suspects['members']} members judge the other way"
        yield f"label-noise suspects: {suspects['found']:,} pairs ({share}) that {members}"
