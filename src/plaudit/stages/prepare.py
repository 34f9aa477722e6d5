"""Before the first stage: everything that can be wrong (data, model, machine, folder) is found in seconds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_json, write_json, write_rows
from plaudit.data.hashes import sha256_text
from plaudit.dist.machine import Machine, choose_machine, describe, release_memory, unused_device, use_threads
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import Mistakes, UserError
from plaudit.label.extra import missing_packages
from plaudit.models.examine import Limit, check_lengths, check_replies, examine, longer_than, trained_positions
from plaudit.models.load import check_readable, load_chat, load_tokenizer, quiet_libraries, resolve
from plaudit.models.quantised import check_quantise
from plaudit.models.shapes import shape_of
from plaudit.records import Completion, Prompt
from plaudit.rewards.sources import check_sources
from plaudit.run.display import console
from plaudit.run.folder import STAGES, FollowedFolder, RunFolder, check_room, refuse_another_run
from plaudit.run.loggers.backends import opener
from plaudit.run.provenance import code_sha256, differences, is_among, versions
from plaudit.stages.inputs import refuse_changed
from plaudit.stages.lengths import cut_short, lengths_of
from plaudit.stages.memory import check_fit, here, micro_batches_of, needs_of
from plaudit.stages.plan import NOTHING_ASKED, Plan, plan_of
from plaudit.stages.recipe import MAY_CHANGE, Recipe
from plaudit.stages.run_data import RunData, read_data
from plaudit.stages.turns import check_turns, dated, say_changed
from plaudit.train.run import Run

MICRO_BATCHES = "micro_batches.json"
"""In the run folder: what a pass of each stage holds, where the recipe leaves it to the memory."""


def divided(recipe: Recipe) -> tuple[str, ...]:
    """The stages whose work all processes of a run share; the first one does the others: it waits for people, and it
    writes the report."""
    people = recipe.preferences.annotator == "human"
    return tuple(name for name in STAGES if name != "report" and not (people and name == "preferences"))


@dataclass(frozen=True)
class Looked:
    """What was found of the run that is to begin: the recipe with its day, the model, and the resolved recipe."""

    recipe: Recipe
    machine: Machine
    model: str
    chat: ChatFormat
    resolved: str
    need_mb: float
    micro_batches: dict[str, dict[str, int]] = field(default_factory=dict)
    """Stage -> tokens of a pass and of a step, where the stage chooses for the memory there is."""


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
        for name in recipe.loggers:
            opener(name)
    with mistakes:
        if "ppo" in plan.stages:
            recipe.ppo.check_ranks(ranks.count)
            recipe.ppo.check_offload(machine.device.type, full=recipe.lora.of("ppo") is None)
    with mistakes:
        _check_sharding(recipe, plan, ranks)
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
        say_changed(found.chat, data)
    with mistakes:
        if {"ppo", "evaluate", "rejection", "baselines"} & {*plan.stages} and ranks.first:
            # The longest prompt too: what a model takes, it takes of that one.
            asked += sorted(data.prompts, key=lambda prompt: sum(len(one.content) for one in prompt.messages))[-1:]
            new = max(recipe.sampling.of(stage).max_new_tokens for stage in ("ppo", "evaluate"))
            check_sources(recipe.ppo.rewards, machine, asked, new)
    if ranks.first:
        with mistakes:
            refuse_another_run(recipe.run_folder, found.resolved, resume=in_old, may_change=plan.may_change)
            check_room(recipe.run_folder, need)
        with mistakes:
            if data.prompts:  # none is a mistake that was told, and leaves no length to reckon with
                # On a CPU the ranks of a machine share its memory.
                shape = shape_of(found.model)
                device = replace(here(machine, ranks.local), parts=ranks.parts(recipe.distributed.shard))
                lengths = lengths_of(found.chat, data)
                check_fit(recipe, shape, lengths, device, plan.stages)
                needs = needs_of(recipe, shape, lengths, device, plan.stages)
                found = replace(found, micro_batches=micro_batches_of(needs, recipe))
        with mistakes:
            # What is `checked` is looked at file by file, under the lock (pipeline.py).
            made = not plan.checked
            if line := refuse_changed(plan.relied_on, recipe, data, recipe.run_folder, made=made):
                console.print(line, soft_wrap=True)
        with mistakes:
            _examine(recipe, plan, found.model, machine, found.chat, data)
    return found


def prepare(recipe: Recipe, plan: Plan | None = None, ranks: Ranks = ALONE, data: RunData | None = None) -> Run:
    """Check everything that can be checked without training, and open the run folder (see `RunFolder.open`); without a
    plan that of a new run. Of several `ranks` the first checks and opens, the others follow. `data`: by `read_data`."""
    plan = plan or plan_of(recipe, set(), set(), NOTHING_ASKED)
    _check_parts(recipe, plan, ranks)
    data = data or read_data(recipe)
    found = look(recipe, plan, ranks, data, plan.in_old_folder)
    assert found is not None
    recipe, machine, chat = found.recipe, found.machine, found.chat
    folder: RunFolder = FollowedFolder(recipe.run_folder)
    if ranks.first:
        if "sft" in plan.stages or "preferences" in plan.stages:
            lengths = lengths_of(chat, data)
            if said := cut_short(recipe, lengths):
                console.print(f"Warning: {said}", soft_wrap=True)
        folder = RunFolder.open(
            recipe.run_folder,
            found.resolved,
            resume=plan.in_old_folder,
            may_change=plan.may_change,
            need_mb=found.need_mb,
        )
    machine = replace(machine, threads=use_threads(ranks.local))  # from here on the other ranks compute too
    console.print(f"Run folder {folder.path}, {machine.device.type}, {machine.dtype_name}, {machine.threads} threads")
    if ranks.count > 1:
        shared = ", ".join(name for name in divided(recipe) if name in plan.stages)
        console.print(f"{ranks.count} processes share the work of {shared}; the first does the rest", soft_wrap=True)
    if unused := unused_device():
        console.print(f"The {unused} device is left alone: Plaudit runs on CPUs and on CUDA's GPUs (docs/models.md)")
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
    micro_batches = _micro_batches(folder.path, found.micro_batches) if ranks.first else {}
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
        labels=None if data.labels is None else tuple(data.labels),
        mixed=data.mixed,
        checkpoints=recipe.checkpoints,
        rounds=recipe.rounds,
        quantise=recipe.quantise,
        made_with=made_with,
        ranks=ranks,
        micro_batches=micro_batches,
    )


def _micro_batches(home: Path, found: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Stage -> tokens of a pass at most. A run keeps those it began with, in home/micro_batches.json: with others its
    sums would round otherwise, and a run that goes on would not be the unbroken one, bit for bit."""
    file = home / MICRO_BATCHES
    before = read_json(file) if file.is_file() else {}
    kept = {stage: old for stage, old in before.items() if stage not in found or old["step"] == found[stage]["step"]}
    for stage in sorted(kept.keys() & found.keys()):
        then, now = kept[stage]["tokens"], found[stage]["tokens"]
        if then > now:
            console.print(
                f"{stage} stays at passes of {then:,} tokens, as the run began, though there is room for {now:,} now; "
                "they are halved if memory runs out",
                soft_wrap=True,
            )
    both = {**found, **kept}
    if both != before:
        write_json(file, both)
    if parts := [f"{stage} {row['tokens']:,} of {row['step']:,}" for stage, row in both.items() if _parted(row)]:
        console.print(f"Steps in several passes, for the memory that was free (tokens): {', '.join(parts)}")
    return {stage: row["tokens"] for stage, row in both.items()}


