"""The stages strung together. What can be wrong (data, model, folder) is found before the first starts."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.annotator import Annotator
from plaudit.data.chat import ChatFormat
from plaudit.data.files import Reading, read_demonstrations, read_prompts, read_rankings, write_rows
from plaudit.data.formats.rows import BadRow
from plaudit.data.hashes import sha256_rows
from plaudit.data.table import DemonstrationTable
from plaudit.dist.machine import Machine, choose_machine, describe, peaks, release_memory, start_peaks, use_threads
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import UserError
from plaudit.models.load import check_readable, load_tokenizer, quiet_libraries, resolve
from plaudit.records import Message, Prompt, Ranking
from plaudit.rewards.config import uses_trained
from plaudit.rewards.sources import check_sources
from plaudit.run.display import console
from plaudit.run.folder import CHECKPOINTS, STAGES, FollowedFolder, RunFolder, finished_stages, needed_stages
from plaudit.run.provenance import code_sha256, is_among, versions
from plaudit.stages.evaluate import loop as evaluate
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.preferences import loop as preferences
from plaudit.stages.recipe import MAY_CHANGE, Recipe
from plaudit.stages.reward import loop as reward
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run
from plaudit.view.report.write import write_report

# The stages whose work all processes of a run share; the first one does the others.
DIVIDED = ("ppo",)

# What a stage reads first, and the stage that makes it.
NEEDS = {
    "preferences": ("sft/model/config.json", "sft"),
    "reward": ("preferences/rankings.jsonl", "preferences"),
    "ppo": ("reward/reward.json", "reward"),
    "evaluate": ("ppo/model/config.json", "ppo"),
    "report": ("evaluate/summary.json", "evaluate"),
}
# What later stages read of the earlier ones: it is looked at when a run is resumed.
READ_LATER = (
    "sft/model", "sft/summary.json", "preferences/rankings.jsonl", "preferences/summary.json", "reward", "ppo/model",
    "ppo/rewards.json", "ppo/summary.json", "evaluate",
)  # fmt: skip
NEEDS_WITHOUT_REWARD_MODEL = {**NEEDS, "ppo": ("sft/model/config.json", "sft")}


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages a recipe needs: without `trained` in ppo.rewards no reward model, and no preferences to train it."""
    return needed_stages(uses_trained(recipe.ppo.rewards))


def prepare(
    recipe: Recipe,
    *,
    resume: bool = False,
    may_change: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    ranks: Ranks = ALONE,
) -> Run:
    """Check everything that can be checked without training, and open the run folder (see `RunFolder.open`); `stages`
    are those that will run. Of several `ranks` the first checks and opens, the others follow."""
    quiet_libraries()
    bad: list[BadRow] = []
    prompts = read_prompts(recipe.data.prompts, _reading(recipe, recipe.data.prompts_format, bad))
    demonstrations = read_demonstrations(recipe.data.demonstrations, _reading(recipe, recipe.data.format, bad))
    mixed = {
        source.path: read_demonstrations(source.path, _reading(recipe, source.format, bad))
        for source in {source.path: source for source in recipe.sft.mixture}.values()
        if source.path is not None
    }
    _check_splits(recipe, prompts, demonstrations, mixed)
    rankings = None
    if recipe.preferences.rankings:
        rankings = read_rankings(recipe.preferences.rankings, _reading(recipe, recipe.preferences.format, bad))
        ranked = [ranking.prompt for ranking in rankings]
        held_out = {prompt.messages for prompt in [*prompts, *ranked] if prompt.split != "train"}
        _check_no_leak("ranking", recipe.preferences.rankings, ranked, recipe, held_out)
    machine = choose_machine(recipe.dtype)
    model = resolve(recipe.model)
    check_readable(model)
    ChatFormat(load_tokenizer(model), recipe.data.system)
    if "ppo" in stages:
        recipe.ppo.check_ranks(ranks.count)
    if {"ppo", "evaluate"} & {*stages} and ranks.first:
        check_sources(recipe.ppo.rewards, machine)
    recipe = recipe.model_copy(update={"folder": recipe.run_folder})
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    folder = (
        RunFolder.open(
            recipe.run_folder,
            resolved,
            resume=resume,
            may_change=may_change,
            need_mb=_needed_mb(model, recipe.reward.members),
        )
        if ranks.first
        else FollowedFolder(recipe.run_folder)
    )
    console.print(f"Run folder {folder.path}, {machine.device.type}, {machine.dtype_name}, {machine.threads} threads")
    if ranks.count > 1:
        console.print(f"{ranks.count} processes share the work of {', '.join(DIVIDED)}; the first does the rest")
    if machine.device.type == "cpu" and machine.dtype_name == "float32" and recipe.dtype == "auto":
        console.print("This CPU has no bfloat16 units, so the run uses float32: expect about three times the time.")
    if bad and ranks.first:
        aside = folder.path / "data" / "quarantine.jsonl"
        write_rows(aside, (row.as_json() for row in bad))
        console.print(f"{len(bad)} bad rows set aside in {aside}", soft_wrap=True)
    made_with = _made_with(recipe, machine, prompts, demonstrations, mixed, rankings)
    made_with["machine"]["ranks"] = ranks.count
    return Run(
        folder, recipe.seed, machine, model, recipe.data.system, tuple(prompts), demonstrations,
        tuple(rankings) if rankings is not None else None, mixed, recipe.checkpoints, made_with, ranks=ranks,
    )  # fmt: skip


