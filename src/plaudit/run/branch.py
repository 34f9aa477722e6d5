"""A new run that begins with the stages another one has ended: `plaudit run RECIPE --copy-from RUN --from STAGE`."""

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
