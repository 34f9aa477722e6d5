"""`plaudit label ...`. This file loads without the extra; each command asks for it before it begins."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from plaudit.errors import UserError, no_file
from plaudit.label.extra import SIGN_IN, missing_packages
from plaudit.run.branch import label_database
from plaudit.run.display import console, error_console
from plaudit.run.folder import RECIPE

label = typer.Typer(help="The labelling service: people rank, compare and write replies.", no_args_is_help=True)

SECRET = "PLAUDIT_LABEL_OIDC_SECRET"
Source = Annotated[
    Path | None, typer.Argument(metavar="[RUN_OR_FILE]", help="A run's folder, or a data file of any format.")
]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="PLAUDIT_LABEL_DATABASE",
        help="A file (SQLite) or postgresql+psycopg://USER@HOST/NAME; by default that of the run, or beside the file.",
    ),
]
Task = Annotated[
    str | None, typer.Option(help="rank, compare or write; by default rank where there are replies, else write.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; other machines reach it at 0.0.0.0.")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)]
Url = Annotated[str | None, typer.Option(help="How browsers reach it: https://HOST/PATH of a proxy.")]
Proxy = Annotated[str | None, typer.Option(help="The proxy's address, if not this machine's.")]
Issuer = Annotated[str | None, typer.Option("--oidc", help="OpenID Connect issuer by which people may sign in, too.")]
Client = Annotated[
    str | None, typer.Option("--oidc-client", help="Our id there; the secret: PLAUDIT_LABEL_OIDC_SECRET.")
]
Domains = Annotated[
    list[str] | None, typer.Option("--oidc-domain", help="Whose verified addresses get an account; repeatable.")
]


def need_extra() -> None:
    """UserError when the extra is not installed."""
    if missing := missing_packages():
        raise UserError(f"`plaudit label` needs {', '.join(missing)}: pip install 'plaudit[label]'")


def database_of(source: Path | None, database: str | None) -> str:
    """The database that is meant: the one named, else that of the run or FILE.labels.sqlite."""
    if database is not None:
        return database
    if source is None:
        raise UserError("which database? Give a run folder, a data file, or --database")
    run = (source / RECIPE).is_file()
    return label_database(source) if run else str(source.with_name(f"{source.name}.labels.sqlite"))


def provider_of(issuer: str | None, client: str | None, domains: list[str] | None) -> Any:
    """Who else may say who somebody is; None for nobody. UserError for what is missing or wrong."""
    if issuer is None:
        if client or domains:
            raise UserError("--oidc-client, --oidc-domain: whose? Give --oidc and the provider's issuer")
        return None
    if missing := missing_packages(SIGN_IN):
        raise UserError(f"--oidc needs {', '.join(missing)}: pip install 'plaudit[label,oidc]'")
    from plaudit.label.web.entrance.oidc import Provider

    secret = os.environ.get(SECRET, "")
    if not client or not secret:
        raise UserError(
            f"--oidc: give --oidc-client and the variable {SECRET}, which the provider made for this server"
        )
    provider = Provider(issuer, client, secret, tuple(domains or ()))
    if problem := provider.look():
        error_console.print(f"Warning: {problem}", soft_wrap=True)
    return provider


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
    host: Host = "127.0.0.1",
    port: Port = 8080,
    url: Url = None,
    proxy: Proxy = None,
    oidc: Issuer = None,
    oidc_client: Client = None,
    oidc_domain: Domains = None,
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
    language: Annotated[
        str | None, typer.Option(help="Of the annotators' pages: en, de, or browser, each browser's own (at first).")
    ] = None,
) -> None:
    """Serve the labelling page of a run or a data file."""
    need_extra()
    from plaudit.label.db.database import open_project, writing
    from plaudit.label.queue.items import has_items, rankings_path
    from plaudit.label.queue.settings import gold_rate_of, not_of_overlap, settle
    from plaudit.label.web import serve as service
    from plaudit.label.web.shared import aside
    from plaudit.label.web.text.pictures import with_pictures
    from plaudit.label.web.text.wording import known_language

    # Whatever can be wrong is looked at before anything is written.
    place, provider = service.Place(host, port, url, proxy), provider_of(oidc, oidc_client, oidc_domain)
    where = database_of(source, database)
    if language is not None:
        known_language(language)
    for file in (source, gold, guidelines):
        need_file(file)
    rates = {"gold_rate": gold_rate, "consistency_rate": consistency_rate}
    text = guidelines.read_text(encoding="utf-8") if guidelines else None
    with service.listen(place) as listening:
        engine = open_project(where, name or (source.stem if source is not None else "Labels"))
        with writing(engine) as connection:
            if guidelines is not None and text is not None:
                text = with_pictures(connection, text, guidelines.parent)
            given = {"overlap": overlap, "lease_minutes": lease_minutes, "guidelines": text, "plain_text": plain_text}
            settle(connection, given | rates | {"language": language})
        if overlap is not None and (others := not_of_overlap(engine, overlap)):
            said = f"--overlap {overlap} leaves {others:,} items as they are, for as many people as was asked for them"
            error_console.print(f"{said}; those of a run have its preferences.overlap", soft_wrap=True)
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
        with service.saying_what_is_kept([engine]):
            service.serve({"": engine}, place, listening, _say, provider)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


@label.command("serve-all")
def serve_all(
    projects: Annotated[
        list[str],
        typer.Argument(metavar="NAME=DATABASE ...", help="A path of the server, and what is served below it."),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    url: Url = None,
    proxy: Proxy = None,
    oidc: Issuer = None,
    oidc_client: Client = None,
    oidc_domain: Domains = None,
) -> None:
    """Serve several projects at one address, each with people and roles of its own. DATABASE is as of --database."""
    need_extra()
    from plaudit.label.db.database import open_project
    from plaudit.label.web import serve as service
    from plaudit.label.web.entrance.several import named

    place, provider = service.Place(host, port, url, proxy), provider_of(oidc, oidc_client, oidc_domain)
    found = {name: there(None, database) for name, database in named(projects).items()}
    with service.listen(place) as listening:
        engines = {name: open_project(database) for name, database in found.items()}
        with service.saying_what_is_kept(engines.values()):
            service.serve(engines, place, listening, _say, provider)


@label.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="A run's folder, or a data file.")],
    database: Database = None,
    task: Task = None,
    gold: Annotated[bool, typer.Option("--gold", help="The ranks are known answers, to check annotators.")] = False,
    name: Annotated[
        str | None, typer.Option("--for", metavar="NAME", help="The new items are for this person, and nobody else.")
    ] = None,
) -> None:
    """Put items into the database; also while it is served. Items that are there already stay as they are."""
    need_extra()
    from plaudit.label.db.database import open_project
    from plaudit.label.db.schema import TASKS
    from plaudit.label.queue.items import add_file, run_rankings

    if task is not None and task not in TASKS:
        raise UserError(f"--task {task!r}: write {', '.join(TASKS)}")
    need_file(source)
    if gold and name is not None:
        raise UserError("--for with --gold: gold items are for everybody; leave one of the two out")
    engine = open_project(database_of(source, database))
    file = run_rankings(source) if (source / RECIPE).is_file() else source
    with engine.connect() as connection:
        who = 0 if name is None else _somebody(connection, name)
    alike: list[str] = []
    added, known = add_file(engine, file, task=task, gold=gold, assigned=who, alike=alike)
    there = f", {known:,} were there already" if known else ""
    same = f", {len(alike):,} rows say the same in every reply and need nobody ({alike[0]} …)" if alike else ""
    console.print(f"{file}: {added:,} new items{there}{same}", soft_wrap=True)


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

    engine = opened(source, database)
    url = _address(engine, url)
    with writing(engine) as connection:
        token = make_invite(connection, name, role)
    console.print(f"{url}/invite/{token}", soft_wrap=True)


@label.command("invite-all")
def invite_all(
    people: Annotated[Path, typer.Argument(metavar="CSV", help="Columns name, role, quota, fields; name must be.")],
    to: Annotated[Path, typer.Option("--to", help="CSV file to write: name, role and link of each; - prints it.")],
    source: Source = None,
    database: Database = None,
    url: Annotated[str | None, typer.Option(help="How browsers reach the server, as of invite.")] = None,
) -> None:
    """Invite everybody of a CSV file, or, where a row is wrong, nobody."""
    need_extra()
    from plaudit.data.files import write_text
    from plaudit.label.db.database import writing
    from plaudit.label.invitations import invite_all, read_invitations

    if why := no_file(people):
        raise UserError(f"{people}: {why}")
    rows = read_invitations(people.read_text(encoding="utf-8"), str(people))
    engine = opened(source, database)
    base = _address(engine, url)
    with writing(engine) as connection:
        links = invite_all(connection, rows, lambda token: f"{base}/invite/{token}")
    if str(to) == "-":
        typer.echo(links.encode(), nl=False)
    else:
        write_text(to, links)
    error_console.print(f"{to}: {len(rows):,} links; each works once, for a week", soft_wrap=True)


@label.command()
def crowd(
    source: Source = None,
    database: Database = None,
    quota: Annotated[int | None, typer.Option(help="Labels that each of the crowd gives; makes a new link.")] = None,
    code: Annotated[str | None, typer.Option(help="Completion code of all; by default each has their own.")] = None,
    close: Annotated[bool, typer.Option("--close", help="Let nobody new in.")] = False,
    url: Annotated[str | None, typer.Option(help="How browsers reach the server, as of invite.")] = None,
) -> None:
    """One link for a paid crowd, with the worker's id in it. Without --quota: each one's completion code, as CSV."""
    need_extra()
    from plaudit.label.crowd import close_to_crowd, codes, open_to_crowd
    from plaudit.label.db.database import writing
    from plaudit.label.transfer.table import csv_lines

    engine = opened(source, database)
    if close and quota is not None:
        raise UserError("--close with --quota: leave one of the two out")
    with writing(engine) as connection:
        if close:
            close_to_crowd(connection)
        elif quota is None:
            typer.echo("".join(csv_lines(codes(connection))).encode(), nl=False)
        else:
            token = open_to_crowd(connection, quota, code)
            console.print(f"{_address(engine, url)}/join/{token}?worker=", soft_wrap=True)
            said = "The platform puts the worker's id at its end, such as {{%PROLIFIC_PID%}}"
            error_console.print(said, soft_wrap=True)


def _address(engine: Any, url: str | None) -> str:
    """How browsers reach the server, as it was said or as it was served last."""
    from plaudit.label.web.serve import served_at

    url = url or served_at(engine)
    if url is None:
        url = "http://127.0.0.1:8080"
        error_console.print(f"Not served yet: the link is for {url}; if it will be another address, give --url")
    return url.rstrip("/")


def _somebody(connection: Any, name: str) -> int:
    """Whose name it is; UserError for nobody's."""
    from plaudit.label.db.names import known_person

    who = known_person(connection, name)
    if who is None:
        raise UserError(f"nobody is called {name!r}; `plaudit label people` lists who is there")
    return int(who.id)


