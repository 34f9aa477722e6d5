"""The schema: migrations lead to it from every earlier one, and the ledger cannot be changed in it."""

import json
from pathlib import Path
from typing import Any

import first_schema
import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from plaudit.errors import UserError
from plaudit.label.db import ledger, schema
from plaudit.label.db.database import as_url, connect, ensure_project, migrate, snapshot, writing

OLD = Path(__file__).parent / "database_0001.json"
"""A row of every table as the first schema had it, by its column names."""


def rows_of_the_first_schema(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Put the rows of OLD in by SQL of its own, as text, and give them back."""
    rows: dict[str, list[dict[str, Any]]] = json.loads(OLD.read_text(encoding="utf-8"))
    with writing(engine) as connection:
        for table, found in rows.items():
            for row in found:
                names = ", ".join(f'"{name}"' for name in row)
                values = {name: json.dumps(v) if isinstance(v, (list, dict)) else v for name, v in row.items()}
                marks = ", ".join(
                    f"CAST(:{name} AS JSON)"
                    if isinstance(row[name], (list, dict)) and engine.dialect.name != "sqlite"
                    else f":{name}"
                    for name in row
                )
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)
    return rows


def make_the_first_schema(engine: Engine) -> None:
    """A database as it was made before any migration."""
    with writing(engine) as connection:
        with Operations.context(MigrationContext.configure(connection)):
            first_schema.upgrade()
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))


@pytest.mark.parametrize("old", [False, True])
def test_a_new_database_and_the_migrations_of_an_old_one_lead_to_the_schema(url: str, old: bool) -> None:
    engine = connect(url)
    if old:
        make_the_first_schema(engine)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        checks = {check["name"] for check in inspect(connection).get_check_constraints("item")}
    assert {"task_known", "free_not_negative", "overlap_positive"} <= checks
    engine.dispose()


def test_a_database_of_the_first_schema_keeps_every_row(url: str) -> None:
    engine = connect(url)
    make_the_first_schema(engine)
    rows = rows_of_the_first_schema(engine)
    before = set(rows)
    migrate(engine)
    ensure_project(engine, "another name")
    with snapshot(engine) as connection:
        for name in before:
            table = schema.metadata.tables[name]
            found = [dict(row._mapping) for row in connection.execute(select(table))]
            assert [{key: row[key] for key in old} for row, old in zip(found, rows[name], strict=True)] == rows[name]
        (label,) = ledger.labels(connection)
        assert (label.ranks, label.order, ledger.project(connection).name) == ((2, 1), (1, 0), "Old")
    for change in ("UPDATE label SET late = late", "DELETE FROM label"):
        with pytest.raises(DBAPIError, match="append-only"), writing(engine) as connection:
            connection.execute(text(change))
    with writing(engine) as connection:  # and the ledger goes on
        new = {**rows["label"][0], "client_id": "other-id", "supersedes": 7}
        del new["seq"]
        if engine.dialect.name == "postgresql":  # ids that were put in by hand do not move its sequence
            connection.execute(text("SELECT setval('label_seq_seq', 7)"))
        assert connection.execute(insert(schema.label).values(**new).returning(schema.label.c.seq)).scalar_one() == 8
    engine.dispose()


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    with snapshot(engine) as connection:
        before = ledger.project(connection)
    migrate(engine)
    ensure_project(engine, "other")
    with snapshot(engine) as connection:
        assert ledger.project(connection) == before


@pytest.mark.parametrize("table", ["label", "conflict"])
def test_the_ledger_cannot_be_changed(engine: Engine, table: str) -> None:
    rows = rows_of_the_first_schema_without_project(engine)
    commands = [f"UPDATE {table} SET body = 'x'", f"DELETE FROM {table}", f"DELETE FROM {table} WHERE 1 = 1"]
    if engine.dialect.name == "postgresql":
        commands.append(f"TRUNCATE {table} CASCADE")
    else:
        names = ", ".join(f'"{name}"' for name in rows[table][0])
        commands.append(f"INSERT OR REPLACE INTO {table} ({names}) SELECT {names} FROM {table}")
    for command in commands:
        with pytest.raises(DBAPIError, match="append-only"), writing(engine) as connection:
            connection.execute(text(command))
    with snapshot(engine) as connection:
        assert len(connection.execute(text(f"SELECT * FROM {table}")).all()) == 1


def rows_of_the_first_schema_without_project(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM project"))
    return rows_of_the_first_schema(engine)


def test_two_live_leases_cannot_have_one_slot(engine: Engine) -> None:
    """The bound of the overlap is the schema's: it holds for whoever writes, past all code."""
    rows = rows_of_the_first_schema_without_project(engine)
    lease = rows["lease"][0]
    other = {**lease, "id": "other", "person": 2, "state": "open"}
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert(schema.lease).values(**other))
    with writing(engine) as connection:
        connection.execute(insert(schema.lease).values(**{**other, "state": "expired"}))
        connection.execute(insert(schema.lease).values(**{**other, "id": "third", "slot": 2}))


def test_a_database_of_a_newer_version_is_refused(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"'9999' is newer than this Plaudit"):
        migrate(engine)


def test_somebody_elses_database_is_refused(url: str) -> None:
    engine = connect(url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE theirs (x INTEGER)"))
    with pytest.raises(UserError, match="holds tables that are not ours"):
        migrate(engine)
    engine.dispose()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be opened as a database"):
        migrate(connect(path))


@pytest.mark.parametrize("bad", ["mysql://h/x", "sqlite://", "sqlite:///:memory:", "x://"])
def test_an_address_that_is_no_database(bad: str) -> None:
    with pytest.raises(UserError, match="--database"):
        as_url(bad)


def test_a_password_is_not_printed() -> None:
    engine = connect("postgresql://me:geheim@127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(UserError) as told:
        migrate(engine)
    assert "geheim" not in str(told.value) and "cannot be opened" in str(told.value)


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    engine = connect(tmp_path / "x.sqlite")
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_postgres_is_set_to_lose_nothing(postgres: Any) -> None:
    with connect(postgres.create_schema("settings")).connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
