"""How far runs are: what ended, what is going on, what came out, and how much of the disk they take."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from plaudit.data.files import read_json
from plaudit.errors import UserError
from plaudit.label.extra import missing_packages
from plaudit.run.branch import home_of, label_database, rounds_of
from plaudit.run.display import console
from plaudit.run.folder import (
    RECIPE,
    SUMMARY,
    finished_stages,
    is_locked,
    needed_stages,
    read_recipe,
    stages_beside,
)
from plaudit.run.metrics import last_rows

WAITS = "waits for people"
SAMPLED = "label/sampled.json"
"""What a run has sampled for the people whom it waits for, in each round's folder."""

_COUNTED = {"ppo": ("update", "updates"), "sft": ("step", None), "reward": ("step", None)}
"""What the stages' metrics count, and the key of the recipe that says how many there will be."""


def runs_in(folders: Iterable[Path]) -> list[Path]:
    """The run folders among these, and those in one that is none itself, each with its rounds; UserError for one that
    has none."""
    found = []
    for folder in folders:
        own = [folder] if (folder / RECIPE).is_file() else sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
        if not own:
            raise UserError(f"{folder}: no run of Plaudit is here ({RECIPE} is missing)")
        found += [one for run in own for one in rounds_of(run)]
    return found


def progress_of(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How far one run is, from a few small files; `state` is finished, going on or stopped."""
    ended = finished_stages(folder)
    # A recipe may say less than ours do: that of an older version, or one written by hand.
    sources = recipe.get("ppo", {}).get("rewards", ())
    needed = needed_stages(
        not sources or any(source.get("trained") for source in sources), stages_beside(recipe.get("baselines", ()))
    )
    now = next((stage for stage in needed if stage not in ended), None)
    return {
        "state": "finished" if now is None else "going on" if is_locked(folder) else "stopped",
        "ended": [stage for stage in needed if stage in ended],
        "now": now,
        "progress": _progress(folder, now, recipe) if now else "",
        "minutes": sum(entry["seconds"] for entry in ended.values()) / 60,
    }


def status_of(folder: Path) -> dict[str, Any]:
    """One run: how far it is, what it takes of the disk, and what came out."""
    rounds = rounds_of(folder)[1:]
    files = [file for file in folder.rglob("*") if file.is_file() and not {*file.parents} & {*rounds}]
    recipe = read_recipe(folder)
    how_far = progress_of(folder, recipe)
    if how_far["progress"] == WAITS:
        how_far["progress"] += _labels(folder, (recipe.get("preferences") or {}).get("labels"))
    found: dict[str, Any] = {
        "run": str(folder),
        **how_far,
        "bytes": sum(file.stat().st_size for file in files),
        "changed": max(file.stat().st_mtime for file in files),
    }
    summary = folder / SUMMARY
    return found | ({"result": _result(read_json(summary))} if summary.is_file() else {})


def _progress(folder: Path, stage: str, recipe: Mapping[str, Any]) -> str:
    if stage == "preferences" and (folder / SAMPLED).is_file():
        return WAITS
    if stage not in _COUNTED or not (rows := last_rows(folder / stage / "metrics.jsonl", 1)):
        return ""
    counted, key = _COUNTED[stage]
    total = recipe.get(stage, {}).get(key)
    return f"{counted} {rows[0][counted]}" + (f" of {total}" if total else "")


def _labels(folder: Path, wanted: int | None) -> str:
    """How many of the labels are in that a run waits for (None: all), whether it runs or not; nothing where its
    database cannot be read."""
    if missing_packages():
        return ""
    from plaudit.label.db.database import open_as_it_is, snapshot
    from plaudit.label.quality.places import filled_of_run

    try:
        with snapshot(open_as_it_is(label_database(folder))) as connection:
            had, places = filled_of_run(connection, home_of(folder).resolve().name)
    except UserError:
        return ""
    return f", {had:,} of {wanted or places:,} labels are in"


def _result(summary: Mapping[str, Any]) -> str:
    evaluated = summary["evaluate"]
    name = "gold" if "gold_gain" in evaluated else "proxy"
    said = f"{name} {evaluated[f'{name}_sft']:.2f} -> {evaluated[f'{name}_ppo']:.2f}, KL {evaluated['kl']:.1f}"
    return "kept the SFT model" if kept_sft(summary) else said


def kept_sft(summary: Mapping[str, Any]) -> bool:
    """Whether no update of PPO was better than the SFT model that it began as."""
    return summary["ppo"]["kept_update"] == 0 and "started_from" not in summary["ppo"]


def print_status(found: Iterable[Mapping[str, Any]]) -> None:
    """One row a run."""
    table = Table("run", "state", "ended", "now", "minutes", "MB", "changed", "result")
    for one in found:
        now = " ".join(filter(None, (one["now"], one["progress"])))
        changed = time.strftime("%d %b %H:%M", time.localtime(one["changed"]))
        cells = (one["state"], ", ".join(one["ended"]) or "nothing", now, f"{one['minutes']:.1f}")
        table.add_row(one["run"], *cells, f"{one['bytes'] / 1e6:.0f}", changed, one.get("result", ""))
    console.print(table)
