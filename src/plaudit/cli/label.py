"""`plaudit label ...`. This file loads without the extra; each command asks for it before it begins."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from plaudit.errors import UserError, no_file
from plaudit.label.extra import missing_packages
from plaudit.run.display import console, error_console
from plaudit.run.folder import RECIPE

label = typer.Typer(help="The labelling service: people rank, compare and write replies.", no_args_is_help=True)

Source = Annotated[
    Path | None, typer.Argument(metavar="[RUN_OR_FILE]", help="A run's folder, or a data file of any format.")
]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="PLAUDIT_LABEL_DATABASE",
        help="A file (SQLite) or postgresql+psycopg://USER@HOST/NAME; by default beside the run or file.",
    ),
]
Task = Annotated[
    str | None, typer.Option(help="rank, compare or write; by default rank where there are replies, else write.")
]


def need_extra() -> None:
    """UserError when the extra is not installed."""
    if missing := missing_packages():
        raise UserError(f"`plaudit label` needs {', '.join(missing)}: pip install 'plaudit[label]'")


def database_of(source: Path | None, database: str | None) -> str:
    """The database that is meant: the one named, else RUN/label/labels.sqlite or FILE.labels.sqlite."""
    if database is not None:
        return database
    if source is None:
        raise UserError("which database? Give a run folder, a data file, or --database")
    run = (source / RECIPE).is_file()
    return str(source / "label" / "labels.sqlite" if run else source.with_name(f"{source.name}.labels.sqlite"))


def need_file(file: Path | None) -> None:
    """UserError when a file or folder that is named is not there: a mistyped name must not make a new database."""
    if file is not None and not file.is_dir() and (why := no_file(file, "file or folder")):
        raise UserError(f"{file}: {why}")


def opened(source: Path | None, database: str | None) -> Any:
    """The engine of a database that is there already, and is not changed by this; UserError where there is none."""
    from plaudit.label.db.database import open_as_it_is

    return open_as_it_is(there(source, database))


def there(source: Path | None, database: str | None) -> str:
    """The database that is meant; UserError where there is none."""
    where = database_of(source, database)
    if "://" not in where and not Path(where).is_file():
        raise UserError(f"{where}: no such database; `plaudit label serve` or `plaudit label add` makes it")
    return where


@label.command()
def serve(
    source: Source = None,
    database: Database = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach it at 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    url: Annotated[str | None, typer.Option(help="How browsers reach it, with a proxy: https://HOST.")] = None,
    proxy: Annotated[str | None, typer.Option(help="The proxy's address, if not this machine's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new project; by default that of the run or file.")] = None,
    task: Task = None,
    gold: Annotated[Path | None, typer.Option(help="Rankings whose answers are known: to check annotators.")] = None,
    overlap: Annotated[int | None, typer.Option(help="People an item (1 at first).", min=1, max=100)] = None,
    lease_minutes: Annotated[float | None, typer.Option(help="Minutes an item is kept (30 at first).", min=0.1)] = None,
    gold_rate: Annotated[float | None, typer.Option(help="Share of gold items (0 at first).", min=0, max=1)] = None,
    consistency_rate: Annotated[
        float | None, typer.Option(help="Share of items shown to a person again (0 at first).", min=0, max=1)
    ] = None,
    guidelines: Annotated[Path | None, typer.Option(help="Markdown file with the annotators' guidelines.")] = None,
    plain_text: Annotated[
        bool | None, typer.Option("--plain-text/--formatted", help="How texts are shown at first (formatted at first).")
    ] = None,
) -> None:
    """Serve the labelling page of a run or a data file."""
    need_extra()
    from plaudit.label.db.database import open_project, writing
    from plaudit.label.queue.items import has_items, rankings_path
    from plaudit.label.queue.settings import gold_rate_of, settle
    from plaudit.label.web import aside
    from plaudit.label.web import serve as service

    # Whatever can be wrong is looked at before anything is written.
    place = service.Place(host, port, url, proxy)
    where = database_of(source, database)
    for file in (source, gold, guidelines):
        need_file(file)
    rates = {"gold_rate": gold_rate, "consistency_rate": consistency_rate}
    text = guidelines.read_text(encoding="utf-8") if guidelines else None
    with service.listen(place) as listening:
        engine = open_project(where, name or (source.stem if source is not None else "Labels"))
        with writing(engine) as connection:
            given = {"overlap": overlap, "lease_minutes": lease_minutes, "guidelines": text, "plain_text": plain_text}
            settle(connection, given | rates)
        # A run whose annotators are people has put its replies in itself, and has no rankings before they labelled.
        waits = source is not None and (source / RECIPE).is_file() and not rankings_path(source).is_file()
        if source is not None and not (waits and has_items(engine)):
            aside.add(where, [str(source), *(["--task", task] if task else [])])
        if gold is not None:
            aside.add(where, [str(gold), "--gold"])
            if not gold_rate_of(engine):
                error_console.print(
                    "Nobody is shown a gold item: give --gold-rate, 0.05 to 0.1 is usual", soft_wrap=True
                )
        with service.saying_what_is_kept(engine):
            service.serve(engine, place, listening, lambda line: console.print(line, soft_wrap=True))


@label.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="A run's folder, or a data file.")],
    database: Database = None,
    task: Task = None,
    gold: Annotated[bool, typer.Option("--gold", help="The ranks are known answers, to check annotators.")] = False,
) -> None:
    """Put items into the database; also while it is served. Items that are there already stay as they are."""
    need_extra()
    from plaudit.label.db.database import open_project
    from plaudit.label.db.schema import TASKS
    from plaudit.label.queue.items import add_items, drafts, run_rankings

    if task is not None and task not in TASKS:
        raise UserError(f"--task {task!r}: write {', '.join(TASKS)}")
    need_file(source)
    engine = open_project(database_of(source, database))
    file = run_rankings(source) if (source / RECIPE).is_file() else source
    for _ in drafts(file, task=task, gold=gold):
        continue  # a bad row stops here, before anything is in the database
    added, known = add_items(engine, drafts(file, task=task, gold=gold))
    there = f", {known:,} were there already" if known else ""
    console.print(f"{file}: {added:,} new items{there}", soft_wrap=True)


@label.command()
def invite(
    name: Annotated[str, typer.Argument(help="Who; for somebody who is there already, a link to a new password.")],
    source: Source = None,
    database: Database = None,
    role: Annotated[str, typer.Option(help="annotator or admin.")] = "annotator",
    url: Annotated[
        str | None, typer.Option(help="How browsers reach the server; by default as it was last served.")
    ] = None,
) -> None:
    """Print a link that lets somebody in: it works once, for a week."""
    need_extra()
    from plaudit.label.db.database import writing
    from plaudit.label.people import make_invite
    from plaudit.label.web.serve import served_at

    engine = opened(source, database)
    url = url or served_at(engine)
    if url is None:
        url = "http://127.0.0.1:8080"
        error_console.print(f"Not served yet: the link is for {url}; if it will be another address, give --url")
    with writing(engine) as connection:
        token = make_invite(connection, name, role)
    console.print(f"{url.rstrip('/')}/invite/{token}", soft_wrap=True)


@label.command()
def people(
    source: Source = None,
    database: Database = None,
    disable: Annotated[str | None, typer.Option(metavar="NAME", help="Shut somebody out; their labels stay.")] = None,
    enable: Annotated[str | None, typer.Option(metavar="NAME", help="Let them in again.")] = None,
) -> None:
    """Who may label, in which role; --disable and --enable change it."""
    need_extra()
    from plaudit.label.db import ledger
    from plaudit.label.db.database import snapshot, writing
    from plaudit.label.people import set_active

    engine = opened(source, database)
    for name, active in ((disable, False), (enable, True)):
        if name is None:
            continue
        with writing(engine) as connection:
            who = next((person.id for person in ledger.people(connection) if person.name == name), None)
            if who is None:
                raise UserError(f"nobody is called {name!r}; `plaudit label people` lists who is there")
            set_active(connection, who, active)
    table = Table("id", "name", "role", "state")
    with snapshot(engine) as connection:
        for person in ledger.people(connection):
            state = "disabled" if not person.active else "invited" if person.invited else "active"
            table.add_row(str(person.id), person.name, person.role, state)
    console.print(table)
