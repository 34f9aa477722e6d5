"""`plaudit label`, whole: the service's commands and those that need a model. Loads neither torch nor the extra."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from plaudit.cli.label import Database, database_of, label, need_extra
from plaudit.cli.label_transfer import export, import_, stats
from plaudit.errors import UserError
from plaudit.run.display import console

commands = label
for _command, _name in ((export, "export"), (import_, "import"), (stats, "stats")):
    label.command(_name)(_command)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


@label.command()
def sample(
    folder: RunPath,
    database: Database = None,
    model: Annotated[
        list[str] | None, typer.Option(help="sft, ppo or the folder of a checkpoint; several are mixed. [default: sft]")
    ] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="Several are mixed. [default: 1.0]", min=0.01)] = None,
    replies: Annotated[int, typer.Option(help="K: replies an item.", min=2, max=16)] = 4,
    prompts: Annotated[int, typer.Option(help="Prompts to answer.", min=1)] = 100,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Another seed gives other prompts and replies.", min=0)] = 0,
) -> None:
    """Sample replies from a run's models and put them up to be ranked; also while the page is served."""
    need_extra()
    from plaudit.label.queue.items import add_items
    from plaudit.label.serve import open_project
    from plaudit.stages.label_items import Sampling, sampled

    sampling = Sampling(
        tuple(model or ("sft",)), tuple(temperature or (1.0,)), replies, prompts, split, max_new_tokens, seed
    )
    drafts, alike = sampled(folder, sampling)
    added, known = add_items(open_project(database_of(folder, database)), drafts)
    _say(added, known, f"{alike:,} prompts gave the same reply every time" if alike else "")


@label.command()
def compare(folder: RunPath, database: Database = None) -> None:
    """Put the evaluation's replies of SFT and PPO up for a blind comparison by people."""
    need_extra()
    from plaudit.label.queue.items import add_items, compared
    from plaudit.label.serve import open_project
    from plaudit.stages.label_items import read_run

    drafts, alike = compared(folder, read_run(folder)[1])
    added, known = add_items(open_project(database_of(folder, database)), drafts)
    _say(added, known, f"{alike:,} pairs are the same reply twice and need nobody" if alike else "")


@label.command()
def order(
    folder: RunPath,
    database: Database = None,
    by: Annotated[
        str, typer.Option(help="unsure: what the reward model doubts; length: the same, most different in length.")
    ] = "unsure",
) -> None:
    """Let people see first what the run's reward model is least sure of."""
    need_extra()
    from plaudit.label.db.database import snapshot
    from plaudit.label.db.ledger import read
    from plaudit.label.queue.active import By
    from plaudit.label.queue.items import set_priorities
    from plaudit.label.serve import open_project
    from plaudit.stages.label_items import priorities

    known = {name: name for name in get_args(By)}
    if by not in known:
        raise UserError(f"--by {by!r}: write {' or '.join(known)}")
    engine = open_project(database_of(folder, database))
    with snapshot(engine) as connection:
        ledger = read(connection)
    found = priorities(folder, ledger, known[by])
    set_priorities(engine, found)
    console.print(f"{len(found):,} items in the order of the reward model's doubt", soft_wrap=True)


def _say(added: int, known: int, more: str) -> None:
    parts = [f"{added:,} new items", f"{known:,} were there already" if known else "", more]
    console.print(", ".join(part for part in parts if part), soft_wrap=True)