def _split(option: str, text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--{option} {text!r}: write NAME=VALUE")
    return name, value


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--quota {text!r}: write NAME=NUMBER; 0 for no limit")
    return int(text)


@label.command()
def people(
    source: Source = None,
    database: Database = None,
    disable: Annotated[str | None, typer.Option(metavar="NAME", help="Shut somebody out; their labels stay.")] = None,
    enable: Annotated[str | None, typer.Option(metavar="NAME", help="Let them in again.")] = None,
    pause: Annotated[str | None, typer.Option(metavar="NAME", help="Give somebody no more items for now.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="NAME", help="Give them items again.")] = None,
    quota: Annotated[
        str | None, typer.Option(metavar="NAME=N", help="The most labels that somebody gives; 0 for no limit.")
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(metavar="NAME=KINDS", help="The kinds of prompts that somebody is given: ann=medical 50; law."),
    ] = None,
) -> None:
    """Who may label, in which role and how much; the options change it."""
    need_extra()
    from plaudit.label.db import ledger
    from plaudit.label.db.database import snapshot, writing
    from plaudit.label.people import set_active
    from plaudit.label.queue.allowances import read_fields, set_allowance, written_fields

    engine = opened(source, database)
    for name, active in ((disable, False), (enable, True)):
        if name is None:
            continue
        with writing(engine) as connection:
            set_active(connection, _somebody(connection, name), active)
    changes: list[tuple[str, dict[str, Any]]] = []
    changes += [(whom, {"paused": on}) for whom, on in ((pause, True), (resume, False)) if whom is not None]
    if quota is not None:
        whom, value = _split("quota", quota)
        changes.append((whom, {"quota": _number(value)}))
    if fields is not None:
        whom, value = _split("fields", fields)
        changes.append((whom, {"fields": read_fields(value)}))
    for whom, change in changes:
        with writing(engine) as connection:
            set_allowance(connection, _somebody(connection, whom), **change)
    table = Table("id", "name", "role", "state", "quota", "fields")
    with snapshot(engine) as connection:
        for person in ledger.people(connection):
            here = "paused" if person.paused else "active"
            state = "disabled" if not person.active else "invited" if person.invited else here
            given = ("" if person.quota is None else str(person.quota), written_fields(person.fields))
            table.add_row(str(person.id), person.name, person.role, state, *given)
    console.print(table)
