"""Commands about whole runs: status, studio, compare, replay, clean."""

from pathlib import Path
from typing import Annotated

import typer

from plaudit.errors import UserError
from plaudit.label.extra import missing_packages
from plaudit.run.display import console, print_json
from plaudit.run.stopping import Interrupted

commands = typer.Typer()

JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@commands.command()
def status(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders, or folders of them; else runs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How far runs are, what came out, and how much of the disk they take."""
    from plaudit.view.status import print_status, runs_in, status_of

    found = [status_of(folder) for folder in runs_in(folders or [Path("runs")])]
    print_json(found) if as_json else print_status(found)


@commands.command()
def studio(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders, or folders of them; else runs.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.", min=0, max=65535)] = 0,
    labels: Annotated[
        str | None, typer.Option(help="Label database that chosen replies are sent to: a file, or as in plaudit label.")
    ] = None,
    annotator: Annotated[str, typer.Option(help="Whose name the arena's labels get.")] = "(studio)",
) -> None:
    """Watch runs in a browser while they go: curves, findings, replies, single tokens; ask their policies in the arena.
    Nothing of a run is changed."""
    if missing := missing_packages():
        raise UserError(f"`plaudit studio` needs {', '.join(missing)}: pip install 'plaudit[label]'")
    from plaudit.label.db.database import open_project
    from plaudit.label.web.serve import Place, listen
    from plaudit.view.studio.server import serve
    from plaudit.view.studio.session import Labels

    for folder in folders or ():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give a run's folder, or one that holds runs")
    try:
        with listen(Place(port=port)) as listening:
            sent_to = None if labels is None else Labels(open_project(labels), annotator)
            serve(folders or [Path("runs")], listening, lambda line: console.print(line, soft_wrap=True), sent_to)
    except Interrupted as stopped:
        raise Interrupted(stopped.signum, "the studio has ended; no run was touched") from None


@commands.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    other: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of another one.")],
    as_json: JsonOption = False,
) -> None:
    """Two finished runs beside each other, and the differences of their replies with intervals."""
    from plaudit.view.compare import compare as compared
    from plaudit.view.compare import print_comparison

    found = compared(one, other)
    print_json(found) if as_json else print_comparison(found)


@commands.command()
def replay(folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run whose PPO has ended.")]) -> None:
    """PPO once more, on the replies that the run has stored: every file must come out the same. Nothing is changed."""
    from plaudit.stages.replay import replay as again

    same = again(folder)
    console.print(f"{len(same)} files of PPO came out the same, bit for bit", soft_wrap=True)


@commands.command()
def clean(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    rollouts: Annotated[bool, typer.Option("--rollouts", help="PPO's stored replies too.")] = False,
    before: Annotated[bool, typer.Option("--before", help="Results put aside while a stage runs again too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; else it is only listed.")] = False,
) -> None:
    """What of a run may go without a loss for its report, a resume or an export; with --yes it goes."""
    from plaudit.run.branch import rounds_of
    from plaudit.run.clean import clean as delete
    from plaudit.run.clean import reclaimable

    found = {one: reclaimable(one, rollouts=rollouts, before=before) for one in rounds_of(folder)}
    for one in (one for own in found.values() for one in own):
        console.print(f"{one.size / 1e6:8.1f} MB  {one.path}: {one.why}", soft_wrap=True)
    total = f"{sum(one.size for own in found.values() for one in own) / 1e6:.1f} MB"
    if not yes:
        console.print(f"{total} may go; nothing was deleted: --yes does it", soft_wrap=True)
        return
    for one_round, own in found.items():
        delete(one_round, own)
    console.print(f"{total} deleted")
