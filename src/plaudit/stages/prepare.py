"""Before the first stage: everything that can be wrong (data, model, machine, folder) is found in seconds."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.chat import ChatFormat
from plaudit.data.files import Reading, read_demonstrations, read_prompts, read_rankings, write_rows
from plaudit.data.formats.rows import SPLITS, Row
from plaudit.data.hashes import sha256_rows, sha256_text
from plaudit.data.splits import names_split, split_of
from plaudit.data.table import DemonstrationTable
from plaudit.dist.machine import Machine, choose_machine, describe, release_memory
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import Mistakes, UserError
from plaudit.label.extra import missing_packages
from plaudit.models.examine import check_lengths, check_replies, examine, longer_than, trained_positions
from plaudit.models.load import check_readable, load_chat, load_tokenizer, quiet_libraries, resolve
from plaudit.models.quantised import check_quantise
from plaudit.records import Completion, Message, Prompt, Ranking, Record
from plaudit.rewards.config import uses_trained
from plaudit.rewards.sources import check_sources
from plaudit.run.display import console
from plaudit.run.folder import FollowedFolder, RunFolder, check_room, refuse_another_run
from plaudit.run.provenance import code_sha256, is_among, versions
from plaudit.stages.inputs import refuse_changed
from plaudit.stages.lengths import cut_short, lengths_of
from plaudit.stages.plan import NOTHING_ASKED, Plan, plan_of
from plaudit.stages.recipe import MAY_CHANGE, Recipe
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
    bad: list[Row] = field(default_factory=list)
    """What was set aside, where bad rows do not stop the run."""

    def by_file(self, recipe: Recipe) -> dict[Path, Iterable[Record]]:
        """The rows of each file."""
        found: dict[Path, Iterable[Record]] = {recipe.data.prompts: self.prompts}
        own = {} if recipe.data.demonstrations is None else {recipe.data.demonstrations: self.demonstrations}
        for path, rows in (own | self.mixed).items():
            found[path] = rows
        if self.rankings:
            # Of several files the first stands for all: their rows are one list.
            found[recipe.preferences.rankings[0]] = self.rankings
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
        return found


@dataclass(frozen=True)
class Looked:
    """What was found of the run that is to begin: the recipe with its day, the model, and the resolved recipe."""

    recipe: Recipe
    machine: Machine
    model: str
    chat: ChatFormat
    resolved: str
    need_mb: float


def look(
    recipe: Recipe, plan: Plan, ranks: Ranks, data: RunData, in_old: bool, mistakes: Mistakes | None = None
) -> Looked | None:
    """Look at everything that can be wrong with a run beside its rows; nothing is written. None where `mistakes`
    gather and the model is not there. `in_old`: whether the run's folder may hold this run already."""
    mistakes = mistakes or Mistakes()
    quiet_libraries()
    recipe = recipe.model_copy(update={"folder": recipe.run_folder})
    machine, found, asked = choose_machine(recipe.dtype), None, list[Prompt]()
    with mistakes:
        if "preferences" in plan.stages:
            _check_annotator(recipe)
    with mistakes:
        if "ppo" in plan.stages:
            recipe.ppo.check_ranks(ranks.count)
    with mistakes:
        model = resolve(recipe.model)
        check_readable(model)
        check_quantise(recipe.quantise)
        recipe = dated(recipe, load_tokenizer(model))
        chat = load_chat(model, recipe.data.system, recipe.data.template)
        resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # The exported models and room for the rest; a Hub model's size is unknown before it is fetched.
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
        need = (3 + recipe.reward.members) * weights / 1e6 + 100
        found = Looked(recipe, machine, model, chat, resolved, need)
    if found is None:
        return None
    with mistakes:
        asked = check_turns(recipe, found.chat, data.by_file(recipe))
    with mistakes:
        if {"ppo", "evaluate"} & {*plan.stages} and ranks.first:
            check_sources(recipe.ppo.rewards, machine, asked)
    if ranks.first:
        with mistakes:
            refuse_another_run(recipe.run_folder, found.resolved, resume=in_old, may_change=plan.may_change)
            check_room(recipe.run_folder, need)
        with mistakes:
            # What is `checked` is looked at file by file, under the lock (pipeline.py).
            made = not plan.checked
            if line := refuse_changed(plan.relied_on, recipe, data, recipe.run_folder, made=made):
                console.print(line, soft_wrap=True)
        with mistakes:
            _examine(recipe, plan, found.model, machine, found.chat, data)
    return found


