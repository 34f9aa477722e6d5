"""`plaudit label export|import|stats|sample|compare|order`: labels out and in, what they are like, items out of a run.

Loads neither torch nor the extra.
"""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from plaudit.cli.label import Database, Source, database_of, label, need_extra, need_file, opened
from plaudit.errors import UserError
from plaudit.run.display import console, error_console, print_json, stage_table

commands = label
"""The whole group: label.py's commands, then these; label_copies.py adds its own."""
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


@label.command("export")
def export(
    to: Annotated[Path, typer.Option("--to", help="File to write, JSONL or CSV; - is the standard output.")],
    source: Source = None,
    database: Database = None,
    format: Annotated[
        str, typer.Option("--format", help="rankings, comparisons, pairs, hh, demonstrations, table (CSV) or ledger.")
    ] = "rankings",
    annotator: Annotated[
        list[str] | None, typer.Option("--annotator", help="Only this person's labels; can be repeated.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this day (2026-11-23) or time on, UTC.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Up to this day, which counts, or this time, which does not.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Only items whose labels agree this far, 0 to 1.", min=0, max=1)
    ] = None,
    without_flag: Annotated[
        list[str] | None, typer.Option(help="Leave replies with this flag out; repeatable.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only prompts of this kind; repeatable.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only prompts of this split; repeatable.")] = None,
    by_source: Annotated[
        list[str] | None, typer.Option("--source", help="Only items with a reply of this source; repeatable.")
    ] = None,
    verdict: Annotated[
        list[str] | None, typer.Option(help="Only ranked, all_bad, cannot_judge or written; repeatable.")
    ] = None,
    late: Annotated[bool, typer.Option("--late", help="Also labels that came after their lease had run out.")] = False,
    aggregate: Annotated[
        str | None, typer.Option(help="One ranking an item: mean, or reliability (people weighted by it).")
    ] = None,
) -> None:
    """Write the labels for training: one consistent moment, also while people label."""
    need_extra()
    from plaudit.data.files import write_text
    from plaudit.label.db.database import snapshot
    from plaudit.label.db.ledger import read
    from plaudit.label.transfer.export import Filters, moment
    from plaudit.label.transfer.export import export as rows_of

    filters = Filters(
        annotators=tuple(annotator or ()),
        since=None if since is None else moment(since),
        until=None if until is None else moment(until, end=True),
        min_agreement=min_agreement,
        without_flags=tuple(without_flag or ()),
        late=late,
        kinds=tuple(kind or ()),
        splits=tuple(split or ()),
        sources=tuple(by_source or ()),
        verdicts=tuple(verdict or ()),
    )
    with snapshot(opened(source, database)) as connection:
        ledger = read(connection)
    done = rows_of(ledger, format, filters, aggregate)
    text = "".join(done.lines())
    if str(to) == "-":
        typer.echo(text.encode(), nl=False)  # UTF-8, as in a file, whatever the terminal's encoding is
    else:
        write_text(to, text)
    left = "; left out: " + ", ".join(f"{n:,} {why}" for why, n in done.left_out.items()) if done.left_out else ""
    error_console.print(f"{to}: {len(done.rows):,} rows{left}", soft_wrap=True)


@label.command()
def webhook(
    source: Source = None,
    database: Database = None,
    url: Annotated[str | None, typer.Option(help="Who is told when all of a file's items are done.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Tell nobody any more.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Send a message now.")] = False,
) -> None:
    """Tell another program when a batch is done; shows who is told, and the key that messages are signed with."""
    need_extra()
    import time

    from sqlalchemy import select

    from plaudit.label.db import schema
    from plaudit.label.db.database import writing
    from plaudit.label.queue.settings import settle
    from plaudit.label.transfer.webhook import checked_url, key_of, post, signed

    address = None if url is None else checked_url(url)
    if off and address:
        raise UserError("--off with --url: leave one of the two out")
    with writing(opened(source, database)) as connection:
        settle(connection, {"webhook": "" if off else address})
        row = connection.execute(select(schema.project)).one()
    console.print(f"tells {row.webhook}" if row.webhook else "tells nobody; --url says whom to tell", soft_wrap=True)
    console.print(f"key: {key_of(row.secret)}", soft_wrap=True)
    if test and row.webhook:
        problem = post(row.webhook, *signed(row.secret, {"event": "test", "project": row.name}, time.time()))
        if problem is not None:
            raise UserError(f"{row.webhook}: the message was not taken: {problem}; is it the right address?")
        console.print("the message was taken")


@label.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rankings, pairs, HH or demonstrations, with answers.")],
    source: Source = None,
    database: Database = None,
    compare: Annotated[bool, typer.Option("--compare", help="The rows are comparisons of two sources.")] = False,
    annotator: Annotated[str | None, typer.Option(help="Who labelled, where the rows do not say.")] = None,
) -> None:
    """Take labels made elsewhere into the ledger. Importing a file again changes nothing."""
    need_extra()
    from plaudit.label.db.database import open_project
    from plaudit.label.transfer.import_labels import import_labels

    need_file(file)
    engine = open_project(database_of(source, database))
    done = import_labels(engine, file, compare=compare, annotator=annotator)
    console.print(
        f"{file}: {done.labels:,} labels of {done.items:,} new items, {done.known:,} were there already",
        soft_wrap=True,
    )


