"""Items that go out again: a skip taken back, skips offered anew, others asked in somebody's stead or besides, and
items taken out. Each function is one job inside a transaction of `Writer`."""

import time

from sqlalchemy import ColumnElement, Connection, func, select, update

from plaudit.label.db.schema import LIVE, item, label, lease, project
from plaudit.label.queue.leases import HELD, SLOTS, WANTED, NotYours, end_open, recount


def take_back(connection: Connection, me: int, which: str) -> bool:
    """Undo a skip: the item is this person's again, and what they hold of the same task comes back later. False when
    somebody else has it by now. NotYours."""
    skipped = connection.execute(select(lease).where(lease.c.id == which).with_for_update()).first()
    if skipped is None or skipped.person != me:
        raise NotYours
    if skipped.state != "released" or skipped.late:
        return skipped.state == "open"
    slot = None
    if skipped.purpose == "normal":
        query = select(WANTED.label("wanted"), item.c.withdrawn).where(item.c.id == skipped.item)
        row = connection.execute(query.with_for_update(of=item)).one()
        taken = set(connection.execute(SLOTS, {"which": skipped.item}).scalars())
        slot = min(set(range(1, row.wanted + 1)) - taken, default=None)
        if slot is None or row.withdrawn:
            return False
    end_open(connection, me, skipped.task)
    minutes = connection.execute(select(project.c.lease_minutes)).scalar_one()
    again = {"state": "open", "slot": slot, "expires_at": time.time() + 60 * minutes}
    connection.execute(update(lease).where(lease.c.id == which).values(again))
    recount(connection, skipped.item)
    return True


def offer_again(connection: Connection, who: int | None = None) -> int:
    """Skipped items may come again to those who skipped them, or to this one person; how many."""
    skips = update(lease).where(lease.c.state == "released", ~lease.c.late)
    return connection.execute(
        (skips if who is None else skips.where(lease.c.person == who)).values(state="expired")
    ).rowcount


def ask_others(connection: Connection, who: int) -> int:
    """All that this person answered is asked of others instead; their labels stay, and do not count. How many items."""
    end_open(connection, who)
    return _set_aside(connection, lease.c.person == who)


def ask_instead(connection: Connection, seq: int) -> bool:
    """The same for one answer; False when it is no answer that was asked for as usual, or is set aside already."""
    return _set_aside(connection, lease.c.id == select(label.c.lease).where(label.c.seq == seq).scalar_subquery()) == 1


def _set_aside(connection: Connection, which: ColumnElement[bool]) -> int:
    answered = (which, LIVE, lease.c.purpose == "normal", ~lease.c.aside)
    items = connection.execute(select(lease.c.item).where(*answered)).scalars().all()
    connection.execute(update(lease).where(*answered).values(slot=None, aside=True))
    for item_of in items:
        recount(connection, item_of)
    return len(items)


def another_opinion(connection: Connection, which: str) -> bool:
    """One person more is asked of an item, before the others; False when it is not there. For what two disagree on."""
    query = select(WANTED.label("wanted"), item.c.gold, item.c.withdrawn).where(item.c.id == which)
    row = connection.execute(query).first()
    if row is None or row.gold is not None or row.withdrawn:
        return False
    first = connection.execute(select(func.max(item.c.priority))).scalar_one()
    connection.execute(update(item).where(item.c.id == which).values(overlap=row.wanted + 1, priority=first + 1))
    recount(connection, which)
    return True


def withdraw(connection: Connection, which: str, withdrawn: bool) -> bool:
    """Take an item out, or in again: it is served no more, and its labels stay and do not count."""
    changed = connection.execute(update(item).where(item.c.id == which).values(withdrawn=withdrawn)).rowcount == 1
    if changed:
        for held in connection.execute(select(lease.c.person).where(lease.c.item == which, HELD)).scalars().all():
            end_open(connection, held)
        gold = connection.execute(select(item.c.gold).where(item.c.id == which)).scalar_one()
        if gold is None:
            recount(connection, which)
    return changed
