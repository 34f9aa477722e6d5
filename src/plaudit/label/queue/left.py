"""What may still be answered: a run that waits for people ends when nothing is.

A slot stays open for as long as somebody can fill it. Who can is a *labeller*: an annotator who is not disabled,
invited ones too, or an admin who has labelled; unless their quota is used up, or the item is for somebody else or not
of their fields. A slot that every labeller had (skipped, or could not judge) is open only while the item is for more
people than there are labellers: then somebody else is still expected.
"""

from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select

from plaudit.label.db.schema import WAITING, item, lease, person
from plaudit.label.queue.allowances import Allowance, allowances
from plaudit.label.queue.leases import BACK, HELD, WANTED

_own = lease.alias()
_labeller = and_(person.c.active, or_(person.c.role == "annotator", exists().where(_own.c.person == person.c.id)))
# Told what is outside, for SQLAlchemy looks no further than one query out and would join every item to every lease.
_had = exists().where(lease.c.item == item.c.id, lease.c.person == person.c.id, ~BACK).correlate(item, person)
_expected = select(func.count()).select_from(person).where(_labeller).scalar_subquery() < WANTED
_held = exists().where(lease.c.item == item.c.id, HELD, lease.c.purpose == "normal")


def _may(limits: Mapping[int, Allowance]) -> ColumnElement[bool]:
    """Whether a person may be given an item, by whom it is for and by what they may still be given."""
    own = [
        and_(person.c.id == who, or_(item.c.assigned == who, item.c.kind.in_(allowed.kinds)))
        for who, allowed in limits.items()
        if allowed.kinds is not None and allowed.left != 0
    ]
    done = [who for who, allowed in limits.items() if allowed.left == 0]
    free = person.c.id.not_in([who for who, allowed in limits.items() if allowed.kinds is not None])
    return and_(item.c.assigned.in_((0, person.c.id)), person.c.id.not_in(done), or_(free, *own))


def waiting(connection: Connection) -> ColumnElement[bool]:
    """Whether an item has a slot that somebody can fill."""
    able = exists().where(_labeller, ~_had, _may(allowances(connection)))
    return and_(WAITING, or_(_expected, able))


def any_open(connection: Connection, among: Collection[str]) -> bool:
    """Whether one of these items is being answered, or waits for somebody."""
    still = or_(_held, waiting(connection))
    found = connection.execute(select(item.c.id).where(still).execution_options(yield_per=200))
    return any(identity in among for identity in found.scalars())
