"""What is read for the dashboard is little of a large database, and enough."""

from collections.abc import Callable
from typing import Any

from label_kit import draft
from sqlalchemy import Engine

from plaudit.label.db.database import snapshot
from plaudit.label.db.ledger import read
from plaudit.label.quality.dashboard import dashboard
from plaudit.label.queue import again, leases
from plaudit.records import Message, Prompt

BETTER = {"ranks": [1, 2]}


def test_of_items_that_nobody_labelled_the_dashboard_needs_only_how_many(
    engine: Engine, add: Callable[..., list[str]], do: Callable[..., Any], person: Callable[[str], int]
) -> None:
    one = Prompt("p", (Message("user", "The same?"),), "kind", "train")
    add(draft(1, overlap=2, count=2), draft(2, count=2), draft(3, count=2, gold=(1, 2)), draft(4, count=2))
    sides = {"count": 2, "task": "compare", "prompt": one}
    add(*(draft(5 + n, sources=("ppo", "sft"), **sides) for n in range(2)), draft(7, count=2))
    ann, bo = person("ann"), person("bo")
    seen = [do(leases.claim, ann) for _ in range(1)]
    do(leases.submit, ann, seen[0].lease, "client-1", BETTER)
    do(leases.release, bo, do(leases.claim, bo).lease)
    do(leases.release, bo, do(leases.claim, bo).lease)
    compared = do(leases.claim, ann, "compare")
    do(leases.submit, ann, compared.lease, "client-2", BETTER)
    with snapshot(engine) as connection:
        last = read(connection).items[-1]
    do(again.withdraw, last.id, True)
    with snapshot(engine) as connection:
        everything, some = read(connection), read(connection, labelled=True)
    assert [row.number for row in some.items] == [1, 5, 6]  # 6 stands beside 5, for one prompt
    assert sorted(some.untouched) == [("rank", None, 2)]
    assert dashboard(everything, 0.0) == dashboard(some, 0.0)
    assert dashboard(some, 0.0)["progress"]["skipped"] == 2
