"""The run folder: one directory a run, in the order of the work, locked while a process writes to it.

    runs/NAME/  recipe.yaml  environment.json  manifest.json
                sft/  preferences/  reward/  ppo/  evaluate/  summary.json  report.html

`manifest.json` names the stages that ended, with the SHA-256 of every file they left. It is written last, so a stage
that was stopped half-way is simply not in it. Such a stage may have checkpoints, in a folder of that name within its
own (train/saving.py); they go when it has ended.
"""

import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from plaudit.data.files import clear_halves, read_json, write_json, write_text
from plaudit.data.hashes import sha256
from plaudit.errors import UserError, writing
from plaudit.run.checkpoint import WAIT
from plaudit.run.provenance import differences, environment, is_among
from plaudit.run.stopping import Interrupted

RECIPE, ENVIRONMENT, MANIFEST, LOCK = "recipe.yaml", "environment.json", "manifest.json", ".lock"
SUMMARY, REPORT = "summary.json", "report.html"
CHECKPOINTS = "checkpoints"
INPUTS = "inputs.json"
"""Of a stage: what it reads, written down before it begins."""
BEFORE = "before"
"""What stages left that run again, until they have ended once more."""
LOOKS, LOOK_S = 10, 0.05
"""How often, and after how many seconds, a run's lock is asked for again."""
STAGES = ("sft", "preferences", "reward", "ppo", "evaluate", "report")
"""Those of every run, in the order of the work."""
BESIDE = ("rejection", "dpo", "baselines")
"""Those of a run that puts other methods beside PPO (`baselines`), or that are asked for by name."""
ORDER = (*STAGES[:-1], *BESIDE, STAGES[-1])
"""All that there are, in the order of the work."""


def needed_stages(trained: bool, beside: Collection[str] = ()) -> tuple[str, ...]:
    """The stages of a run: where no trained reward model pays PPO (`trained` false), none makes one; and which of those
    `beside` PPO it has. DPO learns the same rankings."""
    without = {name for name in BESIDE if name not in beside}
    without |= set() if trained else {"reward"} if "dpo" in beside else {"preferences", "reward"}
    return tuple(stage for stage in ORDER if stage not in without)


def stages_beside(baselines: Collection[str]) -> tuple[str, ...]:
    """The stages that a recipe's `baselines` need."""
    return tuple(name for name in BESIDE if name in baselines or (name == "baselines" and baselines))


def stages_after(name: str) -> tuple[str, ...]:
    """This stage and those that read what it makes, directly or not: DPO reads the rankings alone, rejection sampling
    what pays PPO and not what PPO made of it."""
    apart = {
        "reward": ("dpo",),
        "ppo": ("dpo",),
        "evaluate": ("rejection", "dpo"),
        "rejection": ("dpo",),
    }.get(name, ())
    return tuple(stage for stage in ORDER[ORDER.index(name) :] if stage not in apart)


