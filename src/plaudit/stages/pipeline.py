"""The stages strung together: a plan is made, everything that can be wrong is looked for, the stages run."""

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from plaudit.data.annotator import Annotator
from plaudit.dist.machine import peaks, release_memory, start_peaks, use_threads
from plaudit.dist.ranks import Ranks
from plaudit.rewards.config import uses_trained
from plaudit.run.branch import branch
from plaudit.run.display import console
from plaudit.run.folder import CHECKPOINTS, ORDER, finished_stages, needed_stages
from plaudit.run.loggers.follow import Loggers
from plaudit.stages.baselines import loop as baselines
from plaudit.stages.dpo import loop as dpo
from plaudit.stages.evaluate import loop as evaluate
from plaudit.stages.inputs import begun, first_changed, record
from plaudit.stages.plan import AUTO, NOTHING_ASKED, READ_LATER, Flags, Plan, beside, found, plan_of
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.preferences import loop as preferences
from plaudit.stages.prepare import DIVIDED, prepare
from plaudit.stages.recipe import SHARED, Recipe
from plaudit.stages.reward import loop as reward
from plaudit.stages.run_data import read_data
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run
from plaudit.view.report.write import write_report


def run_pipeline(recipe: Recipe, flags: Flags = NOTHING_ASKED) -> Path:
    """Run the stages that `flags` ask for (see plan.py); returns the run folder."""
    ranks = Ranks.join()
    console.quiet = console.quiet or not ranks.first
    checkpoints = {name for name in ORDER if (recipe.run_folder / name / CHECKPOINTS).is_dir()}
    home, needed = recipe.run_folder, needed_stages(uses_trained(recipe.ppo.rewards), beside(recipe, flags))
    with ranks.first_alone(), ExitStack() as undo:
        data = read_data(recipe)
        if flags.copy_from is not None and flags.start is not None and ranks.first:
            branch(flags.copy_from, home, flags.start, needed)
            undo.callback(shutil.rmtree, home)  # where the run that was to begin with it is refused
            console.print(f"Copied from {flags.copy_from}: {', '.join(finished_stages(home))}", soft_wrap=True)
        if flags.start == AUTO:
            flags, why = found(flags, first_changed(begun(home, needed), recipe, data, home))
            console.print(why, soft_wrap=True)
        plan = plan_of(recipe, finished_stages(home).keys(), checkpoints, flags)
        for line in plan.lines:
            console.print(line)
        run = prepare(recipe, plan, ranks, data)
        undo.pop_all()
    asked = recipe.loggers if ranks.first else ()
    with run.folder, Loggers(run.folder.path, asked, recipe.model_dump(mode="json")) as loggers:
        for name in plan.checked if ranks.first else ():
            run.folder.check(name, READ_LATER)
        for name in plan.stages:
            if name in DIVIDED or ranks.first:
                loggers.begin(name, resume=name == plan.from_checkpoint)
                _run_stage(name, recipe, run, plan)
            ranks.wait()
    return run.folder.path


def _run_stage(name: str, recipe: Recipe, run: Run, plan: Plan) -> None:
    """One stage from its inputs to its entry in the manifest."""
    use_threads(run.ranks.local if name in DIVIDED else 1)
    if name in plan.needs:
        run.folder.require(*plan.needs[name])
    resume = name == plan.from_checkpoint
    run.folder.begin(name, resume=resume)
    if run.ranks.first:
        record(name, recipe, run, run.folder.path, resume=resume)
    started = time.perf_counter()
    start_peaks(run.machine.device)
    own = replace(run, made_with=_of_stage(name, run.made_with), resume=resume, inexact=plan.inexact)
    run_stage(name, recipe, own)
    run.folder.end(name, time.perf_counter() - started, peaks(run.machine.device))
    run.folder.drop_checkpoints(name)
    release_memory()


def _of_stage(name: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage is made with: not the sections of those after it, nor what the shared sections say of them."""
    later = ORDER[ORDER.index(name) + 1 :]
    sections = {key: value for key, value in made_with["recipe"].items() if key not in later}
    for shared in SHARED:
        stages = {stage: own for stage, own in sections[shared]["stages"].items() if stage not in later}
        sections[shared] = {**sections[shared], "stages": stages}
    return {**made_with, "recipe": sections}


def run_stage(name: str, recipe: Recipe, run: Run) -> None:
    """One stage, by name, with what the shared sections say for it."""
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
        case "dpo":  # as PPO: its adapter, optimiser and law
            run = replace(run, sampling=sampling("ppo"), lora=lora("ppo"), optimiser=optimiser("ppo"))
            dpo.train(recipe.dpo, run)
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