def _parted(row: Mapping[str, int]) -> bool:
    return row["tokens"] < row["step"]


def check_alike(made_with: Sequence[Mapping[str, Any]]) -> None:
    """UserError where a rank has another recipe, data, code or versions than the first one."""
    first, *others = ({**one, "machine": None} for one in made_with)
    for rank, other in enumerate(others, start=1):
        if changed := differences(first, other):
            raise UserError(
                f"rank {rank} has not what rank 0 has: {'; '.join([*changed.values()][:5])}; all processes of a run "
                "need the same recipe, files and version of plaudit: put them where every machine reads them"
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
        copy=recipe.ppo.sampling_copy or "ppo" not in plan.stages,
        how=recipe.quantise,
    )
    said += _check_lengths(recipe, limit, trained_positions(model), chat, data)
    for line in said:
        console.print(f"Model: {line}", soft_wrap=True)
    release_memory()
    if (seconds := time.perf_counter() - started) > 5:
        console.print(f"The model was examined in {seconds:.0f} s")


def _check_lengths(
    recipe: Recipe, most: Limit | None, trained: int | None, chat: ChatFormat, data: RunData
) -> list[str]:
    """UserError for a row that is longer than the `most` positions there may be; where there may be any number, what is
    to be said of rows longer than those that the model was `trained` on."""
    limit = trained if most is None else most.positions
    if limit is None:
        return []
    new = max(recipe.sampling.of(stage).max_new_tokens for stage in ("preferences", "ppo", "evaluate"))
    prompts = [(prompt.id, prompt.messages) for prompt in data.prompts]
    tables = (data.demonstrations, *data.mixed.values()) if recipe.sft.max_length > limit else ()
    rows = chain(
        ((row.prompt.id, row.prompt.messages, Completion(row.completion)) for table in tables for row in table),
        ((one.prompt.id, one.prompt.messages, reply) for one in data.rankings or () for reply in one.replies),
        ((one.prompt.id, one.prompt.messages, Completion(one.completion)) for one in data.labels or ()),
    )
    if most is not None:
        check_lengths(most, chat, prompts, new)
        check_replies(most, chat, rows)
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


