"""`plaudit label export|import|stats`: labels out and in, and what they are like. Loads without the extra."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from plaudit.cli.label import Database, Source, database_of, need_extra, need_file, opened
from plaudit.run.display import console, error_console, stage_table

# The options of `export`, as its parameters.
Names = Annotated[list[str] | None, typer.Option("--annotator", help="Only this person's labels; can be repeated.")]


def export(
    to: Annotated[Path, typer.Option("--to", help="JSONL file to write; - is the standard output.")],
    source: Source = None,
    database: Database = None,
    format: Annotated[
        str, typer.Option("--format", help="rankings, comparisons, pairs, hh, demonstrations or ledger.")
    ] = "rankings",
    annotator: Names = None,
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
    )
    with snapshot(opened(source, database)) as connection:
        ledger = read(connection)
    found = rows_of(ledger, format, filters, aggregate)
    text = "".join(found.lines())
    if str(to) == "-":
        typer.echo(text, nl=False)
    else:
        write_text(to, text)
    left = "; left out: " + ", ".join(f"{n:,} {why}" for why, n in found.left_out.items()) if found.left_out else ""
    error_console.print(f"{to}: {len(found.rows):,} rows{left}", soft_wrap=True)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rankings, pairs, HH or demonstrations, with answers.")],
    source: Source = None,
    database: Database = None,
    compare: Annotated[bool, typer.Option("--compare", help="The rows are comparisons of two sources.")] = False,
    annotator: Annotated[str | None, typer.Option(help="Who labelled, where the rows do not say.")] = None,
) -> None:
    """Take labels made elsewhere into the ledger. Importing a file again changes nothing."""
    need_extra()
    from plaudit.label.serve import open_project
    from plaudit.label.transfer.import_labels import import_labels

    need_file(file)
    engine = open_project(database_of(source, database))
    done = import_labels(engine, file, compare=compare, annotator=annotator)
    console.print(
        f"{file}: {done.labels:,} labels of {done.items:,} new items, {done.known:,} were there already",
        soft_wrap=True,
    )


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
        found = dashboard(read(connection), time.time())
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    progress, agreed = found["progress"], found["agreement"]
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
    if found["compare"]:
        one = found["compare"]
        rows["people prefer PPO to SFT"] = f"{one['win_rate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
    stage_table(f"Labels: {found['name']}", {name: "-" if value is None else value for name, value in rows.items()})
    for table in people_tables(found["people"]):
        console.print(table)
    if found["sources"]:
        sources = Table("source", "strength, 95 %", "wins", "verdicts")
        for row in found["sources"]:
            strength = f"{row['strength']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            sources.add_row(row["source"], strength, f"{row['win_rate']:.2f}", str(row["verdicts"]))
        console.print(sources)
    for alarm in found["alarms"]:
        who = f"{alarm['who']}: " if alarm["who"] else ""
        console.print(f"{alarm['level'].upper()} {who}{alarm['what']}. {alarm['do']}.", soft_wrap=True)


def people_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Pace, biases and agreement of each person: three tables, since one would be wider than a terminal."""
    pace = Table("person", "labels", "s an item", "too fast", "ties", "all bad", "cannot judge")
    bias = Table("person", "earlier wins", "first is best", "longer wins")
    agreed = Table("person", "gold", "self", "others", "reliability")
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']['median']:.0f}"
        plain = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("ties", "all_bad", "cannot_judge")]
        pace.add_row(row["name"], str(row["labels"]), seconds, _share(row["too_fast"]), *plain)
        bias.add_row(row["name"], *(_share(row[key]) for key in ("earlier_wins", "first_is_best", "longer_wins")))
        known = "-" if row["reliability"] is None else f"{row['reliability']:.2f}"
        agreed.add_row(row["name"], *(_share(row[key]) for key in ("gold", "self", "others")), known)
    return [pace, bias, agreed]


def _share(share: dict[str, float] | None) -> str:
    return "-" if share is None else f"{share['share']:.2f} ±{(share['high'] - share['low']) / 2:.2f}"
