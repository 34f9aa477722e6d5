"""Folders that begin with what another run has: a copy (`plaudit run RECIPE --copy-from RUN --from STAGE`), and the
rounds of a run.

Round 1 is the run's own folder. Round n lies in it as round-n, a run folder like any other whose sft is a link to the
run's: all rounds stand on one SFT model.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from plaudit.data.files import write_json, write_text
from plaudit.errors import UserError
from plaudit.run.folder import MANIFEST, RECIPE, finished_stages, read_recipe


def branch(source: Path, to: Path, start: str, needed: Sequence[str]) -> None:
    """Copy what the stages before `start` left in the run `source` to the new folder `to`, whole or not at all.
    `needed` are the stages of the new run. UserError when one of them has not ended there, or when `to` is there."""
    read_recipe(source)
    if to.exists():
        raise UserError(f"{to} is there already, and --copy-from makes a new run; give another folder with folder=PATH")
    ended = finished_stages(source)
    before = list(needed[: needed.index(start)])
    if missing := next((stage for stage in before if stage not in ended), None):
        raise UserError(
            f"{source}: stage {missing!r} has not ended there, so --from {missing} is the latest that works with it"
        )
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for stage in before:
        shutil.copytree(source / stage, part / stage)
    part.mkdir(parents=True, exist_ok=True)
    write_text(part / RECIPE, (source / RECIPE).read_text(encoding="utf-8"))
    write_json(part / MANIFEST, {"stages": {stage: ended[stage] for stage in before}})
    part.rename(to)


def round_folder(run: Path, number: int) -> Path:
    return run if number == 1 else run / f"round-{number}"


def run_of(folder: Path, number: int) -> Path:
    """The run that round `number`, which lies in `folder`, is of."""
    return folder if number == 1 else folder.parent


def rounds_of(run: Path) -> list[Path]:
    """The folders of all rounds of a run that have begun, in order."""
    numbers = (re.fullmatch(r"round-(\d+)", path.name) for path in run.glob("round-*"))
    later = sorted(int(number[1]) for number in numbers if number)
    return [run, *(round_folder(run, number) for number in later if (round_folder(run, number) / RECIPE).is_file())]


def home_of(folder: Path) -> Path:
    """The run that a folder is of: its own, or that of the round which lies in it."""
    return folder.parent if folder in rounds_of(folder.parent) else folder


def label_database(folder: Path) -> str:
    """Where people's labels of the run in `folder` are: the database that its recipe names, else that of all rounds."""
    named = (read_recipe(folder).get("preferences") or {}).get("database")
    return named or str(home_of(folder) / "label" / "labels.sqlite")


def rounds_before(folder: Path, number: int) -> list[Path]:
    """Of the folder of round `number`: those of the rounds before it."""
    return [round_folder(run_of(folder, number), earlier) for earlier in range(1, number)]


def begin_round(folder: Path, recipe_yaml: str) -> None:
    """Make the folder of a round after the first; in one that is there SFT is once more what the run's manifest says
    of it. UserError where the run that it is to lie in has no SFT model."""
    run = folder.parent
    ended = finished_stages(run) if (run / RECIPE).is_file() else {}
    if "sft" not in ended:
        raise UserError(f"{folder}: {run} holds no run whose SFT has ended, and a round stands on that")
    part = folder if folder.exists() else folder.with_name(f"{folder.name}.part")
    if part != folder:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        (part / "sft").symlink_to(Path("..") / "sft")
        write_text(part / RECIPE, recipe_yaml)
    write_json(part / MANIFEST, {"stages": {**finished_stages(part), "sft": ended["sft"]}})
    part.rename(folder)
