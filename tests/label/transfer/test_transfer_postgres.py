"""Export and import on a real PostgreSQL server: the same rows as on SQLite, and one moment while somebody labels."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotators import join, label_next
from sqlalchemy import Engine

from local_postgres import PostgresServer, binaries
from plaudit.label.db.database import open_project, snapshot
from plaudit.label.db.ledger import read
from plaudit.label.transfer.export import export
from plaudit.label.transfer.import_labels import import_labels


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{n}",
            "prompt": f"Question {n}?",
            "annotator": who,
            "responses": [{"text": f"a{n}", "rank": 1 + n % 2}, {"text": "b", "rank": 2, "source": None}],
        }
        for n in range(6)
        for who in ("ann", "bo")
    ]


def exported(connection: Any, format: str) -> str:
    return "".join(export(read(connection), format).lines())


def test_export_and_import_on_postgresql(tmp_path: Path, database: Callable[[], Engine]) -> None:
    if binaries() is None:
        assert os.environ.get("REQUIRE_SERVICES") != "1", "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    lite = database()
    with PostgresServer(durable=False) as server:
        engine = open_project(server.create("labels"))
        assert import_labels(engine, path) == import_labels(lite, path)
        assert import_labels(engine, path).labels == 0
        for format in ("rankings", "pairs", "hh"):
            with snapshot(engine) as there, snapshot(lite) as here:
                assert exported(there, format) == exported(here, format) != ""
        who = join(engine, "cy")
        with snapshot(engine) as connection:
            before = exported(connection, "rankings")
            more = {"id": "new", "prompt": "New?", "annotator": "dee", "chosen": "a", "rejected": "b"}
            path.write_text(json.dumps(more) + "\n", encoding="utf-8")
            import_labels(engine, path)
            # Imported labels fill the slots, so nobody is asked again.
            assert not label_next(engine, who, lambda shown: {"ranks": [1, 2]})
            assert exported(connection, "rankings") == before
        with snapshot(engine) as connection:
            assert exported(connection, "rankings").count("\n") == before.count("\n") + 1
        engine.dispose()
