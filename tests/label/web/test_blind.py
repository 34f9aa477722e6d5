"""What an annotator cannot know: the source of a reply, gold answers, what an item is called; not by time either."""

from collections.abc import Callable
from typing import Any

import pytest
from label_kit import Person, World, draft
from sqlalchemy import event, select

from plaudit.label.db import schema
from plaudit.label.queue.items import add_items


@pytest.fixture
def labelled(world: World) -> Callable[[], tuple[Person, list[str]]]:
    def run() -> tuple[Person, list[str]]:
        add_items(
            world.engine,
            [
                draft(1),
                draft(2, gold=(1, 2, 3, 4)),
                draft(3, task="compare", count=2),
                draft(4, task="write", replies=(), sources=()),
                draft(5),
            ],
        )
        boss, ann = world.join("boss", "admin"), world.join("ann")
        assert boss.post("/api/admin/project", {"gold_rate": 0.5}).status_code == 200
        texts = [ann.get(path).text for path in ("/", "/history", "/api/me")]
        while (claimed := ann.claim()) is not None:
            texts.append(str(claimed))
            sent = {"text": "a reply"} if claimed["item"]["task"] == "write" else {}
            ranks = None if sent else list(range(1, 1 + len(claimed["item"]["replies"])))
            texts.append(ann.submit(claimed["lease"], ranks, **sent).text)
        texts.append(ann.get("/api/history").text)
        return ann, texts

    return run


def test_nothing_names_source_gold_kind_or_file(labelled: Callable[[], tuple[Person, list[str]]], world: World) -> None:
    _, texts = labelled()
    with world.engine.connect() as connection:
        ids = list(connection.execute(select(schema.item.c.id)).scalars())
    for text in texts:
        for told in ("secret", "gold", "source", "normal", "sft", "ppo", *ids):
            assert told not in text


def test_a_gold_item_looks_like_any_other(world: World) -> None:
    """The same keys and the same kinds of values, so that nobody can tell when they are watched."""
    add_items(world.engine, [draft(1), draft(2, gold=(1, 2, 3, 4))])
    boss, ann = world.join("boss", "admin"), world.join("ann")
    boss.post("/api/admin/project", {"gold_rate": 1.0})
    gold = ann.claim()
    first = ann.submit(gold["lease"])
    boss.post("/api/admin/project", {"gold_rate": 0.0})
    plain = ann.claim()
    second = ann.submit(plain["lease"])

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else type(value)

    assert shape(gold) == shape(plain) and shape(first.json()) == shape(second.json())
    assert set(first.headers) == set(second.headers)


def test_what_is_measured_in_time_does_not_depend_on_the_source(world: World) -> None:
    """Two items that differ in their sources alone give the same bytes but for the lease, and the same statements."""
    texts = {"replies": draft(1).replies, "prompt": draft(1).prompt}
    add_items(
        world.engine, [draft(1, **texts), draft(2, **{**texts, "sources": ("a-much-longer-name-of-a-source" * 9,) * 4})]
    )
    ann = world.join("ann")
    statements: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    sizes, asked = [], []
    for _ in range(2):
        statements.clear()
        answer = ann.post("/api/claim", {"task": None})
        asked.append(list(statements))
        body = answer.json()
        sizes.append({len(reply["html"]) for reply in body["item"]["replies"]})
        ann.submit(body["lease"])
    assert asked[0] == asked[1] and sizes[0] == sizes[1]
