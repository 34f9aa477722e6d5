"""What the doctor says of a run, each finding pinned to the update at which it was there first, and the range of each
column that the doctor calls healthy: its own limits, not the studio's."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plaudit.errors import UserError
from plaudit.guard import symptoms as known
from plaudit.guard.doctor import examine
from plaudit.guard.limits import APPROX_KL_MOST, CLIPPED_MOST, ENDING, Row
from plaudit.guard.symptoms import Log, Symptom, symptoms
from plaudit.run.folder import read_recipe, stage_settings
from plaudit.run.metrics import read_metrics

LOOKS = 60
"""Beginnings of a log that are judged to find where a symptom began; a longer log is judged at so many places."""

SYMPTOMS = [one for one in vars(known).values() if isinstance(one, Symptom)]
"""Those that are a column out of its range."""


def findings(folder: Path) -> list[dict[str, Any]]:
    """Faults and symptoms as JSON, with the update they speak of; none before PPO has logged."""
    try:
        found = examine(folder)
    except UserError:
        return []
    settings, rows, looks = _logged(folder)
    began = _began(rows, looks, settings)
    columns = {one.name: one.column for one in SYMPTOMS}
    places = [(began.get(one.name, _named(one.evidence)), columns.get(one.name, "score")) for one in found.findings]
    return [
        {**asdict(one), "update": update, "column": _column(one.evidence, rows, column)}
        for one, (update, column) in zip(found.findings, places, strict=True)
    ]


def healthy(folder: Path) -> dict[str, tuple[float | None, float | None]]:
    """Column of PPO -> the lowest and highest value that is no symptom; None is no bound."""
    settings, rows, looks = _logged(folder)
    watch = Log(rows, looks, settings).watch
    found: dict[str, tuple[float | None, float | None]] = {
        "clip_fraction": (None, CLIPPED_MOST),
        "approx_kl": (None, APPROX_KL_MOST),
        "eos": (ENDING, None),
        "explained_variance": (0.0, None),
    }
    for symptom in SYMPTOMS:
        first = next((row for row in (*rows, *looks) if symptom.column in row), None)
        if first is None:
            continue
        limits = symptom.limits(first, watch)
        ends = [limits[end] if math.isfinite(limits[end]) else None for end in ("lowest", "highest")]
        before = found.get(symptom.column, (None, None))
        found[symptom.column] = (_or(ends[0], before[0]), _or(ends[1], before[1]))
    return found


def _or(bound: float | None, before: float | None) -> float | None:
    return before if bound is None else bound


def _logged(folder: Path) -> tuple[dict[str, Any], list[Row], list[Row]]:
    settings = stage_settings(read_recipe(folder), "ppo")
    files = (folder / "ppo/metrics.jsonl", folder / "ppo/evaluations.jsonl")
    rows, looks = (list[Row](read_metrics(file)) if file.is_file() else [] for file in files)
    return settings, rows, looks


def _began(rows: Sequence[Row], looks: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, int]:
    """Symptom -> the first update, of those judged, after which the logs showed it."""
    places = sorted({1 + i * (len(rows) - 1) // max(LOOKS - 1, 1) for i in range(LOOKS)}) if rows else []
    first: dict[str, int] = {}
    for count in places:
        update = int(rows[count - 1]["update"])
        seen = [look for look in looks if look["update"] <= update]
        for one in symptoms(rows[:count], seen, settings):
            first.setdefault(one.name, update)
    return first


def _named(evidence: str) -> int | None:
    """The update that the evidence names: a fault is told where it was seen first."""
    named = re.search(r"updates? (\d+)", evidence)
    return int(named[1]) if named else None


def _column(evidence: str, rows: Sequence[Row], column: str) -> str:
    """The column whose curve a finding is pinned to: the one that its evidence begins with, else `column`."""
    first = evidence.partition(" ")[0]
    return first if any(first in row for row in rows[-1:]) else column
