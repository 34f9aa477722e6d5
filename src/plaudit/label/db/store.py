"""What is in the database, read as plain frozen rows: for quality, dashboard, export and tests.

    with snapshot(engine) as connection:
        for label in labels(connection): ...

All reads of one `snapshot` see the same moment. Nothing here writes; what writes is queue.py, people.py and items.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from plaudit.label.db import schema
from plaudit.records import Message


@dataclass(frozen=True)
class ProjectRow:
    """The settings. Rates are shares of what is served; `lease_minutes` is how long an item is kept for a person."""

    name: str
    guidelines: str
    overlap: int
    lease_minutes: float
    consistency_rate: float
    gold_rate: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class PersonRow:
    """`invited`: the invite was not taken yet, so there is no password."""

    id: int
    name: str
    role: str
    active: bool
    invited: bool
    created: float


@dataclass(frozen=True)
class ReplyRow:
    """`source` says who wrote the reply; it never leaves the server for an annotator. `ended` is False when cut."""

    text: str
    ended: bool
    source: str | None


@dataclass(frozen=True)
class ItemRow:
    """What is labelled. `overlap` is None where the project's holds; `gold` are the known ranks, 1 is best."""

    id: str
    number: int
    task: str
    messages: tuple[Message, ...]
    replies: tuple[ReplyRow, ...]
    prompt_id: str
    kind: str
    split: str
    gold: tuple[int, ...] | None
    priority: float
    overlap: int | None
    source_file: str


@dataclass(frozen=True)
class LeaseRow:
    """One serving of an item to a person; `slot` is None outside the overlap."""

    id: str
    item: str
    person: int
    task: str
    slot: int | None
    order: tuple[int, ...]
    served_at: float
    expires_at: float
    state: str
    purpose: str


@dataclass(frozen=True)
class LabelRow:
    """A row of the ledger. `body` is in the item's order of replies; `order[p]` is the reply shown at position p."""

    seq: int
    client_id: str
    lease: str
    item: str
    person: int
    task: str
    purpose: str
    body: dict[str, Any]
    body_hash: str
    created: float
    seconds: float
    order: tuple[int, ...]
    late: bool
    supersedes: int | None


def project(connection: Connection) -> ProjectRow:
    """The one project of the database."""
    row = connection.execute(select(schema.project)).one()
    return ProjectRow(
        row.name,
        row.guidelines,
        row.overlap,
        row.lease_minutes,
        row.consistency_rate,
        row.gold_rate,
        tuple(row.flags),
    )


def people(connection: Connection) -> list[PersonRow]:
    """Everybody, by id."""
    found = connection.execute(select(schema.person).order_by(schema.person.c.id))
    return [PersonRow(row.id, row.name, row.role, row.active, row.password_hash is None, row.created) for row in found]


def item_of(row: Row[Any]) -> ItemRow:
    """A row of the table `item`."""
    return ItemRow(
        id=row.id,
        number=row.number,
        task=row.task,
        messages=tuple(Message(**message) for message in row.prompt),
        replies=tuple(ReplyRow(reply["text"], reply["ended"], reply["source"]) for reply in row.replies),
        prompt_id=row.prompt_id,
        kind=row.kind,
        split=row.split,
        gold=tuple(row.gold) if row.gold is not None else None,
        priority=row.priority,
        overlap=row.overlap,
        source_file=row.source_file,
    )


def items(connection: Connection) -> Iterator[ItemRow]:
    """Every item, in the order of import; fetched as they are asked for."""
    query = select(schema.item).order_by(schema.item.c.number)
    found = connection.execute(query.execution_options(yield_per=200))
    return (item_of(row) for row in found)


def leases(connection: Connection) -> Iterator[LeaseRow]:
    """Every serving, oldest first."""
    table = schema.lease
    query = select(table).order_by(table.c.served_at, table.c.id)
    found = connection.execute(query.execution_options(yield_per=500))
    return (
        LeaseRow(
            row.id,
            row.item,
            row.person,
            row.task,
            row.slot,
            tuple(row.order),
            row.served_at,
            row.expires_at,
            row.state,
            row.purpose,
        )
        for row in found
    )


def labels(connection: Connection, *, newest: bool = True) -> Iterator[LabelRow]:
    """The ledger in the server's order; with `newest` only the last word of each serving, else every row."""
    table, later = schema.label, schema.label.alias()
    query = (
        select(table, schema.lease.c.task, schema.lease.c.purpose)
        .join(schema.lease, schema.lease.c.id == table.c.lease)
        .order_by(table.c.seq)
    )
    if newest:
        query = query.where(~select(later.c.seq).where(later.c.supersedes == table.c.seq).exists())
    found = connection.execute(query.execution_options(yield_per=500))
    return (label_of(row) for row in found)


def label_of(row: Row[Any]) -> LabelRow:
    """A row of `label` with its lease's task and purpose."""
    return LabelRow(
        row.seq,
        row.client_id,
        row.lease,
        row.item,
        row.person,
        row.task,
        row.purpose,
        json.loads(row.body),
        row.body_hash,
        row.created,
        row.seconds,
        tuple(row.order),
        row.late,
        row.supersedes,
    )


def settings_as_json(row: ProjectRow) -> dict[str, Any]:
    """The project for the admin's browser."""
    return {
        "name": row.name,
        "guidelines": row.guidelines,
        "overlap": row.overlap,
        "lease_minutes": row.lease_minutes,
        "consistency_rate": row.consistency_rate,
        "gold_rate": row.gold_rate,
        "flags": list(row.flags),
    }