def _held(recipe: Recipe, plan: Plan) -> tuple[bool, bool]:
    """Whether SFT and whether PPO are to come, whose ranks may hold the base together."""
    return "sft" in plan.stages and not recipe.sft.skip, "ppo" in plan.stages


def _check_parts(recipe: Recipe, plan: Plan, ranks: Ranks) -> None:
    """UserError where ranks shall hold the base together and one would hold it all. Of a run alone: to look at its
    recipe before it, one process is enough."""
    how = recipe.distributed.shard
    if how != "none" and any(_held(recipe, plan)) and ranks.parts(how) == 1:
        raise UserError(
            f"distributed.shard={how}: there is one rank to hold it; start several (docs/distributed.md), or set it "
            "to none"
        )


def _check_sharding(recipe: Recipe, plan: Plan, ranks: Ranks) -> None:
    """UserError where ranks cannot hold the base together, or would hold it all beside their parts."""
    if (how := recipe.distributed.shard) == "none" or not any(_held(recipe, plan)):
        return
    sft, ppo = _held(recipe, plan)
    for wrong, why in (
        (ranks.count % ranks.local != 0, "the machines have unequal numbers of ranks; start as many on each"),
        (recipe.quantise is not None, f"quantise={recipe.quantise} has bits that are not divided; set one of the two"),
        (sft and recipe.lora.of("sft") is None, "lora.stages.sft=null trains the base; give it an adapter"),
        (ppo and recipe.lora.of("ppo") is None, "lora.stages.ppo=null trains the base; give it an adapter"),
        (sft and recipe.sft.samples > 0, "sample replies need a whole copy of the model; set sft.samples=0"),
        (ppo and recipe.rollout.engine != "vllm", "every rank would sample from a whole copy; set rollout.engine=vllm"),
    ):
        if wrong:
            raise UserError(f"distributed.shard={how}: {why}")


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


def _must_match(values: Any, key: str = "") -> Any:
    """A resolved recipe without the keys that may change."""
    if isinstance(values, list):
        return [_must_match(value, key) for value in values]
    if not isinstance(values, dict):
        return values
    names = {name: f"{key}.{name}" if key else name for name in values}
    return {name: _must_match(values[name], whole) for name, whole in names.items() if not is_among(whole, MAY_CHANGE)}