def prepare(recipe: Recipe, plan: Plan | None = None, ranks: Ranks = ALONE, data: "RunData | None" = None) -> Run:
    """Check everything that can be checked without training, and open the run folder (see `RunFolder.open`); without a
    plan that of a new run. Of several `ranks` the first checks and opens, the others follow. `data`: by `read_data`."""
    plan = plan or plan_of(recipe, set(), set(), NOTHING_ASKED)
    data = data or read_data(recipe)
    found = look(recipe, plan, ranks, data, plan.in_old_folder)
    assert found is not None
    recipe, machine, chat = found.recipe, found.machine, found.chat
    folder: RunFolder = FollowedFolder(recipe.run_folder)
    if ranks.first:
        if "sft" in plan.stages or "preferences" in plan.stages:
            lengths = lengths_of(chat, data.prompts, data.demonstrations, data.rankings)
            if said := cut_short(recipe, lengths):
                console.print(f"Warning: {said}", soft_wrap=True)
        folder = RunFolder.open(
            recipe.run_folder,
            found.resolved,
            resume=plan.in_old_folder,
            may_change=plan.may_change,
            need_mb=found.need_mb,
        )
    console.print(f"Run folder {folder.path}, {machine.device.type}, {machine.dtype_name}, {machine.threads} threads")
    if ranks.count > 1:
        console.print(f"{ranks.count} processes share the work of {', '.join(DIVIDED)}; the first does the rest")
    if machine.device.type == "cpu" and machine.dtype_name == "float32" and recipe.dtype == "auto":
        console.print("This CPU has no bfloat16 units, so the run uses float32: expect about three times the time.")
    elif machine.dtype_name == "float32" and recipe.dtype == "auto":
        console.print(
            "This GPU has no bfloat16 units, so the run uses float32, which takes twice the memory of 16 bits; float16 "
            "is not used, because its gradients overflow"
        )
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
        model=found.model,
        system=recipe.data.system,
        template=recipe.data.template,
        prompts=tuple(data.prompts),
        demonstrations=data.demonstrations,
        rankings=None if data.rankings is None else tuple(data.rankings),
        mixed=data.mixed,
        checkpoints=recipe.checkpoints,
        quantise=recipe.quantise,
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
        recompute=any(part.gradient_checkpointing for part in (recipe.sft, recipe.reward, recipe.ppo)),
        how=recipe.quantise,
    )
    said += _check_lengths(recipe, limit, trained_positions(model), chat, data)
    for line in said:
        console.print(f"Model: {line}", soft_wrap=True)
    release_memory()
    if (seconds := time.perf_counter() - started) > 5:
        console.print(f"The model was examined in {seconds:.0f} s")


def _check_lengths(
    recipe: Recipe, learnt: int | None, trained: int | None, chat: ChatFormat, data: RunData
) -> list[str]:
    """UserError for a row that is longer than the positions that were `learnt`; where a model computes them, what is to
    be said of rows longer than those it was `trained` on."""
    limit = trained if learnt is None else learnt
    if limit is None:
        return []
    new = max(recipe.sampling.of(stage).max_new_tokens for stage in ("preferences", "ppo", "evaluate"))
    prompts = [(prompt.id, prompt.messages) for prompt in data.prompts]
    tables = (data.demonstrations, *data.mixed.values()) if recipe.sft.max_length > limit else ()
    rows = chain(
        ((row.prompt.id, row.prompt.messages, Completion(row.completion)) for table in tables for row in table),
        ((one.prompt.id, one.prompt.messages, reply) for one in data.rankings or () for reply in one.replies),
    )
    if learnt is not None:
        check_lengths(learnt, chat, prompts, new)
        check_replies(learnt, chat, rows)
        return []
    found = [length + new for _, length in longer_than(limit - new, chat, ((*prompt, None) for prompt in prompts))]
    found += [length for _, length in longer_than(limit, chat, rows)]
    if not found:
        return []
    said = (
        f"{len(found)} of the rows have more tokens than the {limit} positions it was trained on (the longest "
        f"{max(found)}, sampling.max_new_tokens={new} behind a prompt counted); what it writes there may be poor"
    )
    return [said]


def read_data(recipe: Recipe, mistakes: Mistakes | None = None) -> RunData:
    """Every file of the recipe, read and checked: splits, sources of the mixture, no held-out prompt in training. With
    `mistakes` that gather, a file that cannot be read is as one without rows, and bad rows are set aside."""
    mistakes, bad, data = mistakes or Mistakes(), list[Row](), recipe.data
    named, by_hash = _divided(recipe)
    aside = bad if mistakes.gather or data.on_bad_row == "quarantine" else None
    prompts, tables, rankings = list[Prompt](), dict[Path, DemonstrationTable](), list[Ranking]()
    with mistakes:
        if by_hash is None and (dead := data.given("validation", "test")):
            raise UserError(f"data.{dead[0]} does nothing: {named[0]} names splits, which data.split=auto passes over")
    with mistakes:
        prompts = read_prompts(data.prompts, _reading(recipe, data.prompts, aside, by_hash))
        _check_splits(data.prompts, prompts)
    # A file that names no split, where others do, is divided too; a mixture's own files are for training.
    divided_too = {data.demonstrations, *recipe.preferences.rankings} - {*named} if data.split is None else set()

    def split_by(path: Path) -> Callable[[Prompt], str] | None:
        return by_hash or (_as_known(recipe, prompts, tables) if path in divided_too else None)

    demonstrated = [path for path in recipe.demonstrated if path is not None]
    for path in dict.fromkeys(demonstrated):
        with mistakes:
            tables[path] = read_demonstrations(path, _reading(recipe, path, aside, split_by(path)))
    own = tables.get(data.demonstrations or Path(), DemonstrationTable.of([]))
    mixed = {path: tables[path] for path in demonstrated[data.demonstrations is not None :] if path in tables}
    if len(tables) == len({*demonstrated}) and not recipe.sft.skip:
        with mistakes:
            _check_demonstrated(recipe, own)
            sources_of(recipe.sft, own, mixed)
    with mistakes:
        _check_demonstrations_held_out(recipe, prompts, tables)
    with mistakes:
        for path in recipe.preferences.rankings:
            rankings += read_rankings(path, _reading(recipe, path, aside, split_by(path)))
        _check_rankings(recipe, prompts, rankings)
    if by_hash is not None and prompts:
        counts = Counter(prompt.split for prompt in prompts)
        said = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        console.print(f"Prompts divided by a hash of each (data.split): {said}")
    return RunData(prompts, own, mixed, rankings if recipe.preferences.rankings else None, bad)