@dataclass
class RunFolder:
    """A locked run folder; use it as a context manager."""

    path: Path
    _lock: IO[str]

    @classmethod
    def open(
        cls, path: Path, recipe_yaml: str, *, resume: bool, may_change: Sequence[str] = (), need_mb: float = 0
    ) -> "RunFolder":
        """Lock `path` for the run that `recipe_yaml` (resolved) describes, creating it if need be.

        When it holds this run already, `resume` must be True; the keys and sections named in `may_change` may then
        differ. UserError when it holds another run, when another process has the lock, when it cannot be written, or
        when fewer than `need_mb` MB are free there.
        """
        recipe = path / RECIPE
        refuse_another_run(path, recipe_yaml, resume=resume, may_change=may_change)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder; give another folder with folder=PATH")
        # A run may have been killed while it wrote its first file.
        own = (LOCK, f"{RECIPE}.part")
        if path.exists() and not recipe.is_file() and any(file.name not in own for file in path.iterdir()):
            raise UserError(f"{path} is not empty and is not a run of Plaudit; give another folder with folder=PATH")
        check_room(path, need_mb)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            problem = f"cannot be written: {error.strerror}"
            raise UserError(f"{path}: {problem}; give another folder with folder=PATH") from error
        _take_lock(lock, path)
        write_text(recipe, recipe_yaml)
        if not (path / ENVIRONMENT).is_file():
            write_json(path / ENVIRONMENT, environment())
        return cls(path, lock)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._lock.close()
        self._note(error)

    def _note(self, error: BaseException | None) -> None:
        """What the system or a signal did to a run that was going ends with how it goes on."""
        if isinstance(error, OSError | Interrupted):
            how = f"go on with `plaudit run {self.path / RECIPE} --resume`"
            error.add_note(f"checkpoints and the stages that ended are kept; {how}")

    def stage(self, name: str) -> Path:
        """The stage's own folder, created."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def require(self, relative: str, made_by: str) -> Path:
        """A file or folder an earlier stage leaves; UserError that names that stage when it is missing."""
        path = self.path / relative
        if not path.exists():
            how = f"stage {made_by!r} makes it; run `plaudit {made_by}` on this recipe first"
            raise UserError(f"{path} is missing: {how}")
        return path

    def finished(self) -> dict[str, Any]:
        """The stages that ended: {name: {"seconds": s, "peak_rss_mb": m, "files": {relative path: sha256}}}, and
        "peak_gpu_mb" where a GPU computed."""
        return finished_stages(self.path)

    def begin(self, name: str, *, resume: bool = False) -> None:
        """Forget this stage and those after it, whose inputs it is about to replace. What they left goes to before/ if
        they had ended, until they have ended again, and else is deleted; with `resume` the stage's own folder stays
        where it has checkpoints."""
        later, ended = stages_after(name), self.finished()
        goes_on = resume and (self.path / name / CHECKPOINTS).is_dir()
        # Before the manifest: a stage that is in it and whose folder was moved is known as one that has not ended.
        for stage in later:
            if stage in ended and (self.path / stage).is_dir() and not (goes_on and stage == name):
                (self.path / BEFORE).mkdir(exist_ok=True)
                shutil.rmtree(self.path / BEFORE / stage, ignore_errors=True)
                (self.path / stage).rename(self.path / BEFORE / stage)
        kept = {stage: entry for stage, entry in ended.items() if stage not in later}
        write_json(self.path / MANIFEST, {"stages": kept})
        for stage in later:
            if goes_on and stage == name:
                clear_halves(self.path / stage)
            else:
                shutil.rmtree(self.path / stage, ignore_errors=True)
        for file in (SUMMARY, REPORT):
            (self.path / file).unlink(missing_ok=True)

    def drop_checkpoints(self, name: str) -> None:
        """Delete those of a stage that ended: what it leaves is enough."""
        shutil.rmtree(self.path / name / CHECKPOINTS, ignore_errors=True)

    def end(self, name: str, seconds: float, peaks: Mapping[str, float]) -> None:
        """Enter a stage that ended into the manifest, with the hash of every file in its folder but checkpoints, and
        its `peaks` of memory (`dist.machine.peaks`)."""
        left = [*(self.path / name).rglob("*"), *(self.path / file for file in (SUMMARY, REPORT) if name == "report")]
        inner = self.path / name / CHECKPOINTS
        files = sorted(file for file in left if file.is_file() and inner not in file.parents)
        hashes = {str(file.relative_to(self.path)): sha256(file) for file in files}
        memory = {peak: round(megabytes, 1) for peak, megabytes in peaks.items()}
        entry = {"seconds": round(seconds, 3), **memory, "files": hashes}
        write_json(self.path / MANIFEST, {"stages": {**self.finished(), name: entry}})
        old = self.path / BEFORE
        shutil.rmtree(old / name, ignore_errors=True)
        if old.is_dir() and not any(old.iterdir()):
            old.rmdir()


class FollowedFolder(RunFolder):
    """The folder of a run as its other processes see it: the first one alone writes to it.

    What earlier stages left is read in `path`. `stage` gives a folder of this process's own, thrown away at the end, so
    that a stage need not know which process it runs in; what is large it writes in the first process only.
    """

    def __init__(self, path: Path):
        self.path = path
        self._scratch = tempfile.TemporaryDirectory(prefix="plaudit-")

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._scratch.cleanup()
        self._note(error)

    def stage(self, name: str) -> Path:
        folder = Path(self._scratch.name) / name
        folder.mkdir(exist_ok=True)
        return folder

    def require(self, relative: str, made_by: str) -> Path:
        until = time.monotonic() + WAIT
        while not (self.path / relative).exists() and time.monotonic() < until:
            time.sleep(0.5)
        return super().require(relative, made_by)

    def _by_the_first(self, *_: object, **__: object) -> None:
        """The first process does it."""

    begin = drop_checkpoints = end = _by_the_first


def check_room(path: Path, need_mb: float) -> None:
    """UserError when fewer than `need_mb` MB are free where `path` is or will be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    if free_mb < need_mb:
        need = f"the run needs about {need_mb:.0f} MB"
        raise UserError(f"{path}: {free_mb:.0f} MB free, {need}; free some disk space")


