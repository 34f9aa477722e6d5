"""`plaudit demo`, `plaudit run` and the stages one by one: recipe and overrides in, a run folder out."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.errors import UserError

if TYPE_CHECKING:
    from plaudit.stages.plan import Flags
    from plaudit.stages.recipe import Recipe

commands = typer.Typer()

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, for example ppo.updates=10."),
]


def _run(recipe: "Recipe", *flags: "Flags") -> None:
    """The pipeline, loaded only once the recipe was read: a mistake in that is said before torch takes its seconds."""
    from plaudit.stages.pipeline import run_pipeline

    run_pipeline(recipe, *flags)


@commands.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole pipeline on the embedded default (on one core 6 minutes with bfloat16 products, 25 without)."""
    from plaudit.data.files import free_folder
    from plaudit.stages.recipe import load_recipe

    with as_file(files("plaudit.recipes")) as home:
        recipe = load_recipe(home / "demo.yaml", overrides or ())
        if recipe.folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "folder: several processes share one run, and the demo would look for a free one: folder=PATH"
            )
        if recipe.folder is None:
            recipe = recipe.model_copy(update={"folder": free_folder(recipe.run_folder)})
        _run(recipe)


@commands.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="Run this stage and those after it again; auto: from the first whose inputs changed."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped, from the last checkpoint of that stage.")
    ] = False,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="With --resume: also with other code, versions or another machine.")
    ] = False,
    copy_from: Annotated[
        Path | None,
        typer.Option("--copy-from", metavar="RUN", help="With --from: take the stages before it from another run."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="The last stage that runs; --resume goes on.")] = None,
) -> None:
    """Run a recipe: sft, preferences, reward, ppo, evaluate, report."""
    from plaudit.run.folder import ORDER
    from plaudit.stages.plan import Flags
    from plaudit.stages.recipe import load_recipe

    if inexact and (start is not None or not resume):
        raise UserError("--inexact says how --resume goes on; it does nothing without that, or beside --from")
    if copy_from is not None and start not in ORDER[1:]:
        raise UserError("--copy-from takes over the stages before --from STAGE; name one after sft")
    flags = Flags(start=start, resume=resume, inexact=inexact, copy_from=copy_from, until=until)
    _run(load_recipe(recipe, overrides or ()), flags)


@commands.command("round")
def one_more_round(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run whose last round has ended.")],
    overrides: Overrides = None,
) -> None:
    """One more round: the policy's own replies are ranked, the reward model learns from all rankings, PPO again."""
    from plaudit.stages.pipeline import one_more_round as run_it

    run_it(folder, overrides or ())


def _stage_command(name: str, text: str) -> None:
    def command(recipe: RecipePath, overrides: Overrides = None) -> None:
        from plaudit.stages.plan import Flags
        from plaudit.stages.recipe import load_recipe

        _run(load_recipe(recipe, overrides or ()), Flags(only=(name,)))

    commands.command(name, help=text)(command)


def _beside_command(name: str, text: str) -> None:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    ) -> None:
        from plaudit.stages.plan import Flags
        from plaudit.stages.recipe import load_recipe

        _run(load_recipe(recipe, overrides or ()), Flags(only=(name,), resume=resume))

    commands.command(name, help=text)(command)


_stage_command("sft", "Stage 1: fine-tune the model on demonstrations.")
_stage_command("preferences", "Stage 2: sample replies from the SFT model and rank them.")
_stage_command("reward", "Stage 3: train the reward model on the rankings.")
_stage_command("ppo", "Stage 4: train the policy against the reward model.")
_beside_command("rejection", "Beside PPO: fine-tune the SFT model on the best of its own replies.")
_beside_command("dpo", "Beside PPO: train a policy on the rankings themselves, without a reward model.")
_stage_command("baselines", "Beside PPO: best-of-n, rejection and DPO at equal KL, on the prompts of evaluate.")
_stage_command("evaluate", "Stage 5: compare SFT and PPO on held-out prompts.")
_stage_command("report", "Stage 6: write summary.json and report.html.")
