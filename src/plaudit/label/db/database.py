"""One database, opened safely: SQLite or PostgreSQL, its settings, and its schema brought up to date.

SQLite: write-ahead log, synchronous=FULL (a commit is on the disk when it returns), a busy timeout, foreign keys, and
transactions that we begin ourselves (`writing` ones with BEGIN IMMEDIATE, so that no reader has to become a writer).
PostgreSQL: synchronous_commit on, and timeouts, so that a request never hangs on a lost server.
"""

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from plaudit.errors import UserError
from plaudit.label.db.schema import metadata, project

BUSY_SECONDS = 5
FLAGS = ("unsafe", "untrue", "too long")
GUIDELINES = (
    "Read the conversation, then every reply to the end. Say which reply is better: of two, choose one; of more, give "
    "each its place.\n\n"
    "A good reply does what was asked, is true, and is safe. Length is no merit of its own. Replies that are equally "
    "good may share a rank. If all of them are bad, say so; if you cannot judge them, say that: both are answers, too."
)
_STATEMENT_SECONDS = 20
_LOCK_NUMBER = 0x706C6175  # any number of our own, for PostgreSQL's advisory lock


class Raced(RuntimeError):
    """Another session was first: the transaction is to be tried again from its beginning."""


def as_url(database: str | Path) -> URL:
    """A SQLAlchemy URL, of a path too; UserError for a database that we do not speak to."""
    text = str(database)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise UserError(f"--database {text!r}: not a database URL: {error}") from error
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        shown = url.render_as_string(hide_password=True)
        raise UserError(f"--database {shown}: write a file's path or postgresql+psycopg://USER@HOST/NAME")
    return url


def connect(database: str | Path | URL, *, pool: int = 8) -> Engine:
    """An engine; nothing is opened yet. `pool` is the most connections it keeps."""
    url = database if isinstance(database, URL) else as_url(database)
    pooled: dict[str, Any] = {"pool_size": pool, "max_overflow": 0, "pool_timeout": BUSY_SECONDS}
    if url.get_backend_name() == "postgresql":
        own = url.query.get("options", "")
        options = [own] if isinstance(own, str) else list(own)
        timeouts = {
            "statement_timeout": _STATEMENT_SECONDS * 1000,
            "lock_timeout": BUSY_SECONDS * 1000,
            "idle_in_transaction_session_timeout": 60000,
        }
        options += [f"-c {name}={value}" for name, value in {"synchronous_commit": "on", **timeouts}.items()]
        arguments = {"connect_timeout": BUSY_SECONDS, "options": " ".join(options), "application_name": "plaudit"}
        return create_engine(url, connect_args=arguments, **pooled)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **pooled)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Python's driver must not begin transactions by itself: it would begin them too late for BEGIN IMMEDIATE.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "recursive_triggers = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write; committed at the end, rolled back by an exception."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads the same moment throughout, however long it takes and whoever writes meanwhile."""
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**level) as connection, connection.begin():
        yield connection


def open_as_it_is(database: str | Path) -> Engine:
    """The engine of a database that is there and up to date, to be read: nothing of its schema is made or changed.
    UserError for another one."""
    engine = connect(database)
    shown = str(database) if "://" not in str(database) else engine.url.render_as_string(hide_password=True)
    try:
        with snapshot(engine) as connection:
            current = _revision(connection)
    except DBAPIError as error:
        raise UserError(f"{shown}: cannot be opened as a database: {error.orig}") from error
    if current is None:
        fix = "the .sqlite alone, copied while it is served, misses what is in its -wal: use `plaudit label backup`"
        raise UserError(f"{shown}: holds no label database; {fix}")
    head = max(_revisions())
    if current != head:
        fix = "`plaudit label serve` brings it up to date and keeps a copy of it as it is"
        raise UserError(f"{shown}: its schema is {current!r}, this Plaudit's is {head!r}; {fix}")
    return engine


def _revision(connection: Connection) -> str | None:
    """Of which schema the database is; None where it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def _revisions() -> set[str]:
    """Every schema that there was: those of the migrations, by the names of their files."""
    versions = files("plaudit.label.db") / "migrations" / "versions"
    return {file.name[1:5] for file in versions.iterdir() if file.name.startswith("v")}


def copy_file(path: Path, to: Path) -> None:
    """All of a SQLite database in one new file, whoever writes to it meanwhile; for nobody else to read."""
    to.touch(mode=0o600, exist_ok=False)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm beside it


def _keep_copy(engine: Engine) -> None:
    """Before a SQLite database is brought up to date it is kept beside itself, as it was."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    with snapshot(engine) as connection:
        current = _revision(connection)
    kept = Path(f"{engine.url.database}.before-{current}")
    if current not in (None, max(_revisions())) and not kept.exists():
        copy_file(Path(engine.url.database), kept)


def migrate(engine: Engine) -> None:
    """Make the schema, or bring it up to date, in one transaction. UserError where that cannot be done."""
    try:
        _keep_copy(engine)
        # Alembic copies tables where SQLite cannot alter them, and a copied table's rows are referred to meanwhile;
        # the setting is the connection's and cannot be changed inside a transaction.
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.connection.execute("PRAGMA foreign_keys = OFF")
            connection = connection.execution_options(writes=True)
            with connection.begin():
                _migrate(connection)
            if engine.dialect.name == "sqlite":
                connection.connection.execute("PRAGMA foreign_keys = ON")
    except DBAPIError as error:
        shown = engine.url.render_as_string(hide_password=True)
        raise UserError(f"{shown}: cannot be opened as a database: {error.orig}") from error


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})")
    # Only here: loading it takes longer than reading the numbers of a large database.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("plaudit.label.db") / "migrations"))
    config.attributes["connection"] = connection
    current, name = _revision(connection), connection.engine.url.database
    if current is None:
        if inspect(connection).get_table_names():
            raise UserError(f"{name}: holds tables that are not ours; name an empty database")
        metadata.create_all(connection)
        command.stamp(config, "head")
        return
    if current not in _revisions():
        raise UserError(f"{name}: its schema {current!r} is newer than this Plaudit; upgrade Plaudit")
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        assert not broken, f"rows that refer to nothing after the migration: {broken[:3]}"


def open_project(database: str | Path, name: str = "Plaudit") -> Engine:
    """The engine of a database that is made where it is not there, is up to date and has its project."""
    if "://" not in str(database):
        Path(database).parent.mkdir(parents=True, exist_ok=True)
        Path(database).touch(mode=0o600)  # password hashes and labels are for nobody else on this machine
    engine = connect(database)
    migrate(engine)
    ensure_project(engine, name)
    return engine


def ensure_project(engine: Engine, name: str) -> None:
    """The project row, where the database is new."""
    served = {"overlap": 1, "lease_minutes": 30.0, "consistency_rate": 0.0, "gold_rate": 0.0}
    texts = {"name": name, "guidelines": GUIDELINES, "reasons": [], "flags": list(FLAGS)}
    row = {"id": 1, **texts, **served, "secret": secrets.token_hex(32), "created": time.time()}
    with writing(engine) as connection:
        if connection.execute(select(project.c.id)).first() is None:
            connection.execute(insert(project), row)
