"""What the database holds, read as plain frozen rows: what quality, dashboard and export are computed from.

They are pure functions of a `Ledger`, so they need no database to be tested, and one read of the database
(`database.snapshot`) gives all of them the same moment. Nothing here writes.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, SelectBase, exists, func, select

from plaudit.label.db import schema
from plaudit.records import Message, Prompt


@dataclass(frozen=True)
class ProjectRow:
    """The settings. Rates are shares of what is served; `lease_minutes` is how long an item is kept for a person;
    `language` is that of the annotators' pages, "browser" for each browser's own."""

    name: str
    guidelines: str
    overlap: int
    lease_minutes: float
    consistency_rate: float
    gold_rate: float
    flags: tuple[str, ...]
    plain_text: bool
    language: str
    version: int
    guidelines_version: int
    paused: bool


@dataclass(frozen=True)
class PersonRow:
    """`invited`: the invite was not taken yet, so there is no password; `fields`: kinds of prompts with the quota of
    each, none for all kinds."""

    id: int
    name: str
    role: str
    active: bool
    invited: bool
    created: float
    paused: bool = False
    quota: int | None = None
    fields: Mapping[str, int | None] = field(default_factory=dict)


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
    withdrawn: bool = False

    @property
    def prompt(self) -> Prompt:
        """The prompt as a record."""
        return Prompt(self.prompt_id, self.messages, self.kind, self.split)


@dataclass(frozen=True)
class Label:
    """One row of the ledger with its body taken apart. Times are seconds since 1970 (UTC) by the server's clock;
    `seconds` is from serving to submitting. `ranks` and `flags` are in the item's order of replies; `order[p]` is the
    reply shown in position p; `supersedes` is the `seq` of the row that this one corrects. `active` are the seconds in
    which the page was used, `guidelines` is their version; `aside`: an admin had others asked instead."""

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
    active: float | None = None
    guidelines: int | None = None
    aside: bool = False


@dataclass(frozen=True)
class Ledger:
    """One moment of a database. `overlap` is how many people label an item that does not say otherwise; `open_leases`
    are items that somebody looks at now; `flags` are those that the project offers; `skipped`: item and person of each
    that was given back without an answer. `untouched` are items to be labelled that are not among `items`, since
    nobody has labelled them: task, overlap and how many."""

    name: str
    overlap: int
    items: tuple[ItemRow, ...]
    people: tuple[PersonRow, ...]
    labels: tuple[Label, ...]
    open_leases: int = 0
    flags: tuple[str, ...] = ()
    skipped: tuple[tuple[str, int], ...] = ()
    untouched: tuple[tuple[str, int | None, int], ...] = ()


def read(connection: Connection, *, labelled: bool = False) -> Ledger:
    """Everything, from one read transaction; with `labelled` of the items that nobody has labelled only how many there
    are (and those that stand beside labelled ones in a comparison), since their texts are most of a large database."""
    settings = project(connection)
    lease = schema.lease.c
    count = select(func.count()).select_from(schema.lease)
    count = count.where(lease.state == "open", lease.expires_at > time.time())
    skipped = select(lease.item, lease.person).join(schema.item, schema.item.c.id == lease.item)
    skipped = skipped.where(lease.state == "released", ~lease.late, ~schema.item.c.withdrawn)
    compares = connection.execute(select(exists().where(lease.task == "compare"))).scalar_one()
    seen = _OF_LABELS.union(_BESIDE) if compares else _OF_LABELS
    read_items = tuple(items(connection, seen if labelled else None))
    return Ledger(
        settings.name,
        settings.overlap,
        read_items,
        tuple(people(connection)),
        tuple(labels(connection)),
        connection.execute(count).scalar_one(),
        settings.flags,
        tuple((row.item, row.person) for row in connection.execute(skipped.order_by(lease.served_at))),
        _untouched(connection, read_items) if labelled else (),
    )


_compared = schema.item.alias()
_OF_LABELS = select(schema.label.c.item)
_prompts = select(_compared.c.prompt_id).where(_compared.c.task == "compare", _compared.c.id.in_(_OF_LABELS))
_BESIDE = select(_compared.c.id).where(_compared.c.task == "compare", _compared.c.prompt_id.in_(_prompts))


def _untouched(connection: Connection, known: Iterable[ItemRow]) -> tuple[tuple[str, int | None, int], ...]:
    item = schema.item.c
    counted = select(item.task, item.overlap, func.count().label("n")).group_by(item.task, item.overlap)
    # The gold items, few, are taken off what one index knows of all: whether one is gold stands behind its texts.
    left: Counter[tuple[str, int | None]] = Counter()
    for sign, query in (
        (1, counted.where(~item.withdrawn)),
        (-1, counted.where(~item.withdrawn, item.gold.is_not(None))),
    ):
        for task, overlap, n in connection.execute(query):
            left[task, overlap] += sign * n
    left.subtract((row.task, row.overlap) for row in known if row.gold is None and not row.withdrawn)
    return tuple((task, overlap, n) for (task, overlap), n in left.items() if n)


def project(connection: Connection) -> ProjectRow:
    """The one project of the database."""
    row = connection.execute(select(schema.project)).one()
    settings = {name: row._mapping[name] for name in ProjectRow.__dataclass_fields__}
    return ProjectRow(**settings | {"flags": tuple(row.flags)})


def people(connection: Connection) -> list[PersonRow]:
    """Everybody, by id."""
    fields: dict[int, dict[str, int | None]] = defaultdict(dict)
    for row in connection.execute(select(schema.person_field).order_by(schema.person_field.c.kind)):
        fields[row.person][row.kind] = row.quota
    same = ("id", "name", "role", "active", "created", "paused", "quota")
    identified = set(connection.execute(select(schema.identity.c.person)).scalars())
    return [
        PersonRow(
            invited=row.password_hash is None and row.id not in identified,
            fields=fields[row.id],
            **{name: row._mapping[name] for name in same},
        )
        for row in connection.execute(select(schema.person).order_by(schema.person.c.id))
    ]


def items(connection: Connection, among: SelectBase | None = None) -> Iterator[ItemRow]:
    """Every item, or those whose id a query gives, in the order of import; fetched as they are asked for."""
    query = select(schema.item).order_by(schema.item.c.number)
    if among is not None:
        query = query.where(schema.item.c.id.in_(among))
    same = [name for name in ItemRow.__dataclass_fields__ if name not in ("messages", "replies", "gold")]
    for row in connection.execute(query.execution_options(yield_per=200)):
        yield ItemRow(
            messages=tuple(Message(**message) for message in row.prompt),
            replies=tuple(ReplyRow(**reply) for reply in row.replies),
            gold=tuple(row.gold) if row.gold is not None else None,
            **{name: row._mapping[name] for name in same},
        )


def labels(connection: Connection) -> Iterator[Label]:
    """Every row of the ledger, corrected ones too, by `seq`."""
    table, lease = schema.label, schema.lease
    # Whose a label is, its lease says: two accounts of one person may have become one since.
    query = select(table, *lease.c["purpose", "aside"], lease.c.person.label("whose"))
    query = query.join(lease, lease.c.id == table.c.lease).order_by(table.c.seq)
    for row in connection.execute(query.execution_options(yield_per=500)):
        body: dict[str, Any] = json.loads(row.body)
        ranks = body.pop("ranks", None)
        yield Label(
            row.seq,
            row.item,
            row.whose,
            row.created,
            row.seconds,
            tuple(row.order),
            None if ranks is None else tuple(ranks),
            flags=tuple(tuple(own) for own in body.pop("flags", ())),
            late=row.late,
            supersedes=row.supersedes,
            purpose=row.purpose,
            active=row.active_seconds,
            guidelines=row.guidelines,
            aside=row.aside,
            **body,
        )


def counting(ledger: Ledger) -> Ledger:
    """What counts: without items that are withdrawn, and without labels that an admin has set aside."""
    items = tuple(item for item in ledger.items if not item.withdrawn)
    there = {item.id for item in items}
    labels = tuple(label for label in ledger.labels if label.item in there and not label.aside)
    gone = {item.id for item in ledger.items if item.withdrawn}
    skipped = tuple(row for row in ledger.skipped if row[0] not in gone)
    return replace(ledger, items=items, labels=labels, skipped=skipped)


def standing(labels: Iterable[Label]) -> list[Label]:
    """The labels that hold: those that no later row corrects, by `seq`."""
    rows = sorted(labels, key=lambda label: label.seq)
    corrected = {label.supersedes for label in rows}
    return [label for label in rows if label.seq not in corrected]