def prompts_of(recipe: Recipe) -> list[Prompt]:
    """The prompts of a recipe as its runs read them, without a word."""
    aside = list[Row]() if recipe.data.on_bad_row == "quarantine" else None
    reading = _reading(recipe, recipe.data.prompts, aside, _divided(recipe)[1])
    return read_prompts(recipe.data.prompts, replace(reading, say=lambda line: None))


def _divided(recipe: Recipe) -> tuple[list[Path], Callable[[Prompt], str] | None]:
    """The files that name splits, and how prompts are divided by their hash; None where the rows' splits stay."""
    data = recipe.data
    named = [path for path in dict.fromkeys(recipe.files) if names_split(path, data.columns.get(path))]
    if data.split == "rows" or (data.split is None and named):
        return named, None
    return named, lambda prompt: split_of(prompt.messages, data.validation, data.test)


def _as_known(
    recipe: Recipe, prompts: list[Prompt], tables: Mapping[Path, DemonstrationTable]
) -> Callable[[Prompt], str]:
    """For a file that names no split, where others do: that of the same prompt there, else train or validation by its
    hash."""
    known = {prompt.messages: prompt.split for prompt in prompts}
    for rows in tables.values():
        known |= {row.prompt.messages: row.prompt.split for row in rows.where(rows.splits != "train")}
    share = recipe.data.validation
    return lambda prompt: known.get(prompt.messages) or split_of(prompt.messages, share, 0)


def _check_rankings(recipe: Recipe, prompts: list[Prompt], rankings: list[Ranking]) -> None:
    if not rankings:
        return
    where = ", ".join(map(str, recipe.preferences.rankings))
    ranked = [ranking.prompt for ranking in rankings]
    held_out = {prompt.messages for prompt in [*prompts, *ranked] if prompt.split != "train"}
    _check_no_leak("ranking", where, ranked, recipe, held_out)
    if uses_trained(recipe.ppo.rewards) and recipe.preferences.annotator != "human":
        divided(recipe.reward, rankings, where)


def _check_annotator(recipe: Recipe) -> None:
    """What the annotator needs is here, and ranks as the reward model's settings ask."""
    chosen = recipe.preferences
    if chosen.annotator == "human" and (missing := missing_packages()):
        raise UserError(f"preferences.annotator=human needs {', '.join(missing)}: pip install 'plaudit[label]'")
    if chosen.rankings:
        return  # `divided` looks at its rows
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


def _reading(recipe: Recipe, path: Path, bad: list[Row] | None, split: Callable[[Prompt], str] | None) -> Reading:
    """How a data file of the recipe is read; what was detected is printed."""
    data = recipe.data
    return Reading(
        data.formats.get(path),
        bad,
        lambda line: console.print(line, soft_wrap=True),
        tuple(data.ignore_message_keys),
        data.columns.get(path, {}),
        split,
    )


_TO_DIVIDE = "give some rows that split, or set data.split=auto, by which a hash of the prompt divides the rows"


def _check_splits(path: Path, prompts: list[Prompt]) -> None:
    for split in SPLITS:
        if not any(prompt.split == split for prompt in prompts):
            raise UserError(
                f"{path}: no prompt has split {split!r}; the run needs train, validation and test; {_TO_DIVIDE}"
            )


def _check_demonstrated(recipe: Recipe, demonstrations: DemonstrationTable) -> None:
    for trained in (True, False):
        if not ((demonstrations.splits == "train") == trained).any():
            missing = "split 'train'" if trained else "split 'validation' or 'test'"
            raise UserError(
                f"{recipe.data.demonstrations}: no demonstration has {missing}; SFT needs both; {_TO_DIVIDE}"
            )


def _check_demonstrations_held_out(
    recipe: Recipe, prompts: list[Prompt], files: Mapping[Path, DemonstrationTable]
) -> None:
    held_out = {p.messages for p in prompts if p.split != "train"}
    for rows in files.values():
        held_out |= {row.prompt.messages for row in rows.where(rows.splits != "train")}
    for path, rows in files.items():
        train = rows.where(rows.splits == "train")
        _check_no_leak("demonstration", str(path), (row.prompt for row in train), recipe, held_out)


def _check_no_leak(
    what: str, path: str, used: Iterable[Prompt], recipe: Recipe, held_out: set[tuple[Message, ...]]
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
