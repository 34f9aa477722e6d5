"""What the studio reads of a run's logs: cards, columns for curves, and the rows that are new.

A log is known by its path in the run's folder. Bytes say how far a page has read it: a log that has become shorter was
cut by a resume, and is read again from its beginning.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.run.folder import RECIPE, SUMMARY, read_json
from plaudit.view.status import status_of

LOGS = ("metrics.jsonl", "evaluations.jsonl")


def known_runs(folders: Iterable[Path]) -> dict[str, Path]:
    """The runs among these folders and in them, now, by a name that is used in addresses; no other is ever read."""
    found: dict[str, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / RECIPE).is_file() else sorted(one.parent for one in folder.glob(f"*/{RECIPE}"))
        for run in inside:
            name, number = run.resolve().name, 2
            while name in found:
                name, number = f"{run.resolve().name}-{number}", number + 1
            found[name] = run
    return found


def card(name: str, folder: Path) -> dict[str, Any]:
    """A run on the overview: how far it is, and its headline numbers."""
    try:
        status = status_of(folder)
    except KeyError as error:  # one old run must not hide the others
        lacks = {"state": f"of another version: {RECIPE} lacks {error}", "now": None, "left_s": None}
        return {"name": name, "numbers": {}, **lacks}
    numbers: dict[str, float] = {}
    if (summary := folder / SUMMARY).is_file():
        evaluated = read_json(summary)["evaluate"]
        shown = ("gold_sft", "gold_ppo", "proxy_sft", "proxy_ppo", "win_rate", "kl")
        numbers = {key: evaluated[key] for key in shown if key in evaluated}
    elif rows := new_rows(folder, "ppo/metrics.jsonl", 0)[0]:
        numbers = {key: rows[-1][key] for key in ("score", "kl", "length", "eos") if key in rows[-1]}
    return {
        **{key: status[key] for key in ("state", "now", "ended", "progress", "minutes", "changed")},
        "left_s": _left(folder, status),
        "name": name,
        "numbers": numbers,
    }


def _left(folder: Path, status: Mapping[str, Any]) -> float | None:
    """Seconds that PPO needs still, by what its updates took; the other stages do not say how long they are."""
    if status["state"] != "going on" or status["now"] != "ppo" or " of " not in status["progress"]:
        return None
    times, _ = new_rows(folder, "ppo/times.jsonl", 0)
    done, total = (int(word) for word in status["progress"].split()[1::2])
    took = [sum(value for key, value in row.items() if key != "update") for row in times[-10:]]
    return (total - done) * sum(took) / len(took) if took else None


def logs_of(folder: Path) -> list[str]:
    """The logs that are there, in the order of the stages' folders by time."""
    found = [file for name in LOGS for file in folder.glob(f"*/{name}")]
    return [
        str(file.relative_to(folder)) for file in sorted(found, key=lambda file: (file.parent.stat().st_mtime, file))
    ]


def new_rows(folder: Path, log: str, start: int) -> tuple[list[dict[str, Any]], int]:
    """The whole rows of a log from byte `start` on, and the byte after them. A log that is gone has none."""
    path = folder / log
    if not path.is_file():
        return [], 0
    with path.open("rb") as handle:
        handle.seek(start)
        data = handle.read()
    whole, _, _ = data.rpartition(b"\n")
    lines = [line for line in whole.split(b"\n") if line]
    return [json.loads(line) for line in lines], start + (len(whole) + 1 if whole else 0)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Numbers by column, with None where a row has none; of several reward models only the first's."""
    rows = [row for row in rows if not row.get("member")]
    names = dict.fromkeys(key for row in rows for key, value in row.items() if _number(value))
    return {name: [row[name] if _number(row.get(name)) else None for row in rows] for name in names}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
