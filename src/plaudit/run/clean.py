"""What of a run folder may go: what its report, a resume and every later command can do without.

The merged weights of a reward model are made anew from adapter and base where they are asked for (stages/export.py).
Rollouts are what `inspect` and the doctor's arithmetic read, and what was put aside while a stage runs again is the
only whole result: these go only when they are named.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from plaudit.data.files import write_json
from plaudit.run.branch import rounds_of
from plaudit.run.folder import BEFORE, CHECKPOINTS, MANIFEST, finished_stages, locked, read_recipe


@dataclass(frozen=True)
class Reclaimable:
    """A file or folder that may go."""

    path: Path
    size: int
    why: str


def reclaimable(folder: Path, *, rollouts: bool = False, before: bool = False) -> list[Reclaimable]:
    """In the order of a run; UserError where there is none."""
    read_recipe(folder)
    ended = finished_stages(folder)
    found = [
        (folder / stage / CHECKPOINTS, "checkpoints of a stage that ended")
        for stage in ended
        if (folder / stage / CHECKPOINTS).is_dir()
    ]
    if "reward" in ended and (folder / "reward/adapter").is_dir():
        why = "merged weights; `plaudit export --role reward` makes them from the adapter"
        found += [(file, why) for file in sorted((folder / "reward").glob("model*/*.safetensors"))]
    if rollouts and "ppo" in ended and (folder / "ppo/rollouts").is_dir():
        found.append((folder / "ppo/rollouts", "replies of PPO's updates; inspect and the doctor need them"))
    if before and (folder / BEFORE).is_dir():
        found.append((folder / BEFORE, "results of before a stage ran again, which has not ended yet"))
    rounds = {*rounds_of(folder)[1:]}  # each is looked at by itself
    halves = (half for half in sorted(folder.rglob("*.part*")) if not rounds & {*half.parents})
    found += [(half, "half-written") for half in halves if BEFORE not in half.parts]
    return [Reclaimable(path, size_of(path), why) for path, why in found]


def clean(folder: Path, chosen: list[Reclaimable]) -> None:
    """Delete, under the run's lock; the manifest forgets the files that went."""
    with locked(folder):
        for one in chosen:
            if one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
        stages, gone = finished_stages(folder), [str(one.path.relative_to(folder)) for one in chosen]
        for entry in stages.values():
            entry["files"] = {
                name: known for name, known in entry["files"].items() if not any(is_in(name, path) for path in gone)
            }
        write_json(folder / MANIFEST, {"stages": stages})


def is_in(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
