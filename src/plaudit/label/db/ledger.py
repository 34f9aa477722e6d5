"""What the database holds at one moment, as plain frozen rows: what quality, dashboard and export are computed from.

They are pure functions of a `Ledger`, so they need no database to be tested, and one read of the database gives all of
them the same moment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sqlalchemy import Connection

from plaudit.label.db import store
from plaudit.label.db.store import ItemRow, PersonRow


@dataclass(frozen=True)
class Label:
    """One row of the ledger with its body taken apart. Times are seconds since 1970 (UTC) by the server's clock;
    `seconds` is from serving to submitting. `ranks` and `flags` are in the item's order of replies; `order[p]` is the
    reply shown in position p; `supersedes` is the `seq` of the row that this one corrects."""

    seq: int
    item: str
    person: int
    created: float
    seconds: float
    order: tuple[int, ...] = ()
    ranks: tuple[int, ...] | None = None
    verdict: str | None = None
    strength: int | None = None
    reason: str = ""
    flags: tuple[tuple[str, ...], ...] = ()
    text: str | None = None
    late: bool = False
    supersedes: int | None = None
    purpose: str = "normal"

    @classmethod
    def of(cls, row: store.LabelRow) -> "Label":
        body: dict[str, Any] = row.body
        ranks = body.get("ranks")
        return cls(
            row.seq,
            row.item,
            row.person,
            row.created,
            row.seconds,
            row.order,
            ranks=None if ranks is None else tuple(ranks),
            verdict=body.get("verdict"),
            strength=body.get("strength"),
            reason=body.get("reason", ""),
            flags=tuple(tuple(own) for own in body.get("flags", ())),
            text=body.get("text"),
            late=row.late,
            supersedes=row.supersedes,
            purpose=row.purpose,
        )


@dataclass(frozen=True)
class Ledger:
    """One moment of a database. `overlap` is how many people label an item that does not say otherwise; `open_leases`
    are items that somebody looks at now; `flags` are those that the project offers."""

    name: str
    overlap: int
    items: tuple[ItemRow, ...]
    people: tuple[PersonRow, ...]
    labels: tuple[Label, ...]
    open_leases: int = 0
    flags: tuple[str, ...] = ()


def read(connection: Connection) -> Ledger:
    """Everything, from one read transaction (`database.snapshot`)."""
    project = store.project(connection)
    return Ledger(
        project.name,
        project.overlap,
        tuple(store.items(connection)),
        tuple(store.people(connection)),
        tuple(Label.of(row) for row in store.labels(connection, newest=False)),
        sum(lease.state == "open" for lease in store.leases(connection)),
        tuple(project.flags),
    )


def standing(labels: Iterable[Label]) -> list[Label]:
    """The labels that hold: those that no later row corrects, by `seq`."""
    rows = sorted(labels, key=lambda label: label.seq)
    corrected = {label.supersedes for label in rows}
    return [label for label in rows if label.seq not in corrected]


Verdicts = dict[tuple[int, int], int]
"""(i, j) with i < j -> 1: reply i is better, −1: reply j is, 0: a tie."""


def verdicts_of(ranks: Sequence[int]) -> Verdicts:
    """What ranks (1 is best) say of every pair of replies."""
    return {(i, j): (ranks[i] < ranks[j]) - (ranks[i] > ranks[j]) for i, j in combinations(range(len(ranks)), 2)}


def dense(ranks: Sequence[float]) -> tuple[int, ...]:
    """The same order as ranks without gaps: (2, 5, 2) -> (1, 2, 1)."""
    place = {value: number + 1 for number, value in enumerate(sorted(set(ranks)))}
    return tuple(place[value] for value in ranks)