def _made_with(
    recipe: Recipe, machine: Machine, prompts: list[Prompt], demonstrations: DemonstrationTable,
    mixed: dict[Path, DemonstrationTable], rankings: list[Ranking] | None,
) -> dict[str, Any]:  # fmt: skip
    """See `Run.made_with`; rows of data count, not the files they stood in."""
    data = {"prompts": sha256_rows(prompt.as_json() for prompt in prompts), "demonstrations": demonstrations.sha256}
    data |= {f"sft.mixture {path}": rows.sha256 for path, rows in mixed.items()}
    data |= {} if rankings is None else {"rankings": sha256_rows(ranking.as_json() for ranking in rankings)}
    return {
        "recipe": _must_match(recipe.model_dump(mode="json")),
        "data": data,
        "code": code_sha256(),
        "versions": versions(),
        "machine": describe(machine),
    }


def _must_match(values: Any, key: str = "") -> Any:
    """A resolved recipe without the keys that may change."""
    if isinstance(values, list):
        return [_must_match(value, key) for value in values]
    if not isinstance(values, dict):
        return values
    names = {name: f"{key}.{name}" if key else name for name in values}
    return {name: _must_match(values[name], whole) for name, whole in names.items() if not is_among(whole, MAY_CHANGE)}


def _reading(recipe: Recipe, format: str | None, bad: list[BadRow]) -> Reading:
    """How a data file of the recipe is read; what was detected is printed."""
    kept = bad if recipe.data.on_bad_row == "quarantine" else None
    return Reading(format, kept, lambda line: console.print(line, soft_wrap=True))


def _check_splits(
    recipe: Recipe, prompts: list[Prompt], demonstrations: DemonstrationTable, mixed: dict[Path, DemonstrationTable]
) -> None:
    counts = {split: sum(p.split == split for p in prompts) for split in ("train", "validation", "test")}
    for split, count in counts.items():
        if count == 0:
            raise UserError(
                f"{recipe.data.prompts}: no prompt has split {split!r}; the run needs train, validation and test"
            )
    for trained in (True, False):
        if not ((demonstrations.splits == "train") == trained).any():
            missing = "split 'train'" if trained else "split 'validation' or 'test'"
            raise UserError(f"{recipe.data.demonstrations}: no demonstration has {missing}; SFT needs both")
    sft.sources_of(recipe.sft, demonstrations, mixed)
    files = {recipe.data.demonstrations: demonstrations, **mixed}
    held_out = {p.messages for p in prompts if p.split != "train"}
    for rows in files.values():
        held_out |= {row.prompt.messages for row in rows.where(rows.splits != "train")}
    for path, rows in files.items():
        train = rows.where(rows.splits == "train")
        _check_no_leak("demonstration", path, (row.prompt for row in train), recipe, held_out)


def _check_no_leak(
    what: str, path: Path, used: Iterable[Prompt], recipe: Recipe, held_out: set[tuple[Message, ...]]
) -> None:
    """No prompt that the prompts file or one of these rows' files holds out may stand in a row that is trained on."""
    for prompt in used:
        if prompt.split == "train" and prompt.messages in held_out:
            raise UserError(
                f"{path}: training {what} {prompt.id!r} has a prompt that this file or "
                f"{recipe.data.prompts} holds out: {prompt.text[:60]!r}; give it split 'test' or remove it"
            )


