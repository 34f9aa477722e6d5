"""Who labels what: claim, submit, correct, release. Each function is one job inside a transaction of `Writer`.

The overlap. An item has as many slots as people are wanted for it. A claim takes a slot, and the schema holds that no
two live leases of an item have the same one: whatever races, an item never goes to more people than asked. Gold items
and consistency checks take no slot, and "cannot judge" gives it back: somebody else is asked.

Leases. A person holds at most one item of a task. When a lease has run out and somebody else asks for work, its slot is
free again. What comes in late is kept, flagged, and outside the overlap.

The ledger. A label is added and never changed: a change of mind is a new row that `supersedes` the one before.
"""

import random
import time
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, case, exists, func, insert, or_, select, update

from plaudit.data.hashes import sha256_text
from plaudit.label.db.database import Raced
from plaudit.label.db.schema import LIVE, WAITING, conflict, item, label, lease, person, person_field, project
from plaudit.label.kinds import body_of
from plaudit.label.kinds.shared import BadAnswer, canonical
from plaudit.label.queue.allowances import Allowance, allowances
from plaudit.label.queue.settings import once_offered

_draw = random.SystemRandom()
_SWEPT_AT_ONCE = 50
CHECKED_AFTER = 5


@dataclass(frozen=True)
class Claimed:
    """A lease with what is to be shown of its item, and the version of the settings that hold."""

    lease: str
    task: str
    order: list[int]
    expires_at: float
    prompt: list[dict[str, str]]
    replies: list[dict[str, Any]]
    settings: int


@dataclass(frozen=True)
class Stored:
    """A row of the ledger. `replayed`: it was there already, from an earlier try with the same client id."""

    seq: int
    late: bool
    replayed: bool


class NotYours(PermissionError):
    """The lease or label is not this person's, or is not there; they cannot tell which."""


class Answered(RuntimeError):
    """The lease has another answer already, of this number; a correction can take its place."""

    def __init__(self, seq: int):
        super().__init__(f"answered already: {seq}")
        self.seq = seq


@dataclass(frozen=True)
class Conflict:
    """The client id is in the ledger with another body; this one was put into the table `conflict`."""

    client: str


# --- statements, built once ---

_Queries = dict[tuple[bool, bool], Select[Any]]
"""The query for items of any task or of one, and of any kind of prompt or of some."""


def _any_or_task(query: Select[Any]) -> _Queries:
    of_task = query.where(item.c.task == bindparam("task"))
    of_kinds = item.c.kind.in_(bindparam("kinds", expanding=True))
    both = {(False, False): query, (True, False): of_task}
    return both | {(False, True): query.where(of_kinds), (True, True): of_task.where(of_kinds)}


_THIS_ITEM, _THIS_LEASE = item.c.id == bindparam("which"), lease.c.id == bindparam("which")
_MINE, HELD = lease.c.person == bindparam("me"), lease.c.state == "open"