def refuse_another_run(path: Path, recipe_yaml: str, *, resume: bool, may_change: Sequence[str] = ()) -> None:
    """UserError when `path` holds another run than the one that `recipe_yaml` describes, or this one already and it is
    not to `resume`: see `RunFolder.open`."""
    recipe = path / RECIPE
    # Where no stage left anything the run never began (a row is too long, say): any recipe may take the folder.
    if not recipe.is_file() or not any(_holds_work(path / name) for name in (*ORDER, BEFORE)):
        return
    changed = differences(_resolved(recipe.read_text(encoding="utf-8")), _resolved(recipe_yaml))
    fixed = {key: text for key, text in changed.items() if not is_among(key, (*may_change, "folder"))}
    if fixed:
        raise UserError(
            f"{path} already holds another run, which differs in {'; '.join([*fixed.values()][:5])}; give another "
            f"folder with folder=PATH ({_from_where(fixed)})"
        )
    if not resume:
        raise UserError(
            f"{path} already holds this run; continue it with --resume, go from the first stage whose rows have "
            "changed with --from auto, or give folder=PATH"
        )
    begun = any((path / name / INPUTS).is_file() for name in ORDER)  # else its rows were put there by hand
    if begun and not (path / MANIFEST).is_file():
        raise UserError(
            f"{path / MANIFEST} is missing, and nothing else says which stages ended: the run would begin again, over "
            "what they left; put it back, or give another folder with folder=PATH"
        )


def _holds_work(folder: Path) -> bool:
    return folder.is_dir() and any(file.name != INPUTS for file in folder.iterdir())


FIRST_READER = {"rounds": "preferences", "sampling": "preferences", "lora": "sft", "optimiser": "sft"}
"""The first stage that reads a section which several stages share, and makes something of it."""


