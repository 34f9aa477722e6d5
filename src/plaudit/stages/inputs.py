"""What every stage read, and what of it has changed since: keys of the recipe, rows of files, what earlier stages made.

A stage writes it to `inputs.json` in its own folder when it begins; the manifest holds that file's hash when it ended.
The rule of a run: it goes on from its files as they are now, and a stage that ended and is relied on must have read
just these. Of people's labels in a database, and of the files of the base model, nothing is recorded here.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from plaudit.data.files import read_json, write_json
from plaudit.data.hashes import sha256, sha256_json, sha256_rows
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError
from plaudit.records import Demonstration, Labelled, Prompt, Ranking
from plaudit.run.branch import rounds_before
from plaudit.run.folder import CHECKPOINTS, INPUTS, finished_stages
from plaudit.run.provenance import code_sha256, differences, is_among
from plaudit.stages.recipe import MAY_CHANGE, SHARED, Recipe

COUNTED = 10_000
"""Rows of a file up to which each has its own hash, so that a change is told by the number of rows."""
SPLITS_READ = {
    "preferences": ("train", "validation", "test"),
    "ppo": ("train", "validation"),
    "evaluate": ("test",),
    "rejection": ("train", "validation"),
}
"""The prompts that a stage samples replies to."""
MADE = {
    "preferences": ("sft/model",),
    "reward": ("sft/model", "preferences/rankings.jsonl", "preferences/earlier.jsonl", "preferences/unpaired.jsonl"),
    "ppo": ("sft/model", "reward/reward.json"),
    "rejection": ("sft/model", "reward/reward.json", "ppo/rewards.json"),
    "dpo": ("sft/model", "preferences/rankings.jsonl", "preferences/earlier.jsonl"),
    "evaluate": ("sft/model", "reward/reward.json", "ppo/model"),
    "baselines": ("sft/model", "reward/reward.json", "evaluate/replies.jsonl", "rejection/model", "dpo/model"),
}
"""What a stage reads of those before it; reward.json has the hashes of the reward model's files."""
MADE_BEFORE = {
    "preferences": ("ppo/model", "preferences/rankings.jsonl"),
    "reward": ("reward/reward.json", "preferences/rankings.jsonl"),
}
"""What a stage of a round reads of the rounds before it, of each one."""


ROUND_KEYS = {"preferences": ("prompts", "earlier"), "ppo": ("start", "reference")}
"""Of the section rounds: what the stages of a round after the first read."""


AS = {"rejection": "ppo", "dpo": "ppo", "baselines": "evaluate"}
"""Stages that take the sections which stages share as another one does."""


class Rows(Protocol):
    """The rows of every file that a recipe names."""

    @property
    def prompts(self) -> Sequence[Prompt]: ...
    @property
    def demonstrations(self) -> DemonstrationTable: ...
    @property
    def mixed(self) -> Mapping[Path, DemonstrationTable]: ...
    @property
    def rankings(self) -> Sequence[Ranking] | None: ...
    @property
    def labels(self) -> Sequence[Labelled] | None: ...


def inputs_of(stage: str, recipe: Recipe, rows: Rows, folder: Path) -> dict[str, Any]:
    """What `stage` reads now: its keys, the rows of its files, what earlier stages left in `folder`, the code."""
    sampled = stage != "preferences" or recipe.preferences.samples
    data: dict[str, Any] = {}
    if (stage == "sft" and not recipe.sft.skip) or (stage == "ppo" and recipe.ppo.ptx_coef):
        data["data.demonstrations"] = {"file": str(recipe.data.demonstrations), **_of_table(rows.demonstrations)}
    for path, table in rows.mixed.items() if stage == "sft" else ():
        data[f"sft.mixture {path.name}"] = {"file": str(path), **_of_table(table)}
    if stage == "preferences" and rows.rankings is not None:
        data["preferences.rankings"] = {
            "file": ", ".join(map(str, recipe.preferences.rankings)),
            **_of_rows(rows.rankings),
        }
    if stage == "preferences" and rows.labels is not None:
        data["preferences.unpaired"] = {"file": str(recipe.preferences.unpaired), **_of_rows(rows.labels)}
    for split in SPLITS_READ.get(stage, ()) if sampled else ():
        prompts = _of_rows(prompt for prompt in rows.prompts if prompt.split == split)
        data[f"data.prompts, split {split}"] = {"file": str(recipe.data.prompts), **prompts}
    names = [*MADE.get(stage, ()), *_made_before(stage, recipe)] if sampled else []
    made = {name: _of_path(folder / name) for name in names if (folder / name).exists()}
    return {"recipe": _keys(stage, recipe), "data": data, "made": made, "code": code_sha256()}


def _made_before(stage: str, recipe: Recipe) -> list[str]:
    """Relative to the folder of a round."""
    before = rounds_before(Path("..") / "this", recipe.rounds.number)
    found = [str(folder / name) for folder in before for name in MADE_BEFORE.get(stage, ())]
    return [*found, str(before[-1] / "ppo/model")] if stage == "ppo" and recipe.rounds.goes_on else found


