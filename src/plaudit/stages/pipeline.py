"""The stages strung together: a plan is made, everything that can be wrong is looked for, the stages run."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from plaudit.data.annotator import Annotator
from plaudit.dist.machine import peaks, release_memory, start_peaks, use_threads
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import UserError
from plaudit.rewards.config import uses_trained
from plaudit.run.branch import begin_round, branch, round_folder, rounds_of, run_of
from plaudit.run.display import console
from plaudit.run.folder import CHECKPOINTS, ORDER, RECIPE, check_left, finished_stages, needed_stages, read_recipe
from plaudit.run.loggers.follow import Loggers
from plaudit.stages.baselines import loop as baselines
from plaudit.stages.dpo import loop as dpo
from plaudit.stages.evaluate import loop as evaluate
from plaudit.stages.inputs import begun, first_changed, record
from plaudit.stages.plan import AUTO, NOTHING_ASKED, READ_LATER, Flags, Plan, beside, found, plan_of
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.preferences import loop as preferences
from plaudit.stages.prepare import check_alike, divided, prepare
from plaudit.stages.recipe import SHARED, Recipe, load_recipe
from plaudit.stages.rejection import loop as rejection
from plaudit.stages.reward import loop as reward
from plaudit.stages.run_data import RunData, read_data
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run
from plaudit.view.report.write import write_report

SERVED = ("preferences", "ppo", "evaluate")
"""The stages for which servers may sample (`rollout`)."""

HELD = ("sft", "ppo")
"""The stages whose ranks may hold the base together (`distributed`)."""


def run_pipeline(recipe: Recipe, flags: Flags = NOTHING_ASKED) -> Path:
    """Run the stages that `flags` ask for (see plan.py), and the rounds after them where all were asked for; returns
    the folder of the last round."""
    ranks = Ranks.join()
    folder = _run_round(recipe, flags, ranks)
    while not flags.only and flags.until is None and recipe.rounds.number < recipe.rounds.count:
        recipe = next_round(folder, recipe.rounds.number)
        folder = _run_round(recipe, _of_later(flags, recipe.run_folder), ranks, later=True)
    return folder


def one_more_round(run: Path, overrides: Sequence[str]) -> Path:
    """The round after the last one of a run, with other keys where `overrides` say so; returns its folder. UserError
    where the last one has not ended."""
    last = rounds_of(run)[-1]
    before = read_recipe(last).get("rounds", {"number": 1, "count": 1})  # runs of before have no rounds
    count = max(before["count"], before["number"] + 1)
    recipe = next_round(last, before["number"], [f"rounds.count={count}", *overrides])
    needed = needed_stages(uses_trained(recipe.ppo.rewards), beside(load_recipe(last / RECIPE), NOTHING_ASKED))
    if left := [name for name in needed if name not in finished_stages(last)]:
        raise UserError(
            f"{last}: round {before['number']} has not ended ({left[0]} is missing); go on with "
            f"`plaudit run {last / RECIPE} --resume`"
        )
    return _run_round(recipe, Flags(resume=True), Ranks.join())


def next_round(folder: Path, number: int, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of the round after round `number`, which lies in `folder`."""
    where = json.dumps(str(round_folder(run_of(folder, number), number + 1)))
    before = load_recipe(folder / RECIPE)
    found = load_recipe(folder / RECIPE, [*overrides, f"rounds.number={number + 1}", f"folder={where}"])
    if found.rounds.goes_on and not found.rounds.moves_reference:
        if before.rounds.moves_reference:
            raise UserError(
                f"rounds.reference=sft: with start=last PPO takes over the adapter of {folder}, which stands on the "
                "policy of the round before it; set rounds.reference=last again, or rounds.start=sft"
            )
        if before.lora.of("ppo") != found.lora.of("ppo"):
            raise UserError(f"lora: with rounds.start=last PPO takes over the adapter of {folder}; leave it as it is")
    return found


def _of_later(flags: Flags, home: Path) -> Flags:
    """What is asked of a round that comes after one of which `flags` were asked: to go on; after stages that ran again,
    from what that has changed."""
    if flags.start is None or not home.exists():
        return Flags(resume=True, inexact=flags.inexact)
    return Flags(start=flags.start if flags.start in ("evaluate", "report") else AUTO)


def _run_round(recipe: Recipe, flags: Flags, ranks: Ranks, *, later: bool = False) -> Path:
    """One round: the stages that `flags` ask for; returns its folder. `later`: these processes did another before."""
    console.quiet = console.quiet or not ranks.first
    with ExitStack() as undo:
        with ranks.first_alone():
            data = read_data(recipe)
            decided = ""
            if ranks.first:
                decided = _decide(recipe, flags, data, undo, came_back=ranks.came_back and not later)
        # The first rank's word, whatever the others see in the folder: a shared one shows them old files for a while.
        ended, saved, asked = json.loads(ranks.from_first(decided))
        plan = plan_of(recipe, set(ended), set(saved), Flags(**{**asked, "only": tuple(asked["only"])}))
        for line in plan.lines:
            console.print(line)
        with ranks.first_alone():
            run = prepare(recipe, plan, ranks, data)
        undo.pop_all()
    check_alike([json.loads(text) for text in ranks.gathered(json.dumps(run.made_with))])
    run = replace(run, micro_batches=json.loads(ranks.from_first(json.dumps(dict(run.micro_batches)))))
    to = recipe.loggers if ranks.first else ()
    with run.folder, Loggers(run.folder.path, to, recipe.model_dump(mode="json")) as loggers:
        for name in plan.checked if ranks.first else ():
            check_left(run.folder.path, name, READ_LATER)
        for name in plan.stages:
            if ranks.first or name in divided(recipe):
                loggers.begin(name, resume=name == plan.from_checkpoint)
            if name in divided(recipe):
                _run_stage(name, recipe, run, plan)
            elif ranks.first:
                _run_stage(name, recipe, replace(run, ranks=ALONE), plan)
            ranks.wait()
    if flags.until is not None:
        console.print(f"Next: plaudit run {run.folder.path / RECIPE} --resume   (the stages after it)", soft_wrap=True)
    return run.folder.path


