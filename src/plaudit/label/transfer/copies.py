"""The whole database somewhere else: a backup, what was backed up again, and a move between SQLite and PostgreSQL.

Every copy is one consistent moment, taken while people label, and is proved by the hash of its ledger: the same rows in
the same order, byte for byte, or an error.
"""

import hashlib
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, select

from plaudit.errors import UserError
from plaudit.label.db.database import connect, copy_file, migrate, open_as_it_is, snapshot, writing
from plaudit.label.db.schema import conflict, label, metadata, project

_AT_ONCE = 500
_KEPT = (
    select(*label.c["seq", "client_id", "lease", "item", "person", "body", "created", "seconds"], label.c.order)
    .add_columns(label.c.late, label.c.supersedes)
    .order_by(label.c.seq),
    select(conflict).order_by(conflict.c.id),
)
"""The ledger as every schema has had it."""


@dataclass(frozen=True)
class Copied:
    """What a copy holds: rows of the ledger, and the first 16 digits of their hash."""

    labels: int
    digest: str


def ledger_hash(connection: Connection) -> Copied:
    """SHA-256 over every row of `label` and `conflict`."""
    found, rows = hashlib.sha256(), 0
    for query in _KEPT:
        for row in connection.execute(query.execution_options(yield_per=_AT_ONCE)):
            found.update(json.dumps(list(row)).encode() + b"\n")
            rows += query is _KEPT[0]
    return Copied(rows, found.hexdigest()[:16])


def _hash_of(engine: Engine) -> Copied:
    with snapshot(engine) as connection:
        return ledger_hash(connection)


def backup(database: str, to: Path) -> Copied:
    """The database in one new file; of SQLite whatever its schema is."""
    if to.exists():
        raise UserError(f"{to}: is there already; name another file")
    part = to.with_name(f"{to.name}.part")
    part.unlink(missing_ok=True)
    if "://" in database:
        copied = move(database, str(part))
        with closing(sqlite3.connect(part)) as made:
            made.execute("PRAGMA journal_mode = DELETE")
    else:
        copy_file(Path(database), part)
        copied = _checked(part)
    part.rename(to)
    return copied


def _checked(path: Path) -> Copied:
    """What a SQLite file holds; UserError, by its name, for one that is no label database or is damaged."""
    try:
        with closing(sqlite3.connect(f"file:{path.resolve().as_posix()}?mode=ro", uri=True)) as file:
            said = file.execute("PRAGMA integrity_check(1)").fetchone()[0]
            tables = {row[0] for row in file.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a label database: {error}") from error
    if said != "ok":
        raise UserError(f"{path}: is damaged ({said}); take another backup")
    if not {"label", "conflict", "project", "alembic_version"} <= tables:
        raise UserError(f"{path}: holds no label database; name a file that `plaudit label backup` made")
    engine = connect(path)
    try:
        return _hash_of(engine)
    finally:
        engine.dispose()


def restore(file: Path, database: str, *, replace: bool) -> tuple[Copied, Path | None]:
    """The backup as `database`, and where the labels that were there before are kept.

    Only with `replace` where labels are; those of SQLite are backed up first. UserError otherwise.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    held = _checked(file)
    if "://" in database:
        return _through_a_copy(file, database), None
    there, kept = Path(database), None
    if there.exists():
        if not replace:
            raise UserError(f"{there}: is there already; --replace keeps it under another name and takes its place")
        kept = there.with_name(f"{there.name}.replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        copy_file(there, kept)
    elif left := [f"{there}{end}" for end in ("-wal", "-shm") if Path(f"{there}{end}").exists()]:
        raise UserError(f"{left[0]}: is left of another database and would be read into this one; move it away")
    there.parent.mkdir(parents=True, exist_ok=True)
    there.touch(mode=0o600)
    # Through SQLite and not over its file: what is in a -wal of before must not come back.
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(there)) as target:
        source.backup(target)
    if _checked(there) != held:
        raise UserError(
            f"{there}: does not hold what {file} does; somebody wrote to it meanwhile: stop the server first"
        )
    return held, kept


def _through_a_copy(file: Path, database: str) -> Copied:
    """Into PostgreSQL; the backup stays as it is, also where its schema is an older one."""
    copy = file.with_name(f"{file.name}.restoring")
    copy.unlink(missing_ok=True)
    copy_file(file, copy)
    try:
        engine = connect(copy)
        migrate(engine)
        engine.dispose()
        return move(str(copy), database)
    finally:
        for left in copy.parent.glob(f"{copy.name}*"):
            left.unlink()


def move(database: str, to: str) -> Copied:
    """Every row of a database in another one that is empty, of either kind. The first stays as it is."""
    source, target = open_as_it_is(database), connect(to)
    try:
        if "://" not in to:
            Path(to).parent.mkdir(parents=True, exist_ok=True)
            Path(to).touch(mode=0o600)
        migrate(target)
        with snapshot(source) as reading, writing(target) as into:
            if into.execute(select(project.c.id)).first() is not None:
                raise UserError(f"{target.url.render_as_string()}: holds a project already; name an empty database")
            for table in metadata.sorted_tables:
                query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_AT_ONCE)
                for block in reading.execute(query).partitions(_AT_ONCE):
                    into.execute(insert(table), [dict(row._mapping) for row in block])
                key = table.primary_key.columns[0]
                if into.dialect.name == "postgresql" and table.autoincrement_column is key:
                    # Rows that bring their number do not move the counter.
                    sequence = func.pg_get_serial_sequence(table.name, key.name)
                    into.execute(
                        select(func.setval(sequence, select(func.coalesce(func.max(key), 1)).scalar_subquery()))
                    )
            held, made = ledger_hash(reading), ledger_hash(into)
            if held != made:
                raise UserError(
                    f"{to}: its ledger is not that of {database} ({made.digest}, {held.digest}); report this"
                )
        return held
    finally:
        source.dispose()
        target.dispose()
