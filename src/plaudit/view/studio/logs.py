"""What the studio reads of a run's logs: cards, columns for curves, and the rows that are new.

A log is known by its path in the run's folder. Bytes say how far a page has read it: a log that has become shorter was
cut by a resume, and is read again from its beginning.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from plaudit.data.files import read_json
from plaudit.run.branch import rounds_of
from plaudit.run.folder import MANIFEST, ORDER, RECIPE, SUMMARY, is_locked, read_recipe
from plaudit.run.metrics import is_number, last_rows
from plaudit.view.status import SAMPLED, progress_of

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


def mark_of(folder: Path) -> tuple[Any, ...]:
    """What changes when the card of a run does, from a few looks at its files: a page asks every other second, and
    what it costs is taken from the trainer beside it."""
    own = (folder / name for name in (MANIFEST, SUMMARY, SAMPLED))
    files = (*own, *(folder / stage / "metrics.jsonl" for stage in ORDER))
    stats = (file.stat() if file.is_file() else None for file in files)
    return is_locked(folder), len(rounds_of(folder)), *(one and (one.st_size, one.st_mtime_ns) for one in stats)


def card(name: str, folder: Path) -> dict[str, Any]:
    """A run on the overview: how far it is, and its headline numbers."""
    status = progress_of(folder, _recipe(folder, (folder / RECIPE).stat().st_mtime_ns))
    numbers: dict[str, float] = {}
    if (summary := folder / SUMMARY).is_file():
        evaluated = read_json(summary)["evaluate"]
        shown = ("gold_sft", "gold_ppo", "proxy_sft", "proxy_ppo", "win_rate", "kl")
        numbers = {key: evaluated[key] for key in shown if key in evaluated}
    elif rows := last_rows(folder / "ppo/metrics.jsonl", 1):
        numbers = {key: rows[0][key] for key in ("score", "kl", "length", "eos") if key in rows[0]}
    return {
        **{key: status[key] for key in ("state", "now", "progress")},
        "left_s": _left(folder, status),
        "name": name,
        "numbers": numbers,
    }


@lru_cache(maxsize=256)
def _recipe(folder: Path, changed: int) -> dict[str, Any]:
    """Read once and not with every card: of all that a card needs, YAML takes the longest."""
    return read_recipe(folder)


def _left(folder: Path, status: Mapping[str, Any]) -> float | None:
    """Seconds that PPO needs still, by what its updates took; the other stages do not say how long they are."""
    if status["state"] != "going on" or status["now"] != "ppo" or " of " not in status["progress"]:
        return None
    done, total = (int(word) for word in status["progress"].split()[1::2])
    took = [
        sum(value for key, value in row.items() if key != "update") for row in last_rows(folder / "ppo/times.jsonl", 10)
    ]
    return (total - done) * sum(took) / len(took) if took else None


def logs_of(folder: Path) -> list[str]:
    """The logs that are there, in the order of the stages' folders by time."""
    found = [file for name in LOGS for file in folder.glob(f"*/{name}")]
    return [
        str(file.relative_to(folder)) for file in sorted(found, key=lambda file: (file.parent.stat().st_mtime, file))
    ]


def sizes(folder: Path) -> list[tuple[str, int]]:
    """The logs with their bytes."""
    there = (f"{stage}/{name}" for stage in ORDER for name in LOGS)
    return [(log, (folder / log).stat().st_size) for log in there if (folder / log).is_file()]


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
    names = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    return {name: [row[name] if is_number(row.get(name)) else None for row in rows] for name in names}


def calibration(folder: Path) -> dict[str, Any] | None:
    """Of the reward model's card: how often it is right, by the confidence that it states. None without such a card."""
    card = folder / "reward/card.json"
    found = read_json(card).get("calibration") if card.is_file() else None
    return None if found is None else {"bins": found["bins"], "ece": found["ece"]}
