"""The rounds of a run beside each other, on the one scale that the anchors hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plaudit.data.files import read_json
from plaudit.run.display import console, format_value
from plaudit.run.folder import SUMMARY
from plaudit.view.compare import paired


def rounds_table(before: Sequence[Path], folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a round, the last one that of `folder` and its `summary`; nothing in round 1."""
    if not before:
        return []
    folders = [*before, folder]
    rows = [_row(read_json(one / SUMMARY)) for one in before] + [_row(summary)]
    for number, row in enumerate(rows, start=1):
        gains = paired(folders[number - 2], folders[number - 1])["differences"] if number > 1 else {}
        row |= {"round": number, "since": gains.get("gold score of PPO")}
    return rows


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    reward, evaluated = summary["reward"], summary["evaluate"]
    return {
        "rankings": summary["preferences"]["rankings"],
        "pairs": reward.get("pairs_train"),
        "accuracy": reward.get("accuracy"),
        "anchors_off": reward.get("anchors_off"),
        "gold": evaluated.get("gold_ppo"),
        "proxy": evaluated["proxy_ppo"],
        "kl": evaluated["kl"],
    }


def print_rounds(rows: Sequence[Mapping[str, Any]]) -> None:
    """As a table."""
    table = Table(
        *("round", "rankings", "pairs learnt", "accuracy", "proxy", "gold", "gold since the round before", "KL"),
        title="Rounds, by the policies that they kept",
        title_justify="left",
    )
    for row in rows:
        since = row["since"]
        gained = f"{since['difference']:+.3f} {format_value(since['ci'])}" if since else ""
        cells = [row[name] for name in ("round", "rankings", "pairs", "accuracy", "proxy", "gold")]
        table.add_row(*("" if cell is None else format_value(cell) for cell in cells), gained, format_value(row["kl"]))
    console.print(table)