@label.command("stats")
def stats(
    source: Source = None,
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the dashboard's numbers as JSON.")] = False,
) -> None:
    """Progress, people, agreement, alarms, and which source wins."""
    need_extra()
    import time

    from plaudit.label.db.database import snapshot
    from plaudit.label.db.ledger import read
    from plaudit.label.quality.dashboard import dashboard

    with snapshot(opened(source, database)) as connection:
        numbers = dashboard(read(connection, labelled=True), time.time())
    if as_json:
        print_json(numbers)
    else:
        _print(numbers)


def _print(numbers: dict[str, Any]) -> None:
    progress, agreed, compared = numbers["progress"], numbers["agreement"], numbers["compare"]
    rows: dict[str, object] = {
        "items": progress["items"],
        "labels": f"{progress['given']} of {progress['wanted']}",
        "items done": progress["done"],
        "days left": None if progress["days_left"] is None else f"{progress['days_left']:.1f}",
        "agreement of two people": _share(agreed["pairs"]),
        "Krippendorff's alpha, pairs": agreed["alpha"],
        "Krippendorff's alpha, ranks": agreed["alpha_ranks"],
        "best accuracy of a reward model": agreed["best_accuracy"],
    }
    if compared:
        rows["people prefer PPO to SFT"] = _with_interval(compared, "win_rate", 3)
        rows["the same, if replies were as long"] = _with_interval(compared["at_equal_length"], "win_rate", 3)
        rows["enough comparisons"] = _enough(compared)
    stage_table(f"Labels: {numbers['name']}", {name: "-" if value is None else value for name, value in rows.items()})
    for table in people_tables(numbers["people"]):
        console.print(table)
    if numbers["sources"]:
        sources = Table("source", "strength, 95 %", "wins", "verdicts")
        for row in numbers["sources"]:
            strength = _with_interval(row, "strength", 2)
            sources.add_row(row["source"], strength, f"{row['win_rate']:.2f}", str(row["verdicts"]))
        console.print(sources)
    for alarm in numbers["alarms"]:
        who = f"{alarm['who']}: " if alarm["who"] else ""
        console.print(f"{alarm['level'].upper()} {who}{alarm['what']}. {alarm['do']}.", soft_wrap=True)


def _enough(compared: dict[str, Any]) -> str:
    if compared["enough"] is not None:
        return "yes: neither is preferred" if compared["enough"] == "neither" else f"yes: {compared['enough'].upper()}"
    return "not yet" if compared["more"] is None else f"not yet; about {compared['more']} more labels at this rate"


def people_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Pace, biases and agreement of each person: three tables, since one would be wider than a terminal."""
    pace = Table("person", "labels", "s an item", "too fast", "ties", "all bad", "cannot judge")
    bias = Table("person", "earlier wins", "first is best", "longer wins")
    agreed = Table("person", "gold", "self", "others", "reliability")
    for row in rows:
        name, seconds = row["name"], "-" if row["seconds"] is None else f"{row['seconds']['median']:.0f}"
        rates = [_rate(row[key]) for key in ("ties", "all_bad", "cannot_judge")]
        pace.add_row(name, str(row["labels"]), seconds, _share(row["too_fast"]), *rates)
        bias.add_row(name, *(_share(row[key]) for key in ("earlier_wins", "first_is_best", "longer_wins")))
        agreed.add_row(name, *(_share(row[key]) for key in ("gold", "self", "others")), _rate(row["reliability"]))
    return [pace, bias, agreed]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(share: dict[str, float] | None) -> str:
    return "-" if share is None else f"{share['share']:.2f} ±{(share['high'] - share['low']) / 2:.2f}"


def _with_interval(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


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
    from plaudit.label.db.database import open_project
    from plaudit.label.queue.items import add_items
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
    from plaudit.label.db.database import open_project
    from plaudit.label.queue.items import add_items, compared
    from plaudit.stages.label_items import read_run

    recipe, prompts = read_run(folder)
    # As many people as the run asks for its rankings; a run without people leaves it to the project.
    overlap = recipe.preferences.overlap if recipe.preferences.annotator == "human" else None
    drafts, alike = compared(folder, prompts, overlap)
    added, known = add_items(open_project(database_of(folder, database)), drafts)
    _say(added, known, f"{alike:,} pairs are the same reply twice and need nobody" if alike else "")


@label.command()
def order(
    folder: RunPath,
    database: Database = None,
    by: Annotated[
        str,
        typer.Option(
            help="unsure: what the reward model doubts; length: the same, most different in length; max_min and "
            "delta_ucb: the largest gap of two replies, and what members disagree about it; random."
        ),
    ] = "unsure",
) -> None:
    """Let people see first what the run's reward model is least sure of."""
    need_extra()
    from plaudit.label.db.database import open_project, snapshot
    from plaudit.label.db.ledger import read
    from plaudit.label.queue.active import By
    from plaudit.label.queue.items import set_priorities
    from plaudit.stages.label_items import priorities

    known = {name: name for name in get_args(By)}
    if by not in known:
        raise UserError(f"--by {by!r}: write {' or '.join(known)}")
    engine = open_project(database_of(folder, database))
    with snapshot(engine) as connection:
        ledger = read(connection)
    doubted = priorities(folder, ledger, known[by])
    set_priorities(engine, doubted)
    console.print(f"{len(doubted):,} items in the order of the reward model's doubt", soft_wrap=True)


def _say(added: int, known: int, more: str) -> None:
    parts = [f"{added:,} new items", f"{known:,} were there already" if known else "", more]
    console.print(", ".join(part for part in parts if part), soft_wrap=True)
