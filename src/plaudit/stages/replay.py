"""PPO once more, from what its run has stored: do its weights follow from recipe, data and sampled replies?

A copy of the stages before PPO, in a folder that goes again, is trained on the replies that the run's servers sampled;
replies of the in-process engine are sampled again, which gives the same ones. Every file that PPO left must come out
with the same SHA-256, so replay on the machine kind, with the threads and the versions of the run.

    plaudit replay RUN
"""

import shutil
import tempfile
from pathlib import Path

from plaudit.errors import RunStopped, UserError
from plaudit.rewards.config import uses_trained
from plaudit.rollout.stored import REPLAYED, SAMPLED
from plaudit.run.branch import branch
from plaudit.run.folder import RECIPE, finished_stages, needed_stages
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe

COMPARED = (".safetensors", ".jsonl")
"""Weights, rollouts, metrics, replies: the other files name folders or hold seconds."""


def replay(run: Path) -> list[str]:
    """The files that came out the same; RunStopped that names those that did not. UserError where PPO has not ended."""
    recipe = load_recipe(run / RECIPE)
    known: dict[str, str] = finished_stages(run).get("ppo", {}).get("files", {})
    if not known:
        raise UserError(f"{run}: PPO has not ended there, so there is nothing to compare a replay with")
    if recipe.rounds.number > 1:
        raise UserError(f"{run}: only the first round of a run can be replayed")
    with tempfile.TemporaryDirectory(dir=run.absolute().parent, prefix=f"{run.name}-replay-") as scratch:
        copy = Path(scratch) / "run"
        branch(run, copy, "ppo", needed_stages(uses_trained(recipe.ppo.rewards)))
        if (run / "ppo" / SAMPLED).is_dir():
            shutil.copytree(run / "ppo" / SAMPLED, copy / REPLAYED)
        run_pipeline(recipe.model_copy(update={"folder": copy, "loggers": []}), Flags(only=("ppo",)))
        again: dict[str, str] = finished_stages(copy)["ppo"]["files"]
    compared = [file for file in known if file.endswith(COMPARED) and file != "ppo/times.jsonl"]
    differ = [file for file in compared if again.get(file) != known[file]]
    if differ:
        raise RunStopped(
            f"{len(differ)} of {len(compared)} files of PPO came out otherwise, the first is {differ[0]}: another "
            "machine, other versions, or other files than the run was made with"
        )
    return compared