def _decide(recipe: Recipe, flags: Flags, data: RunData, undo: ExitStack, *, came_back: bool) -> str:
    """What a plan is made of, as JSON: the stages that ended, those with checkpoints, and the flags as they are once
    `--copy-from` and `--from auto` are done. `undo` has what is to be done where the run is refused."""
    home, needed = recipe.run_folder, needed_stages(uses_trained(recipe.ppo.rewards), beside(recipe, flags))
    if came_back:
        flags = Flags(only=flags.only, resume=True, inexact=flags.inexact, until=flags.until)
        console.print("The processes were started anew: the run goes on")
    if recipe.rounds.number > 1:
        console.print(f"Round {recipe.rounds.number} of {recipe.rounds.count}")
        begin_round(home, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    if flags.copy_from is not None and flags.start is not None:
        branch(flags.copy_from, home, flags.start, needed)
        undo.callback(shutil.rmtree, home)
        console.print(f"Copied from {flags.copy_from}: {', '.join(finished_stages(home))}", soft_wrap=True)
    if flags.start == AUTO:
        flags, why = found(flags, first_changed(begun(home, needed), recipe, data, home))
        console.print(why, soft_wrap=True)
    saved = [name for name in ORDER if (home / name / CHECKPOINTS).is_dir()]
    return json.dumps([[*finished_stages(home)], saved, asdict(replace(flags, copy_from=None))])


def _run_stage(name: str, recipe: Recipe, run: Run, plan: Plan) -> None:
    """One stage from its inputs to its entry in the manifest."""
    use_threads(run.ranks.local)
    if name in plan.needs:
        run.folder.require(*plan.needs[name])
    resume = name == plan.from_checkpoint
    run.folder.begin(name, resume=resume)
    run.ranks.begin()
    if run.ranks.first:
        record(name, recipe, run, run.folder.path, resume=resume)
    started = time.perf_counter()
    start_peaks(run.machine.device)
    made_with = _of_stage(name, run.made_with, recipe.rounds.number)
    ranks = replace(run.ranks, shard=recipe.distributed.shard if name in HELD else "none")
    own = replace(run, made_with=made_with, resume=resume, inexact=plan.inexact, ranks=ranks)
    with ranks.gathering():
        run_stage(name, recipe, own)
    run.folder.end(name, time.perf_counter() - started, peaks(run.machine.device))
    run.folder.drop_checkpoints(name)
    release_memory()


def _of_stage(name: str, made_with: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a stage of round `number` is made with: not the sections of those after it, nor what the shared sections say
    of them, nor how later rounds begin."""
    later = (*ORDER[ORDER.index(name) + 1 :], *(["rounds"] if number == 1 else []))
    later += () if name in SERVED else ("rollout",)
    sections = {key: value for key, value in made_with["recipe"].items() if key not in later}
    for shared in SHARED:
        stages = {stage: own for stage, own in sections[shared]["stages"].items() if stage not in later}
        sections[shared] = {**sections[shared], "stages": stages}
    return {**made_with, "recipe": sections}


def run_stage(name: str, recipe: Recipe, run: Run) -> None:
    """One stage, by name, with what the shared sections say for it."""
    run = replace(run, rollout=recipe.rollout) if name in SERVED else run
    sampling, lora, optimiser = recipe.sampling.of, recipe.lora.of, recipe.optimiser.of
    match name:
        case "sft":
            run = replace(run, sampling=sampling("sft"), lora=lora("sft"), optimiser=optimiser("sft"))
            sft.take(run) if recipe.sft.skip else sft.train(recipe.sft, run)
        case "preferences":
            preferences.collect(recipe.preferences, replace(run, sampling=sampling("preferences")))
        case "reward":
            reward.train(recipe.reward, replace(run, lora=lora("reward"), optimiser=optimiser("reward")))
        case "ppo":
            run = replace(run, sampling=sampling("ppo"), lora=lora("ppo"), optimiser=optimiser("ppo"))
            ppo.train(recipe.ppo, replace(run, max_length=recipe.sft.max_length), _gold(recipe))
        case "rejection" | "dpo":  # as PPO: its adapter, optimiser and law
            run = replace(run, sampling=sampling("ppo"), lora=lora("ppo"), optimiser=optimiser("ppo"))
            if name == "dpo":
                dpo.train(recipe.dpo, run)
            else:
                rejection.train(recipe.rejection, recipe.sft, run, recipe.ppo.rewards)
        case "evaluate":
            run = replace(run, sampling=sampling("evaluate"))
            evaluate.compare(recipe.evaluate, run, _gold(recipe), recipe.ppo.rewards)
        case "baselines":
            run = replace(run, sampling=sampling("evaluate"))
            baselines.compare(recipe.baselines, recipe.evaluate, run, _gold(recipe), recipe.ppo.rewards)
        case "report":
            write_report(run)


def _gold(recipe: Recipe) -> Annotator | None:
    """The taste that was ranked by; where nobody ranked, or people did, there is none."""
    ranked = uses_trained(recipe.ppo.rewards)
    return preferences.annotator_of(recipe.preferences, recipe.seed) if ranked else None
