"""The command line. A mistake of the user's is one line and exit code 2, a guard's stop one line and 3, Ctrl-C 130,
SIGTERM 143, output that nobody reads 141."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from plaudit.cli import begin, data, launch, look, runs, stages
from plaudit.cli.label_copies import commands as label
from plaudit.cli.outcome import EXPECTED, UNREAD, outcome, unread, unread_says
from plaudit.run.stopping import signals_heard
from plaudit.run.streams import lenient_streams

app = typer.Typer(
    help="Classic RLHF: supervised fine-tuning, a reward model from rankings, and PPO, on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(begin.commands)
app.add_typer(stages.commands)
app.add_typer(look.commands)
app.add_typer(runs.commands)
app.add_typer(data.commands, name="data")
app.add_typer(label, name="label")
app.add_typer(launch.commands, name="launch")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"plaudit {version('plaudit')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback for every error (anywhere on the line).")
    ] = False,
) -> None:
    # `main` takes --debug out of the line before typer sees it; it is declared here for --help.
    ...


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    lenient_streams()
    code: int | str | None = 0
    ended_by: BaseException | None = None
    try:
        with signals_heard():
            app()
    except SystemExit as done:
        # typer ends every command so, and takes a closed pipe for a failure without a word.
        code, ended_by = done.code, done.__context__ if isinstance(done.__context__, BrokenPipeError) else None
    except EXPECTED as error:
        if debug:
            raise
        ended_by = error
    text = None
    if unread(ended_by):
        code, text = UNREAD, unread_says(ended_by)
    elif ended_by is not None:
        code, text = outcome(ended_by)
    if text is not None:
        rank = os.environ.get("RANK", "0")  # of several processes of one run (docs/distributed.md)
        print(text if rank == "0" else f"Rank {rank}: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
