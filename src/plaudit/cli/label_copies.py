"""`plaudit label backup|restore|move`: the whole label database somewhere else. Loads neither torch nor the extra."""

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.label import Database, Source, database_of, need_extra, there
from plaudit.cli.label_transfer import commands as commands
from plaudit.run.display import console


@commands.command()
def backup(
    to: Annotated[Path, typer.Option("--to", help="File to write; it must not be there.")],
    source: Source = None,
    database: Database = None,
) -> None:
    """Copy the whole database into one file; also while it is served."""
    need_extra()
    from plaudit.label.transfer.copies import backup

    copied = backup(there(source, database), to)
    console.print(f"{to}: {copied.labels:,} rows of the ledger, hash {copied.digest}", soft_wrap=True)


@commands.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `plaudit label backup` wrote.")],
    source: Source = None,
    database: Database = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where labels are; those are kept under another name.")
    ] = False,
) -> None:
    """Make a backup the database again. Stop the server first."""
    need_extra()
    from plaudit.label.transfer.copies import restore

    where = database_of(source, database)
    copied, kept = restore(file, where, replace=replace)
    before = f"; what was there is in {kept}" if kept else ""
    console.print(f"restored: {copied.labels:,} rows of the ledger, hash {copied.digest}{before}", soft_wrap=True)


@commands.command()
def move(
    to: Annotated[str, typer.Option("--to", help="A new file, or postgresql+psycopg://USER@HOST/NAME.")],
    source: Source = None,
    database: Database = None,
) -> None:
    """Copy the database to another kind of database, SQLite or PostgreSQL. Stop the server first."""
    need_extra()
    from plaudit.label.transfer.copies import move

    copied = move(there(source, database), to)
    said = f"moved: {copied.labels:,} rows of the ledger, hash {copied.digest}; serve it with --database"
    console.print(f"{said}. The old database stays as it is: serve it no more", soft_wrap=True)
