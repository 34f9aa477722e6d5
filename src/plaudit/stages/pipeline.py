"""The stages strung together: a plan is made, everything that can be wrong is looked for, the stages run."""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from plaudit.data.annotator import Annotator
from plaudit.dist.machine import peaks, release_memory, start_peaks, use_threads
from plaudit.dist.ranks import ALONE, Ranks
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
from plaudit.stages.prepare import check_alike, divided, prepare
from plaudit.stages.recipe import SHARED, Recipe
from plaudit.stages.reward import loop as reward
from plaudit.stages.run_data import RunData, read_data
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run
from plaudit.view.report.write import write_report


def run_pipeline(recipe: Recipe, flags: Flags = NOTHING_ASKED) -> Path:
    """Run the stages that `flags` ask for (see plan.py); returns the run folder."""
    ranks = Ranks.join()
    console.quiet = console.quiet or not ranks.first
    with ExitStack() as undo:
        with ranks.first_alone():
            data = read_data(recipe)
            decided = _decide(recipe, flags, ranks, data, undo) if ranks.first else ""
        # The first rank's word, whatever the others see in the folder: a shared one shows them old files for a while.
        ended, saved, asked = json.loads(ranks.from_first(decided))
        plan = plan_of(recipe, set(ended), set(saved), Flags(**{**asked, "only": tuple(asked["only"])}))
        for line in plan.lines:
            console.print(line)
        with ranks.first_alone():
            run = prepare(recipe, plan, ranks, data)
        undo.pop_all()
    check_alike([json.loads(text) for text in ranks.gathered(json.dumps(run.made_with))])
    to = recipe.loggers if ranks.first else ()
    with run.folder, Loggers(run.folder.path, to, recipe.model_dump(mode="json")) as loggers:
        for name in plan.checked if ranks.first else ():
            run.folder.check(name, READ_LATER)
        for name in plan.stages:
            if ranks.first or name in divided(recipe):
                loggers.begin(name, resume=name == plan.from_checkpoint)
            if name in divided(recipe):
                _run_stage(name, recipe, run, plan)
            elif ranks.first:
                _run_stage(name, recipe, replace(run, ranks=ALONE), plan)
            ranks.wait()
    return run.folder.path


def _decide(recipe: Recipe, flags: Flags, ranks: Ranks, data: RunData, undo: ExitStack) -> str:
    """What a plan is made of, as JSON: the stages that ended, those with checkpoints, and the flags as they are once
    `--copy-from` and `--from auto` are done. `undo` has what is to be done where the run is refused."""
    home, needed = recipe.run_folder, needed_stages(uses_trained(recipe.ppo.rewards), beside(recipe, flags))
    if ranks.came_back:
        flags = Flags(only=flags.only, resume=True, inexact=flags.inexact)
        console.print("The processes were started anew: the run goes on")
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
