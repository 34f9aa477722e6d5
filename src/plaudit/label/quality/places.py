"""How many of the rankings that a run waits for are in: the one count that the run, `plaudit status` and, but for
labels without an order, the dashboard go by."""

from collections import Counter
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from plaudit.label.db.ledger import Label, labels, standing
from plaudit.label.db.schema import item, project
from plaudit.label.quality.agreement import ranked

EARLIER = -1.0
"""The priority of a run's items of a sampling that holds no more."""


def origin_of(run: str) -> str:
    """What the database says of the items of all rounds of a run, by the name of its folder; runs may share one."""
    return f"preferences of {run}"


def filled(said: Iterable[Label], places: Mapping[str, int]) -> int:
    """How many places have a ranking that stands, counts and came in time; `places` are those of each item. What more
    people than an item has places for said of it fills no other item's."""
    had = Counter(label.item for label in ranked(standing(said)) if not label.aside and label.item in places)
    return sum(min(count, places[which]) for which, count in had.items())


def filled_of_run(connection: Connection, run: str) -> tuple[int, int]:
    """(places with a ranking, places) of the items that a run has put up and still waits for."""
    query = select(item.c.id, item.c.overlap).where(
        item.c.source_file == origin_of(run), item.c.priority > EARLIER, ~item.c.withdrawn
    )
    usual = connection.execute(select(project.c.overlap)).scalar_one()
    places = {row.id: row.overlap or usual for row in connection.execute(query)}
    return filled(labels(connection), places), sum(places.values())
