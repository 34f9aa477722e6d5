"""The command line. A mistake of the user's is one line and exit code 2, a guard's stop one line and 3, Ctrl-C 130,
SIGTERM 143."""

import errno
import os
import sys
from typing import Annotated

import typer

from plaudit.cli import data, look, stages
from plaudit.cli.label_transfer import commands as label
from plaudit.errors import RankLost, RunStopped, UserError
from plaudit.run.stopping import Interrupted, signals_heard

app = typer.Typer(
    help="Classic RLHF: supervised fine-tuning, a reward model from rankings, and PPO, on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(stages.commands)
app.add_typer(look.commands)
app.add_typer(data.commands, name="data")
app.add_typer(label, name="label")


@app.callback()
def _options(
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
    with signals_heard():
        try:
            app()
        except (UserError, RunStopped, RankLost, OSError, Interrupted) as error:
            if debug:
                raise
            code, text = _outcome(error)
            rank = os.environ.get("RANK", "0")  # of several processes of one run (docs/distributed.md)
            print(text if rank == "0" else f"Rank {rank}: {text}", file=sys.stderr)
            sys.exit(code)


def _outcome(error: BaseException) -> tuple[int, str]:
    go_on = "checkpoints and the stages that ended are kept; go on with `plaudit run FOLDER/recipe.yaml --resume`"
    if isinstance(error, Interrupted):
        return error.exit_code, f"Stopped: {error.saved}." if error.saved else f"Stopped. If a run was going, {go_on}."
    if isinstance(error, RankLost):
        return 4, f"Stopped: {error}"
    if isinstance(error, RunStopped):
        return 3, f"Stopped by a guard: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 2, f"Error: no space left on the disk ({error}); free some: {go_on}"
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG):
        return 2, f"Error: the disk cannot be written or read ({error}); {go_on}"
    return 2, f"Error: {error}"


if __name__ == "__main__":
    main()
