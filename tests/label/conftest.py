"""A database of each kind with its project, a PostgreSQL server of our own, and an application with people in it."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from label_kit import World
from sqlalchemy import Engine, insert

from local_postgres import PostgresServer, binaries
from plaudit.label import schema
from plaudit.label.app import create_app
from plaudit.label.database import writing
from plaudit.label.items import Draft, add_items
from plaudit.label.serve import open_project


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
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
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_schema(f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A database with its project, on SQLite and on PostgreSQL."""
    made = open_project(url, "Kind replies")
    yield made
    made.dispose()


@pytest.fixture
def add(engine: Engine) -> Callable[..., list[str]]:
    """Put drafts in; their ids."""

    def put(*drafts: Draft) -> list[str]:
        add_items(engine, drafts)
        return [one.id for one in drafts]

    return put


@pytest.fixture
def person(engine: Engine) -> Callable[[str], int]:
    """Make an annotator; their id."""

    def make(name: str) -> int:
        row = insert(schema.person).values(name=name, role="annotator", active=True, created=0.0)
        with writing(engine) as connection:
            return connection.execute(row.returning(schema.person.c.id)).scalar_one()

    return make


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    """The application on both databases."""
    yield from _world(engine)


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[World]:
    """The application on SQLite, where the database does not matter."""
    yield from _world(open_project(tmp_path / "labels.sqlite", "Kind replies"))


def _world(engine: Engine) -> Iterator[World]:
    app = create_app(engine, url="http://127.0.0.1:8080")
    yield World(app, engine)
    app.state.service.writer.close()
    engine.dispose()