def _needed_mb(model: str, members: int) -> float:
    """The exported models and room for the rest; a Hub model's size is unknown before it is fetched."""
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    return (3 + members) * weights / 1e6 + 100


def run_pipeline(recipe: Recipe, *, resume: bool = False, stages: Sequence[str] = (), inexact: bool = False) -> Path:
    """Run the named `stages`; without names all, or with `resume` those that have not ended, the first of them from its
    last checkpoint (see `Run.inexact`). Returns the folder.

    In an existing folder only the sections of the stages that begin may differ from the recipe it was made with, for
    what they made before is replaced, and the keys of `MAY_CHANGE`.
    """
    ranks = Ranks.join()
    console.quiet = console.quiet or not ranks.first
    existing, named = resume or bool(stages), bool(stages)
    needed = stages_of(recipe)
    stages = stages or needed
    if resume:
        ended = finished_stages(recipe.run_folder)
        stages = needed[next((i for i, name in enumerate(needed) if name not in ended), len(needed) - 1) :]
        if stages != needed:
            console.print(f"Resuming at {stages[0]}: {', '.join(needed[: needed.index(stages[0])])} had ended")
    skipped = [name for name in STAGES if name not in needed and (not named or name in stages)]
    if skipped:
        console.print(f"Skipping {' and '.join(skipped)}: ppo.rewards has no `trained: true`, so nothing uses them")
        stages = tuple(name for name in stages if name in needed)
        if not stages:
            raise UserError(f"stage {skipped[0]}: this recipe has no use for it; add `trained: true` to ppo.rewards")
    goes_on = resume and (recipe.run_folder / stages[0] / CHECKPOINTS).is_dir()
    begin = STAGES[STAGES.index(stages[0]) + goes_on :]
    with ranks.first_alone():
        may_change = (*begin, *(MAY_CHANGE if existing else ()))  # a run of another name is another run
        run = prepare(recipe, resume=existing, may_change=may_change, stages=stages, ranks=ranks)
    needs = NEEDS if needed == STAGES else NEEDS_WITHOUT_REWARD_MODEL
    with run.folder:
        if resume and ranks.first:
            for name in needed[: needed.index(stages[0])]:
                run.folder.check(name, READ_LATER)
        for name in stages:
            if name in DIVIDED or ranks.first:
                use_threads(ranks.local if name in DIVIDED else 1)
                if name in needs:
                    run.folder.require(*needs[name])
                goes_on = resume and name == stages[0]
                run.folder.begin(name, resume=goes_on)
                started = time.perf_counter()
                start_peaks(run.machine.device)
                made_with = _of_stage(name, run.made_with)
                run_stage(name, recipe, replace(run, made_with=made_with, resume=goes_on, inexact=inexact))
                run.folder.end(name, time.perf_counter() - started, peaks(run.machine.device))
                if not recipe.checkpoints.keep_finished:
                    run.folder.drop_checkpoints(name)
                release_memory()
            ranks.wait()
    return run.folder.path


def _of_stage(name: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage is made with: not the sections of those after it."""
    later = STAGES[STAGES.index(name) + 1 :]
    return {**made_with, "recipe": {key: value for key, value in made_with["recipe"].items() if key not in later}}


def run_stage(name: str, recipe: Recipe, run: Run) -> None:
    """One stage, by name."""
    match name:
        case "sft":
            sft.run(recipe.sft, run)
        case "preferences":
            preferences.run(recipe.preferences, run)
        case "reward":
            reward.train(recipe.reward, run)
        case "ppo":
            ppo.train(recipe.ppo, run, _gold(recipe))
        case "evaluate":
            evaluate.run(recipe.evaluate, run, _gold(recipe), recipe.ppo.rewards)
        case "report":
            write_report(run)


def _gold(recipe: Recipe) -> Annotator | None:
    """The taste that was ranked by; where nobody ranked, or people did, there is none."""
    ranked = uses_trained(recipe.ppo.rewards)
    return preferences.annotator_of(recipe.preferences, recipe.seed) if ranked else None
