"""The process of the dashboard's numbers: it stays, sees what is new, and begins again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from label_kit import draft
from sqlalchemy import insert

from plaudit.errors import UserError
from plaudit.label.db import schema
from plaudit.label.db.database import open_project, writing
from plaudit.label.quality.process import NumbersProcess
from plaudit.label.queue import leases
from plaudit.label.queue.items import add_items


@pytest.fixture
def began() -> Iterator[Callable[[Path], NumbersProcess]]:
    made: list[NumbersProcess] = []

    def begin(path: Path) -> NumbersProcess:
        made.append(NumbersProcess(str(path)))
        return made[-1]

    yield begin
    for one in made:
        one.end()


def test_one_process_answers_again_and_again_with_what_is_there_now(
    tmp_path: Path, began: Callable[[Path], NumbersProcess]
) -> None:
    path = tmp_path / "labels.sqlite"
    path.touch()
    numbers = began(path)
    with pytest.raises(UserError, match=r"labels\.sqlite: holds no label database"):
        numbers.ask()
    child = numbers._child
    assert child is not None
    engine = open_project(path, "Grüße")
    add_items(engine, [draft(n) for n in range(3)])
    first: dict[str, Any] = json.loads(numbers.ask())
    assert (first["name"], first["progress"]["items"], first["progress"]["given"]) == ("Grüße", 3, 0)
    with writing(engine) as connection:
        row = insert(schema.person).values(name="ann", role="annotator", active=True, created=0.0)
        who = connection.execute(row.returning(schema.person.c.id)).scalar_one()
        claimed = leases.claim(connection, who)
        assert claimed is not None
        leases.submit(connection, who, claimed.lease, "12345678", {"ranks": [1, 2, 3, 4]})
    assert json.loads(numbers.ask())["progress"]["given"] == 1
    assert numbers._child is child, "it was begun once"
    child.kill()
    assert json.loads(numbers.ask())["progress"]["given"] == 1, "another one takes its place"
    engine.dispose()
