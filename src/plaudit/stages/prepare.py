"""Before the first stage: everything that can be wrong (data, model, machine, folder) is found in seconds."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.chat import ChatFormat
from plaudit.data.files import Reading, read_demonstrations, read_labels, read_prompts, read_rankings, write_rows
from plaudit.data.formats.rows import Row
from plaudit.data.hashes import sha256_rows, sha256_text
from plaudit.data.table import DemonstrationTable
from plaudit.dist.machine import Machine, choose_machine, describe, release_memory
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import UserError
from plaudit.label.extra import missing_packages
from plaudit.models.examine import check_lengths, examine
from plaudit.models.load import check_readable, load_chat, load_tokenizer, quiet_libraries, resolve
from plaudit.records import Labelled, Message, Prompt, Ranking, Record
from plaudit.rewards.config import uses_trained
from plaudit.rewards.sources import check_sources
from plaudit.run.display import console
from plaudit.run.folder import FollowedFolder, RunFolder, refuse_another_run
from plaudit.run.provenance import code_sha256, is_among, versions
from plaudit.stages.inputs import refuse_changed
from plaudit.stages.plan import NOTHING_ASKED, Plan, plan_of
from plaudit.stages.recipe import MAY_CHANGE, Recipe
from plaudit.stages.reward.labels import divided_labels
from plaudit.stages.reward.training import divided
from plaudit.stages.sft.loop import sources_of
from plaudit.stages.turns import check_turns, dated
from plaudit.train.run import Run

DIVIDED = ("ppo",)
"""The stages whose work all processes of a run share; the first one does the others."""


@dataclass
class RunData:
    """The rows of every file that a recipe names."""

    prompts: list[Prompt]
    demonstrations: DemonstrationTable
    mixed: dict[Path, DemonstrationTable]
    rankings: list[Ranking] | None
    labels: list[Labelled] | None
    bad: list[Row] = field(default_factory=list)
    """What was set aside, where bad rows do not stop the run."""

    def by_file(self, recipe: Recipe) -> dict[Path, Iterable[Record]]:
        """The rows of each file."""
        found: dict[Path, Iterable[Record]] = {recipe.data.prompts: self.prompts}
        found |= {recipe.data.demonstrations: self.demonstrations, **self.mixed}
        if recipe.preferences.rankings is not None and self.rankings is not None:
            found[recipe.preferences.rankings] = self.rankings
        if recipe.preferences.unpaired is not None and self.labels is not None:
            found[recipe.preferences.unpaired] = self.labels
        return found

    @property
    def hashes(self) -> dict[str, str]:
        """By the rows, not by the files they stood in."""
        found = {
            "prompts": sha256_rows(prompt.as_json() for prompt in self.prompts),
            "demonstrations": self.demonstrations.sha256,
        }
        found |= {f"sft.mixture {path}": rows.sha256 for path, rows in self.mixed.items()}
        if self.rankings is not None:
            found["rankings"] = sha256_rows(ranking.as_json() for ranking in self.rankings)
        if self.labels is not None:
            found["labels"] = sha256_rows(labelled.as_json() for labelled in self.labels)
        return found


def prepare(recipe: Recipe, plan: Plan | None = None, ranks: Ranks = ALONE, data: "RunData | None" = None) -> Run:
    """Check everything that can be checked without training, and open the run folder (see `RunFolder.open`); without a
    plan that of a new run. Of several `ranks` the first checks and opens, the others follow. `data`: by `read_data`."""
    plan = plan or plan_of(recipe, set(), set(), NOTHING_ASKED)
    quiet_libraries()
    data = data or read_data(recipe)
    recipe = recipe.model_copy(update={"folder": recipe.run_folder})
    machine = choose_machine(recipe.dtype)
    model = resolve(recipe.model)
    check_readable(model)
    recipe = dated(recipe, load_tokenizer(model))
    chat = load_chat(model, recipe.data.system, recipe.data.template)
    asked = check_turns(recipe, chat, data.by_file(recipe))
    if "preferences" in plan.stages:
        _check_annotator(recipe)
    if "ppo" in plan.stages:
        recipe.ppo.check_ranks(ranks.count)
    if {"ppo", "evaluate"} & {*plan.stages} and ranks.first:
        check_sources(recipe.ppo.rewards, machine, asked)
    folder: RunFolder = FollowedFolder(recipe.run_folder)
    if ranks.first:
        resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # The exported models and room for the rest; a Hub model's size is unknown before it is fetched.
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
        need, may_change = (3 + recipe.reward.members) * weights / 1e6 + 100, plan.may_change
        in_old = plan.in_old_folder
        refuse_another_run(recipe.run_folder, resolved, resume=in_old, may_change=may_change)
        # What is `checked` is looked at file by file, under the lock (pipeline.py).
        made = not plan.checked
        if line := refuse_changed(plan.relied_on, recipe, data, recipe.run_folder, made=made):
            console.print(line, soft_wrap=True)
        _examine(recipe, plan, model, machine, chat, data)
        folder = RunFolder.open(recipe.run_folder, resolved, resume=in_old, may_change=may_change, need_mb=need)
    console.print(f"Run folder {folder.path}, {machine.device.type}, {machine.dtype_name}, {machine.threads} threads")
    if ranks.count > 1:
        console.print(f"{ranks.count} processes share the work of {', '.join(DIVIDED)}; the first does the rest")
    if machine.device.type == "cpu" and machine.dtype_name == "float32" and recipe.dtype == "auto":
        console.print("This CPU has no bfloat16 units, so the run uses float32: expect about three times the time.")
    aside = folder.path / "data" / "quarantine.jsonl"
    if ranks.first:
        aside.unlink(missing_ok=True)  # of the files as they were; they may have been mended since
    if data.bad and ranks.first:
        write_rows(aside, (row.as_json() for row in data.bad))
        console.print(f"{len(data.bad)} bad rows set aside in {aside}", soft_wrap=True)
    made_with = {
        "recipe": _must_match(recipe.model_dump(mode="json")),
        "data": {**data.hashes, "chat_template": sha256_text(chat.tokenizer.chat_template)},
        "code": code_sha256(),
        "versions": versions(),
        "machine": {**describe(machine), "ranks": ranks.count},
    }
    return Run(
        folder=folder,
        seed=recipe.seed,
        machine=machine,
        model=model,
        system=recipe.data.system,
        template=recipe.data.template,
        prompts=tuple(data.prompts),
        demonstrations=data.demonstrations,
        rankings=None if data.rankings is None else tuple(data.rankings),
        labels=None if data.labels is None else tuple(data.labels),
        mixed=data.mixed,
        checkpoints=recipe.checkpoints,
        made_with=made_with,
        ranks=ranks,
    )


def _examine(recipe: Recipe, plan: Plan, model: str, machine: Machine, chat: ChatFormat, data: RunData) -> None:
    """Try the model as the stages will, before the first of them."""
    if "sft" not in plan.stages:
        return  # what follows stands on a model that was examined
    started, lora = time.perf_counter(), {stage: recipe.lora.of(stage) for stage in ("sft", "reward", "ppo")}
    trained = {stage: settings for stage, settings in lora.items() if stage in plan.stages}
    said, limit = examine(
        model,
        machine,
        chat,
        [settings for settings in trained.values() if settings is not None],
        full_reward=trained.get("reward", lora) is None,
        rewards="reward" in plan.stages,
    )
    if limit is not None:
        new = max(recipe.sampling.of(stage).max_new_tokens for stage in ("preferences", "ppo", "evaluate"))
        check_lengths(limit, chat, ((prompt.id, prompt.messages) for prompt in data.prompts), new)
    for line in said:
        console.print(f"Model: {line}", soft_wrap=True)
    release_memory()
    if (seconds := time.perf_counter() - started) > 5:
        console.print(f"The model was examined in {seconds:.0f} s")


def read_data(recipe: Recipe) -> RunData:
    """Every file of the recipe, read and checked: splits, sources of the mixture, no held-out prompt in training."""
    bad: list[Row] = []
    prompts = read_prompts(recipe.data.prompts, _reading(recipe, recipe.data.prompts, bad))
    demonstrations = read_demonstrations(recipe.data.demonstrations, _reading(recipe, recipe.data.demonstrations, bad))
    mixed = {
        path: read_demonstrations(path, _reading(recipe, path, bad))
        for path in dict.fromkeys(source.path for source in recipe.sft.mixture)
        if path is not None
    }
    _check_splits(recipe, prompts, demonstrations)
    sources_of(recipe.sft, demonstrations, mixed)
    _check_demonstrations_held_out(recipe, prompts, {recipe.data.demonstrations: demonstrations, **mixed})
    chosen, rankings, labels = recipe.preferences, None, None
    judged: dict[Path, list[Prompt]] = {}
    if chosen.rankings:
        rankings = read_rankings(chosen.rankings, _reading(recipe, chosen.rankings, bad))
        judged[chosen.rankings] = [ranking.prompt for ranking in rankings]
    if chosen.unpaired:
        labels = read_labels(chosen.unpaired, _reading(recipe, chosen.unpaired, bad))
        judged[chosen.unpaired] = [labelled.prompt for labelled in labels]
    held_out = {prompt.messages for rows in [prompts, *judged.values()] for prompt in rows if prompt.split != "train"}
    for path, rows in judged.items():
        _check_no_leak("ranking" if path == chosen.rankings else "label", path, rows, recipe, held_out)
    if uses_trained(recipe.ppo.rewards):
        if rankings is not None:
            divided(recipe.reward, rankings, str(chosen.rankings))
        if labels is not None:
            divided_labels(labels, str(chosen.unpaired))
    return RunData(prompts, demonstrations, mixed, rankings, labels, bad)


def _check_annotator(recipe: Recipe) -> None:
    """What the annotator needs is here, and ranks as the reward model's settings ask."""
    chosen = recipe.preferences
    if chosen.annotator == "human" and (missing := missing_packages()):
        raise UserError(f"preferences.annotator=human needs {', '.join(missing)}: pip install 'plaudit[label]'")
    if not chosen.samples:
        return  # `divided` looks at the rows of files
    if recipe.reward.soft_labels:
        raise UserError(
            "reward.soft_labels=true needs votes, which only a file of rankings has; leave it out or name one "
            "(preferences.rankings)"
        )
    if recipe.reward.margin_coef > 0 and chosen.annotator == "simulated":
        raise UserError(
            f"reward.margin_coef={recipe.reward.margin_coef:g} needs rankings with a strength, which the simulated "
            "annotator does not give; leave it out or name a file of rankings (preferences.rankings)"
        )


