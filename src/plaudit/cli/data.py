"""`plaudit data`: what is in data files, and any of them as canonical JSON lines."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from plaudit.errors import UserError
from plaudit.run.display import console, print_json

commands = typer.Typer(help="What is in data files, and what is wrong with it, line by line.", no_args_is_help=True)

FormatOption = Annotated[str | None, typer.Option("--format", help="Format of the rows; left out, it is detected.")]

ColumnsOption = Annotated[
    str, typer.Option("--columns", help="The file's names of our columns: prompt=question,chosen=better.")
]


# A column's name may have commas: the next pair begins where a word and = follow.
_BETWEEN = re.compile(r",(?=\s*\w+\s*=)")


def columns_of(text: str) -> dict[str, str]:
    """{our name: the file's}."""
    pairs = [part.partition("=") for part in _BETWEEN.split(text) if part.strip()]
    for ours, is_given, theirs in pairs:
        if not is_given or not ours.strip() or not theirs.strip():
            raise UserError(
                f"--columns {text!r}: write our name = the file's name, as in prompt=question,chosen=better"
            )
    given = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if len(given) < len(pairs):
        raise UserError(f"--columns {text!r}: a name of ours stands twice; write it once")
    return given


@commands.command()
def check(
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders or hub:OWNER/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures lengths; else words.")] = None,
    format: FormatOption = None,
    columns: ColumnsOption = "",
) -> None:
    """Count, measure and find what is wrong. Exit code 1 when there are errors, 0 with warnings or none."""
    from plaudit.data.audit.check import Audit
    from plaudit.view.audit_table import print_report

    audit = Audit(_token_counter(tokenizer) if tokenizer else None)
    for source in sources:
        # On stderr, and only on a terminal: --json has stdout to itself.
        with Console(stderr=True, markup=False, highlight=False).status(f"Reading {source}") as status:
            audit.add(source, format, _follow(status, source), columns_of(columns))
    report = audit.report()
    if as_json:
        print_json(report)
    else:
        print_report(report)
    if report["errors"]:
        raise typer.Exit(1)


def _follow(status: Status, source: str) -> Callable[[int], None]:
    started = time.monotonic()

    def update(rows: int) -> None:
        rate = rows / max(time.monotonic() - started, 1e-9)
        status.update(f"Reading {source}: {rows:,} rows, {rate:,.0f} rows/s")

    return update


def _token_counter(model: str) -> Callable[[Sequence[str]], list[int]]:
    from plaudit.models.load import load_tokenizer, quiet_libraries, resolve

    quiet_libraries()
    tokenizer = load_tokenizer(resolve(model))
    return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


@commands.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file, a folder or hub:OWNER/NAME.")],
    to: Annotated[Path, typer.Option("--to", help="JSONL file to write.")],
    format: FormatOption = None,
    columns: ColumnsOption = "",
    on_bad_row: Annotated[str, typer.Option(help="stop, or quarantine: set bad rows aside.")] = "stop",
) -> None:
    """Write the rows as canonical JSON lines."""
    from plaudit.data.files import convert as convert_rows

    if on_bad_row not in ("stop", "quarantine"):
        raise UserError(f"--on-bad-row {on_bad_row!r}: write stop or quarantine")
    done, quarantine = convert_rows(
        source, to, format=format, quarantine=on_bad_row == "quarantine", columns=columns_of(columns)
    )
    console.print(done.describe(), soft_wrap=True)
    aside = f", {done.bad:,} in {quarantine}" if done.bad else ""
    console.print(f"{done.rows:,} rows: {done.rows - done.bad:,} in {to}{aside}", soft_wrap=True)
