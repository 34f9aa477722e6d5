"""A database of each kind with its project, a PostgreSQL server of our own, and an application with people in it.

A plugin of tests/conftest.py: a second file called conftest.py would be found by `from conftest import ...` instead of
the first. What needs the extra is imported by the fixtures that use it.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A local_postgres.PostgresServer that does not wait for the disk."""
    from local_postgres import PostgresServer, binaries

    if binaries() is None:
        assert os.environ.get("REQUIRE_SERVICES") != "1", "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.sqlite")
    made: str = request.getfixturevalue("postgres").create_schema(f"t{uuid.uuid4().hex[:12]}")
    return made


@pytest.fixture
def engine(url: str) -> Iterator[Any]:
    """A database with its project, on SQLite and on PostgreSQL."""
    from plaudit.label.db.database import open_project

    made = open_project(url, "Kind replies")
    yield made
    made.dispose()


@pytest.fixture
def do(engine: Any) -> Callable[..., Any]:
    """A queue function in a transaction of its own."""
    from plaudit.label.db.database import writing

    def run(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        with writing(engine) as connection:
            return function(connection, *args, **more)

    return run


@pytest.fixture
def add(engine: Any) -> Callable[..., list[str]]:
    """Put drafts in; their ids."""
    from plaudit.label.queue.items import add_items

    def put(*drafts: Any) -> list[str]:
        add_items(engine, drafts)
        return [one.id for one in drafts]

    return put


@pytest.fixture
def person(engine: Any) -> Callable[[str], int]:
    """Make an annotator; their id."""
    from sqlalchemy import insert

    from plaudit.label.db import schema
    from plaudit.label.db.database import writing

    def make(name: str) -> int:
        row = insert(schema.person).values(name=name, role="annotator", active=True, created=0.0)
        with writing(engine) as connection:
            return connection.execute(row.returning(schema.person.c.id)).scalar_one()

    return make


@pytest.fixture
def world(engine: Any) -> Iterator[Any]:
    """The application on both databases: a label_kit.World."""
    yield from _world(engine)


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[Any]:
    """The application on SQLite, where the database does not matter."""
    from plaudit.label.db.database import open_project

    yield from _world(open_project(tmp_path / "labels.sqlite", "Kind replies"))


def _world(engine: Any) -> Iterator[Any]:
    from label_kit import World

    from plaudit.label.web.app import create_app

    app = create_app(engine, url="http://127.0.0.1:8080")
    yield World(app, engine)
    app.state.service.close()
    engine.dispose()
