"""Items with everybody's answers, for admins: what was said of an item, by whom, when, and what it replaced."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, or_, select, true

from plaudit.label.db.schema import item, label, lease, person, project
from plaudit.label.kinds.rank import verdicts_of
from plaudit.label.queue.settings import once_offered
from plaudit.label.reading.search import NO_WORDS, Words, chunks, page

PAGE = 20
Only = Literal["disagree", "gold", "skipped", "unanswered", "withdrawn", "all_bad", "cannot_judge", "late", "set aside"]
Order = Literal["import", "latest"]
Found = dict[str, Any]

_later, _other = label.alias(), label.alias()
_STANDS = ~exists().where(_later.c.supersedes == label.c.seq)


@dataclass(frozen=True)
class Asked:
    """What is looked for. Times are seconds since 1970, `until` itself excluded. Person, time, flag and verdict are
    those of one answer that stands; of a skip, where skips are asked for."""

    words: Words = NO_WORDS
    only: Only | None = None
    person: int | None = None
    since: float | None = None
    until: float | None = None
    flag: str | None = None
    task: str | None = None
    kind: str | None = None
    split: str | None = None


def found(connection: Connection, asked: Asked, order: Order = "import", after: int | None = None) -> Found:
    """{"items": one page of them, "next": what to give as `after` for the next one, or null at the end}."""
    newest = order == "latest"
    query, key = select(item), item.c.number
    if newest:
        # Walked down the ledger: each item at its newest row.
        newer = label.alias()
        last = ~exists().where(newer.c.item == label.c.item, newer.c.seq > label.c.seq)
        query, key = query.join(label, label.c.item == item.c.id).where(last), label.c.seq
    rows, more = page(
        chunks(connection, _filtered(query, asked).add_columns(key.label("key")), key, after, newest),
        lambda chunk: _holding(connection, chunk, asked),
        PAGE,
    )
    given, left = answers(connection, [row.id for row in rows]), _leases(connection, [row.id for row in rows])
    overlap = connection.execute(select(project.c.overlap)).scalar_one()
    fields = ("id", "number", "task", "prompt", "replies", "prompt_id", "kind", "split", "gold", "source_file")
    shown = [
        {name: row._mapping[name] for name in fields}
        | {"wanted": row.overlap or overlap, "withdrawn": row.withdrawn, "answers": given[row.id], **left[row.id]}
        | {"disagree": opposed([one for one in given[row.id] if one["stands"]])}
        for row in rows
    ]
    return {"items": shown, "next": more}


def offers(connection: Connection) -> dict[str, list[str]]:
    """What the filters can be set to."""
    values = {
        f"{name}s": list(connection.execute(select(item.c[name]).distinct().order_by(item.c[name])).scalars())
        for name in ("task", "kind", "split")
    }
    now = connection.execute(select(project.c.flags)).scalar_one()
    return values | {"flags": list(dict.fromkeys([*now, *once_offered(connection)]))}


def _filtered(query: Select[Any], asked: Asked) -> Select[Any]:
    """The rows that may be meant; what SQL cannot tell is `_holding`'s business."""
    for name in ("task", "kind", "split"):
        value = getattr(asked, name)
        query = query.where(item.c[name] == value) if value is not None else query
    match asked.only:
        case "gold":
            query = query.where(item.c.gold.is_not(None))
        case "withdrawn":
            query = query.where(item.c.withdrawn)
        case "unanswered":
            query = query.where(~exists().where(_other.c.item == item.c.id))
        case "disagree":
            one, other = lease.alias(), lease.alias()
            pair = and_(one.c.item == item.c.id, other.c.item == item.c.id, one.c.person < other.c.person)
            query = query.where(exists().where(pair, one.c.state == "done", other.c.state == "done"))
    query = query.where(_of_one_answer(asked))
    own = label.alias()
    return query.where(
        asked.words.maybe(
            lambda has: or_(
                *(has(item.c[name]) for name in ("prompt", "replies", "id", "prompt_id", "source_file")),
                exists().where(own.c.item == item.c.id, has(own.c.body)),
            )
        )
    )