_EARLIEST = select(func.min(lease.c.expires_at)).where(HELD).scalar_subquery().label("earliest")
_me = select(person.c.paused).where(person.c.id == bindparam("me")).scalar_subquery()
_has_quota = exists().where(person.c.id == bindparam("me"), person.c.quota.is_not(None))
_LIMITED = or_(_has_quota, exists().where(person_field.c.person == bindparam("me")))
_SETTINGS = select(
    *project.c["overlap", "lease_minutes", "consistency_rate", "gold_rate", "version", "guidelines_version", "paused"],
    _EARLIEST,
    _me.label("resting"),
    _LIMITED.label("limited"),
)
_STALE = (
    select(lease.c.id, lease.c.item, lease.c.slot)
    .where(HELD, lease.c.expires_at < bindparam("now"), ~_MINE)
    .limit(_SWEPT_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_END = update(lease).where(_THIS_LEASE, HELD).values(state=bindparam("to"))
_TAKEN = select(func.count()).where(lease.c.item == item.c.id, lease.c.slot.is_not(None), LIVE).scalar_subquery()


def _at_least_0(number: Any) -> Any:
    """max(0, number), in words that both databases know."""
    return case((number > 0, number), else_=0)


_LOCK_ITEM = select(item.c.id).where(_THIS_ITEM).with_for_update()
WANTED = func.coalesce(item.c.overlap, select(project.c.overlap).scalar_subquery())
_RECOUNT = update(item).where(_THIS_ITEM).values(free=case((item.c.withdrawn, 0), else_=_at_least_0(WANTED - _TAKEN)))
_SHOWN = item.c["id", "prompt", "replies", "task", "overlap", "priority", "number"]
_OPEN = _any_or_task(
    select(lease, item.c.prompt, item.c.replies)
    .join(item, item.c.id == lease.c.item)
    .where(_MINE, HELD)
    .order_by(lease.c.served_at)
    .limit(1)
    .with_for_update(of=lease)
)
_RENEW = update(lease).where(_THIS_LEASE).values(expires_at=bindparam("until"))
BACK = and_(lease.c.state == "expired", ~lease.c.late)
"""Leases that ran out without an answer: their item may come again."""
HAD = exists().where(lease.c.item == item.c.id, _MINE, ~BACK)
"""What this person had, but for what may come again."""
_WAITING = (
    select(*_SHOWN)
    .where(WAITING, item.c.assigned == bindparam("to"), ~HAD)
    .order_by(item.c.priority.desc(), item.c.number)
    .limit(1)
)
_NEXT = _any_or_task(_WAITING.with_for_update(of=item, skip_locked=True))
_NEXT_OF_ALL = _any_or_task(_WAITING.with_for_update(of=item))
_GOLD = _any_or_task(
    select(*_SHOWN).where(item.c.gold.is_not(None), ~item.c.withdrawn, ~HAD).order_by(item.c.number).limit(1)
)
_other = lease.alias()
# A check of consistency is of something that the person answered, and then at least so many others.
_WHILE_AGO = (
    select(_other.c.served_at)
    .where(_other.c.person == bindparam("me"), _other.c.state == "done")
    .order_by(_other.c.served_at.desc())
    .limit(1)
    .offset(CHECKED_AFTER)
    .scalar_subquery()
)
_CHECKED = exists().where(
    _other.c.item == item.c.id, _other.c.person == bindparam("me"), _other.c.purpose == "consistency"
)
_AGAIN = _any_or_task(
    select(*_SHOWN)
    .join(lease, lease.c.item == item.c.id)
    .where(_MINE, lease.c.purpose == "normal", lease.c.state == "done", lease.c.served_at <= _WHILE_AGO, ~_CHECKED)
    .where(~item.c.withdrawn)
    .order_by(lease.c.served_at)
    .limit(1)
)
SLOTS = select(lease.c.slot).where(lease.c.item == bindparam("which"), lease.c.slot.is_not(None), LIVE)
_TAKE = update(item).where(_THIS_ITEM).values(free=item.c.free - 1)
_LEASED = (
    select(lease, *project.c["flags", "guidelines_version"])
    .join(project, project.c.id == 1)
    .where(_THIS_LEASE)
    .with_for_update(of=lease)
)
# What the ledger has of this client id and of this lease, newest first.
_KNOWN = (
    select(*label.c["seq", "client_id", "person", "lease", "body_hash", "late", "seconds", "active_seconds"])
    .where(or_(label.c.client_id == bindparam("client"), label.c.lease == bindparam("which")))
    .order_by(label.c.seq.desc())
)
_ADD = insert(label).returning(label.c.seq)
_ANSWERED = update(lease).where(_THIS_LEASE).values(state=bindparam("to"), late=bindparam("is_late"))
_GIVEN_SLOT = update(lease).where(_THIS_LEASE).values(slot=bindparam("number"))
_LEASE_OF = select(lease.c.id).join(label, label.c.lease == lease.c.id).where(label.c.seq == bindparam("number"), _MINE)


# --- claim and release ---


def claim(connection: Connection, me: int, task: str | None = None, now: float | None = None) -> Claimed | None:
    """The next item for person `me` (of `task`, if not None); the one they hold already, if they hold one; None when
    nothing is left. `now` is the server's clock unless a test says otherwise."""
    now = time.time() if now is None else now
    settings = connection.execute(_SETTINGS, {"me": me}).one()
    if settings.earliest is not None and settings.earliest < now:
        # End the leases of others that ran out, and give their slots back.
        for stale in connection.execute(_STALE, {"now": now, "me": me}).all():
            _end(connection, stale, "expired")
    held = _first(connection, _OPEN, me, task, None)
    if held is not None:
        expires = held.expires_at
        if expires < now:
            # It ran out, but nobody took the slot: the person has it again, with their order and draft.
            expires = now + 60 * settings.lease_minutes
            connection.execute(_RENEW, {"which": held.id, "until": expires})
        return Claimed(held.id, held.task, held.order, expires, held.prompt, held.replies, settings.version)
    allowed = allowances(connection, me)[me] if settings.limited else Allowance()
    idle = settings.paused or settings.resting or allowed.nothing
    chosen, purpose = (None, "") if idle else _choose(connection, me, task, settings, allowed.kinds)
    if chosen is None:
        return None
    slot = _slot(connection, chosen.id, chosen.overlap or settings.overlap) if purpose == "normal" else None
    order = list(range(len(chosen.replies)))
    _draw.shuffle(order)
    expires = now + 60 * settings.lease_minutes
    made = Claimed(uuid.uuid4().hex, chosen.task, order, expires, chosen.prompt, chosen.replies, settings.version)
    row = {"id": made.lease, "item": chosen.id, "person": me, "task": chosen.task, "slot": slot, "order": order}
    times = {"served_at": now, "expires_at": expires}
    given = {"guidelines": settings.guidelines_version, "state": "open", "purpose": purpose, "late": False}
    connection.execute(insert(lease), {**row, **times, **given})
    return made


def end_open(connection: Connection, who: int, task: str | None = None) -> None:
    """What somebody holds (of a task) goes to others; it may come to them again."""
    for held in connection.execute(select(lease).where(lease.c.person == who, HELD)).all():
        if task in (None, held.task):
            _end(connection, held, "expired")


def _end(connection: Connection, ended: Any, state: str) -> None:
    connection.execute(_END, {"which": ended.id, "to": state})
    if ended.slot is not None:
        recount(connection, ended.item)


def recount(connection: Connection, which: str) -> None:
    """Set an item's free slots to what the leases say."""
    # Locked by a statement of its own: PostgreSQL counts by what was committed when the counting statement began.
    connection.execute(_LOCK_ITEM, {"which": which})
    connection.execute(_RECOUNT, {"which": which})


def _choose(
    connection: Connection, me: int, task: str | None, settings: Any, kinds: tuple[str, ...] | None
) -> tuple[Row[Any] | None, str]:
    """(item, purpose): by lot a gold item or a consistency check, else the first that waits."""
    lot = _draw.random()
    extra, purpose = (_GOLD, "gold") if lot < settings.gold_rate else (_AGAIN, "consistency")
    if lot < settings.gold_rate + settings.consistency_rate:
        chosen = _first(connection, extra, me, task, kinds)
        if chosen is not None:
            return chosen, purpose
    # An item that another claim holds is skipped; when all that is left is held, wait for them.
    chosen = _waiting(connection, _NEXT, me, task, kinds)
    if chosen is None and connection.dialect.name != "sqlite":
        chosen = _waiting(connection, _NEXT_OF_ALL, me, task, kinds)
    return chosen, "normal"


def _waiting(
    connection: Connection, queries: _Queries, me: int, task: str | None, kinds: tuple[str, ...] | None
) -> Row[Any] | None:
    """The first item that is for this person alone, else the first for anybody, of some kinds if not None."""
    own = _first(connection, queries, me, task, None, to=me)
    if own is not None:
        return own
    # Each kind by itself: an index has its items in their order, and of several kinds together none has.
    each = [None] if kinds is None else [(kind,) for kind in kinds]
    found = [row for kind in each if (row := _first(connection, queries, me, task, kind, to=0)) is not None]
    return min(found, key=lambda row: (-row.priority, row.number), default=None)


def _first(
    connection: Connection, queries: _Queries, me: int, task: str | None, kinds: tuple[str, ...] | None, to: int = 0
) -> Row[Any] | None:
    query = queries[task is not None, kinds is not None]
    return connection.execute(query, {"me": me, "task": task, "kinds": kinds, "to": to}).first()


def _slot(connection: Connection, which: str, overlap: int) -> int:
    """The lowest slot of the item that no live lease has; the item's row is locked."""
    taken = set(connection.execute(SLOTS, {"which": which}).scalars())
    left = set(range(1, overlap + 1)) - taken
    if not left:
        raise Raced("the overlap was changed meanwhile")
    connection.execute(_TAKE, {"which": which})
    return min(left)


def release(connection: Connection, me: int, which: str) -> None:
    """Give an open lease back: the item goes to somebody else, and not to this person again. NotYours."""
    held = connection.execute(_LEASED, {"which": which}).first()
    if held is None or held.person != me:
        raise NotYours
    if held.state == "open":
        _end(connection, held, "released")


# --- submit and correct ---


def submit(
    connection: Connection,
    me: int,
    which: str,
    client: str,
    sent: dict[str, Any],
    now: float | None = None,
    *,
    active: float | None = None,
    first: bool = False,
) -> Stored | Conflict:
    """Put the answer to a lease into the ledger; a second answer to the same lease supersedes the first.

    A client id that is known gives the stored row if lease and body are the same, else a Conflict, which is no
    exception: its row in `conflict` is to be committed. With `first` another answer to a lease that has one, from a
    second device, is Answered. NotYours and BadAnswer are raised.
    """
    now = time.time() if now is None else now
    held = connection.execute(_LEASED, {"which": which}).first()
    if held is None or held.person != me:
        raise NotYours
    body = canonical(_body(connection, held, sent))
    digest = sha256_text(body)
    rows = connection.execute(_KNOWN, {"client": client, "which": which}).all()
    known = next((row for row in rows if row.client_id == client), None)
    if known is not None:
        if (known.person, known.lease, known.body_hash) == (me, which, digest):
            return Stored(known.seq, known.late, replayed=True)
        second = {"client_id": client, "person": me, "lease": which, "body": body, "created": now}
        connection.execute(insert(conflict), second)
        return Conflict(client)
    if first and rows:
        if rows[0].body_hash == digest:
            return Stored(rows[0].seq, rows[0].late, replayed=True)
        raise Answered(rows[0].seq)
    row = {"client_id": client, "lease": which, "item": held.item, "person": me, "created": now, "order": held.order}
    row |= {"body": body, "body_hash": digest}
    if rows:
        last = rows[0]
        # The time is still that from serving to the first answer.
        row |= {"late": last.late, "seconds": last.seconds, "supersedes": last.seq}
        row |= {"active_seconds": last.active_seconds, "guidelines": held.guidelines_version}
    else:
        late = held.state != "open" or now > held.expires_at
        seconds = max(0.0, now - held.served_at)
        row |= {"late": late, "seconds": seconds, "supersedes": None, "guidelines": held.guidelines}
        row |= {"active_seconds": None if active is None else min(active, seconds)}
    seq = connection.execute(_ADD, row).scalar_one()
    late = row["late"]
    if not rows:
        state = held.state if held.state != "open" else "expired" if late else "done"
        connection.execute(_ANSWERED, {"which": which, "to": state, "is_late": late})
        if held.state == "open" and late and held.slot is not None:
            recount(connection, held.item)
    if not late and held.purpose == "normal":
        _keep_slot(connection, held, judged=sent.get("verdict") != "cannot_judge")
    return Stored(seq, late, replayed=False)


def _body(connection: Connection, held: Row[Any], sent: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer. A flag that was on offer once stands: a label that has it can still be corrected, and an
    answer that was begun before the change still sent."""
    try:
        return body_of(held.task, held.order, held.flags, sent)
    except BadAnswer as error:
        once = once_offered(connection) if error.field == "flags" else []
        if not once:
            raise
        return body_of(held.task, held.order, [*held.flags, *(flag for flag in once if flag not in held.flags)], sent)


def _keep_slot(connection: Connection, held: Row[Any], judged: bool) -> None:
    """A slot is for a judgement: "cannot judge" gives it back, a correction of that takes one again where one is."""
    if judged == (held.slot is not None):
        return
    connection.execute(_LOCK_ITEM, {"which": held.item})
    slot = None
    if judged:
        wanted = connection.execute(select(WANTED).where(_THIS_ITEM), {"which": held.item}).scalar_one()
        taken = connection.execute(SLOTS, {"which": held.item}).scalars()
        slot = min(set(range(1, wanted + 1)) - set(taken), default=None)
    connection.execute(_GIVEN_SLOT, {"which": held.id, "number": slot})
    recount(connection, held.item)


def correct(connection: Connection, me: int, seq: int, client: str, sent: dict[str, Any]) -> Stored | Conflict:
    """A new answer in place of the label `seq`: see `submit`."""
    which = connection.execute(_LEASE_OF, {"number": seq, "me": me}).scalar()
    if which is None:
        raise NotYours
    return submit(connection, me, which, client, sent)