def _keys(stage: str, recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that decides what a stage makes, with what the shared sections say for it."""
    values = recipe.model_dump(mode="json")
    found: dict[str, Any] = {key: values[key] for key in ("seed", "model", "dtype", "quantise")}
    found["data"] = {"system": values["data"]["system"]}
    found[stage] = values.get(stage, {})
    for section, readers in SHARED.items():
        if (reads := AS.get(stage, stage)) in readers:
            own = getattr(recipe, section).of(reads)
            found[section] = own and {k: v for k, v in own.model_dump(mode="json").items() if k != "stages"}
    if stage in ROUND_KEYS and recipe.rounds.number > 1:
        found["rounds"] = {key: values["rounds"][key] for key in ROUND_KEYS[stage]}
    if stage in ("evaluate", "rejection", "baselines"):
        found["ppo"] = {"rewards": values["ppo"]["rewards"]}
    if stage == "preferences":  # places; their rows are compared
        found[stage] = {key: value for key, value in found[stage].items() if key not in ("rankings", "unpaired")}
    return found


def _of_rows(rows: Iterable[Prompt | Demonstration | Ranking | Labelled]) -> dict[str, Any]:
    found = [row.as_json() for row in rows]
    whole = {"rows": len(found), "sha256": sha256_rows(found)}
    return whole if len(found) > COUNTED else {**whole, "row_sha256": [*_each(found)]}


def _of_table(table: DemonstrationTable) -> dict[str, Any]:
    whole = {"rows": len(table), "sha256": table.sha256}
    return whole if len(table) > COUNTED else {**whole, "row_sha256": [*_each(row.as_json() for row in table)]}


def _each(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A short hash a row, without its id: that may be the row's number, which moves when a row before it goes."""
    return (sha256_json({key: value for key, value in row.items() if key != "id"})[:16] for row in rows)


def _of_path(path: Path) -> str:
    """Of a file, or of a folder with all that is in it."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json([[str(file.relative_to(path.parent)), _of_file(file, *_stamp(file))] for file in files])


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _of_file(file: Path, _modified: int, _size: int) -> str:
    """Once a process: a large model is an input of several stages."""
    return sha256(file)


def record(stage: str, recipe: Recipe, rows: Rows, folder: Path, *, resume: bool) -> None:
    """Write down what a stage that begins reads; of one that goes on from a checkpoint that stays what it was."""
    path = folder / stage / INPUTS
    if stage != "report" and not (resume and path.is_file()):
        path.parent.mkdir(exist_ok=True)
        found = inputs_of(stage, recipe, rows, folder)
        # Where a file was is no input: a run that was moved read the same.
        data = {name: {key: one for key, one in file.items() if key != "file"} for name, file in found["data"].items()}
        write_json(path, {**found, "data": data})


def changed_inputs(stage: str, recipe: Recipe, rows: Rows, folder: Path, *, made: bool = True) -> list[str]:
    """What has changed of what `stage` read, a phrase each; nothing where it did not write that down. Without `made`
    what earlier stages of its round made is not looked at."""
    path = folder / stage / INPUTS
    if not path.is_file():
        return []
    then, now = read_json(path), inputs_of(stage, recipe, rows, folder)
    now = json.loads(json.dumps(now))
    keys = differences(then["recipe"], now["recipe"])
    found = [text for key, text in keys.items() if not is_among(key, MAY_CHANGE)]
    # What is no longer there (plaudit clean) is missed by the stage that needs it.
    found += [
        f"{name} is not what it was"
        for name in _unequal(then["made"], now["made"])
        if (made or name.startswith("..")) and name in now["made"]
    ]
    return found + [
        _told(name, then["data"].get(name), now["data"].get(name)) for name in _unequal(then["data"], now["data"])
    ]


def _unequal(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**then, **now} if _sha256(then.get(name)) != _sha256(now.get(name))]


def _sha256(value: Any) -> Any:
    return value["sha256"] if isinstance(value, dict) else value


def _told(name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """How the rows of a file have changed. A row that went and another that came count as one that was changed."""
    if then is None or now is None:
        return f"{name}: {'was not read before' if then is None else 'is no longer read'}"
    place = f"{name}: {now['file']}"
    if "row_sha256" not in then or "row_sha256" not in now:
        return f"{place} holds other rows, {then['rows']} before and {now['rows']} now"
    old, new = Counter(then["row_sha256"]), Counter(now["row_sha256"])
    gone, came = (old - new).total(), (new - old).total()
    both = min(gone, came)
    counts = ((both, "changed"), (gone - both, "removed"), (came - both, "added"))
    parts = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"{place}: {parts or 'another order or other ids'}, of {then['rows']} rows"


def first_changed(
    stages: Sequence[str], recipe: Recipe, rows: Rows, folder: Path, *, made: bool = True
) -> tuple[str, list[str]] | None:
    """The first of `stages` that read something else than it would now, and what."""
    for stage in stages:
        if found := changed_inputs(stage, recipe, rows, folder, made=made):
            return stage, found
    return None


def refuse_changed(stages: Sequence[str], recipe: Recipe, rows: Rows, folder: Path, *, made: bool = True) -> str | None:
    """A line that says what was compared, where `stages`, which ended and are relied on, read what is there now.
    UserError with what has changed, and the stage to go from, where they did not."""
    if found := first_changed(stages, recipe, rows, folder, made=made):
        stage, changes = found
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise UserError(
            f"{folder}: stage {stage!r} ended before this changed: {'; '.join(changes[:5])}{more}. A run goes on from "
            f"its files as they are now: run --from {stage} (--from auto finds the stage), or undo the change"
        )
    known = [stage for stage in stages if (folder / stage / INPUTS).is_file()]
    other = [stage for stage in known if _read(folder, stage)["code"] != code_sha256()]
    line = f"Going on from the files as they are now: {', '.join(known)} read the same." if known else None
    note = f" Other code of Plaudit made {', '.join(other)}." if other else ""
    return line and line + note


def _read(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / stage / INPUTS)
    return found


def begun(folder: Path, needed: Sequence[str]) -> list[str]:
    """Of the stages that a run needs the first ones, as far as they ended or have a checkpoint: where `--from auto`
    looks for changes. Those after them begin anew in any case."""
    ended = finished_stages(folder)
    return [*takewhile(lambda name: name in ended or (folder / name / CHECKPOINTS).is_dir(), needed)]