def _of_one_answer(asked: Asked) -> ColumnElement[bool]:
    """That there is an answer, or a skip, by the person, in the time and with the marks that are asked for."""
    own, given = label.alias(), lease.alias()
    skip = asked.only == "skipped"
    when = given.c.served_at if skip else own.c.created
    wanted: list[ColumnElement[bool]] = []
    if asked.person is not None:
        wanted.append(given.c.person == asked.person)
    if asked.since is not None:
        wanted.append(when >= asked.since)
    if asked.until is not None:
        wanted.append(when < asked.until)
    if skip:
        return exists().where(given.c.item == item.c.id, given.c.state == "released", ~given.c.late, *wanted)
    if asked.flag is not None:
        wanted.append(own.c.body.contains(json.dumps(asked.flag), autoescape=True))
    if asked.only in ("all_bad", "cannot_judge"):
        wanted.append(own.c.body.contains(f'"verdict":"{asked.only}"', autoescape=True))
    if asked.only == "late":
        wanted.append(own.c.late)
    if asked.only == "set aside":
        wanted.append(given.c.aside)
    if not wanted:
        return true()
    stands = ~exists().where(_later.c.supersedes == own.c.seq)
    return exists().where(own.c.item == item.c.id, given.c.id == own.c.lease, stands, *wanted)


def _holding(connection: Connection, rows: list[Row[Any]], asked: Asked) -> list[Row[Any]]:
    """Of a chunk's rows those that hold what SQL alone could not tell."""
    if not (asked.words.words or asked.flag or asked.only == "disagree"):
        return rows
    given = answers(connection, [row.id for row in rows])
    kept = []
    for row in rows:
        standing = [one for one in given[row.id] if one["stands"]]
        if asked.only == "disagree" and not opposed(standing):
            continue
        if asked.flag and not any(_flagged(one, asked) for one in standing):
            continue
        if asked.words.among(_texts(row, given[row.id])):
            kept.append(row)
    return kept


def _flagged(answer: Found, asked: Asked) -> bool:
    own = asked.person is None or answer["person"] == asked.person
    early = asked.since is not None and answer["created"] < asked.since
    late = asked.until is not None and answer["created"] >= asked.until
    return own and not early and not late and any(asked.flag in flags for flags in answer["flags"])


def _texts(row: Row[Any], given: Sequence[Found]) -> list[str]:
    said = [part for answer in given for part in (answer["reason"], answer["text"] or "")]
    shown = [*(turn["content"] for turn in row.prompt), *(reply["text"] for reply in row.replies)]
    return [*shown, *said, row.id, row.prompt_id, row.source_file]


def opposed(standing: Sequence[Found]) -> bool:
    """Whether two people put two replies in opposite orders; a tie contradicts nobody."""
    verdicts = [
        (one["person"], verdicts_of(tuple(one["ranks"]))) for one in standing if one["ranks"] and not one["aside"]
    ]
    return any(
        who != other and any(sign * second[pair] < 0 for pair, sign in first.items())
        for (who, first), (other, second) in combinations(verdicts, 2)
    )


def answers(connection: Connection, items: Sequence[str]) -> dict[str, list[Found]]:
    """Everything that was said of the items: a person's rows together, the oldest first."""
    query = (
        select(
            label, person.c.name, *lease.c["purpose", "aside"], lease.c.person.label("whose"), _STANDS.label("stands")
        )
        .join(lease, lease.c.id == label.c.lease)
        .join(person, person.c.id == lease.c.person)
        .where(label.c.item.in_(items))
        .order_by(person.c.name, label.c.lease, label.c.seq)
    )
    fields = ("seq", "name", "created", "seconds", "late", "purpose", "aside", "guidelines", "stands")
    given: dict[str, list[Found]] = defaultdict(list)
    empty: Found = {"ranks": None, "verdict": None, "strength": None, "reason": "", "flags": [], "text": None}
    for row in connection.execute(query):
        head = {name: row._mapping[name] for name in fields}
        given[row.item].append(
            head | {"person": row.whose, "active": row.active_seconds} | empty | json.loads(row.body)
        )
    return given


def _leases(connection: Connection, items: Sequence[str]) -> dict[str, Found]:
    """Who skipped an item, and who has it now."""
    query = (
        select(*lease.c["item", "served_at", "state"], person.c.name)
        .join(person, person.c.id == lease.c.person)
        .where(lease.c.item.in_(items), or_(lease.c.state == "open", and_(lease.c.state == "released", ~lease.c.late)))
        .order_by(lease.c.served_at)
    )
    left: dict[str, Found] = defaultdict(lambda: {"skipped": [], "open": []})
    for row in connection.execute(query):
        left[row.item]["open" if row.state == "open" else "skipped"].append({"name": row.name, "at": row.served_at})
    return left