def _from_where(keys: Iterable[str]) -> str:
    """The stage from which a run with other `keys` may be repeated, where stages alone read them."""
    parts = [(key.split("."), key.split(".stages.")) for key in keys]
    stages = [last[1].split(".")[0] if len(last) > 1 else FIRST_READER.get(first[0], first[0]) for first, last in parts]
    if set(stages) <= {*ORDER}:
        return f"a run with it goes from there: --from {min(stages, key=ORDER.index)}"
    return "keys that every stage depends on need a folder of their own"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in `folder`; UserError while a process writes to it."""
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        _take_lock(lock, folder)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process writes to the run in `folder`; nothing is changed."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _take_lock(lock: IO[str], path: Path) -> None:
    # flock dies with its process, so a killed run leaves no stale lock behind. Whoever looks whether the run goes on
    # holds it for an instant (`is_locked`), whoever writes to the run for longer.
    for left in reversed(range(LOOKS)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if left:
                time.sleep(LOOK_S)
                continue
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            fix = "wait for it or give another folder"
            raise UserError(f"{path} is in use by another process ({owner}); {fix}") from error
    lock.truncate(0)
    with writing(path / LOCK):
        print(f"pid {os.getpid()} on {platform.node()}", end="", file=lock, flush=True)


def finished_stages(folder: Path) -> dict[str, Any]:
    """See `RunFolder.finished`; empty for a folder that is not there yet."""
    manifest = folder / MANIFEST
    ended = read_json(manifest)["stages"] if manifest.is_file() else {}
    moved = [name for name in ended if (folder / BEFORE / name).is_dir() and not (folder / name).is_dir()]
    return {name: entry for name, entry in ended.items() if name not in moved}


def check_left(folder: Path, name: str, inputs: Iterable[str]) -> None:
    """UserError when a file that stage `name` of the run in `folder` left among `inputs` (files, or folders with all
    that is in them) is gone or changed."""
    for file, known in finished_stages(folder).get(name, {}).get("files", {}).items():
        if any(file == one or file.startswith(f"{one}/") for one in inputs):
            path = folder / file
            if not path.is_file() or sha256(path) != known:
                what = "has changed since" if path.is_file() else "is missing:"
                raise UserError(f"{path} {what} stage {name!r} made it; put it back, or run --from {name}")


def sft_files(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the SFT model of the run in `folder`; empty where SFT has not ended there."""
    left: dict[str, str] = finished_stages(folder).get("sft", {}).get("files", {})
    return {file: known for file, known in left.items() if file.startswith("sft/model/")}


def finished_model(folder: Path, relative: str) -> Path:
    """A model that a stage of the run in `folder` left, such as ppo/model; UserError where that has not ended."""
    path = folder / relative
    if not (path / "config.json").is_file():
        old = folder / BEFORE / relative
        there = f"; the one of before is in {old}" if old.is_dir() else ""
        raise UserError(
            f"{path} is missing: {folder} holds no run whose {relative.split('/')[0]} stage has ended{there}"
        )
    return path


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of the run in `folder`."""
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder}: no run of Plaudit is here ({RECIPE} is missing)")
    text = path.read_text(encoding="utf-8")
    try:
        found = _resolved(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not text.endswith("\n"):  # it is written whole
        raise UserError(f"{path} is cut short or damaged: no mapping that ends with a line break; put it back")
    return found


def at_home(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`values` of the recipe file `path`: a run's own recipe is of the folder it lies in, from wherever it is asked
    for and whereto that was moved."""
    home, stated = path.resolve().parent, values.get("folder")
    there = isinstance(stated, str) and Path(stated).resolve() == home
    return (
        values
        if there or path.name != RECIPE or not (home / ENVIRONMENT).is_file()
        else {**values, "folder": str(home)}
    )


def _resolved(recipe: str) -> Any:
    """A recipe of every key, by the parser in C where PyYAML has it: a tenth of the time, and a run reads it often."""
    loader = (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)(recipe)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def stage_settings(recipe: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Of a resolved recipe: the section of a stage, with what the sections that stages share say for it."""
    found: dict[str, Any] = {}
    for shared in (recipe.get("sampling", {}), recipe.get("optimiser", {})):
        otherwise = shared.get("stages", {}).get(stage, {})
        given = {key: value for key, value in otherwise.items() if value is not None}
        found |= {**shared, **given}
    found.pop("stages", None)
    return {**found, **recipe[stage]}


def judged_by_people(recipe: Mapping[str, Any]) -> bool:
    """Of a resolved recipe: whether people judged, not a simulated annotator."""
    chosen = recipe["preferences"]
    return bool(chosen["rankings"] or chosen.get("unpaired")) or chosen["annotator"] == "human"
