"""New label databases, made by copying one that was migrated once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from plaudit.label.database import connect, ensure_project, migrate


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and a project, and nothing else."""
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    engine = connect(path)
    migrate(engine)
    ensure_project(engine, "project")
    engine.dispose()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """A new database at each call."""
    made: list[Engine] = []

    def build() -> Engine:
        path = tmp_path / f"labels{len(made)}.sqlite"
        shutil.copyfile(empty_database, path)
        made.append(connect(path))
        # What these tests ask does not depend on the disk having it.
        event.listen(made[-1], "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
        return made[-1]

    yield build
    for engine in made:
        engine.dispose()