def _reading(recipe: Recipe, path: Path, bad: list[Row]) -> Reading:
    """How a data file of the recipe is read; what was detected is printed."""
    kept = bad if recipe.data.on_bad_row == "quarantine" else None
    ignored = tuple(recipe.data.ignore_message_keys)
    return Reading(recipe.data.formats.get(path), kept, lambda line: console.print(line, soft_wrap=True), ignored)


def _check_splits(recipe: Recipe, prompts: list[Prompt], demonstrations: DemonstrationTable) -> None:
    for split in ("train", "validation", "test"):
        if not any(prompt.split == split for prompt in prompts):
            raise UserError(
                f"{recipe.data.prompts}: no prompt has split {split!r}; the run needs train, validation and test"
            )
    for trained in (True, False):
        if not ((demonstrations.splits == "train") == trained).any():
            missing = "split 'train'" if trained else "split 'validation' or 'test'"
            raise UserError(f"{recipe.data.demonstrations}: no demonstration has {missing}; SFT needs both")


def _check_demonstrations_held_out(
    recipe: Recipe, prompts: list[Prompt], files: dict[Path, DemonstrationTable]
) -> None:
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


def _must_match(values: Any, key: str = "") -> Any:
    """A resolved recipe without the keys that may change."""
    if isinstance(values, list):
        return [_must_match(value, key) for value in values]
    if not isinstance(values, dict):
        return values
    names = {name: f"{key}.{name}" if key else name for name in values}
    return {name: _must_match(values[name], whole) for name, whole in names.items() if not is_among(whole, MAY_CHANGE)}
