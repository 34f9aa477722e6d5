"""What may still be answered: a run that waits for people ends when nothing is.

A slot stays open for as long as somebody can fill it. Who can is a *labeller*: an annotator who is not disabled,
invited ones too, or an admin who has labelled. A slot that every labeller had (skipped, or could not judge) is open
only while the item is for more people than there are labellers: then somebody else is still expected.
"""

from collections.abc import Collection

from sqlalchemy import Connection, and_, exists, func, or_, select

from plaudit.label.db.schema import item, lease, person
from plaudit.label.queue.leases import BACK, HELD, WANTED

_own = lease.alias()
_labeller = and_(person.c.active, or_(person.c.role == "annotator", exists().where(_own.c.person == person.c.id)))
# Told what is outside, for SQLAlchemy looks no further than one query out and would join every item to every lease.
_had = exists().where(lease.c.item == item.c.id, lease.c.person == person.c.id, ~BACK).correlate(item, person)
_expected = select(func.count()).select_from(person).where(_labeller).scalar_subquery() < WANTED
_able = exists().where(_labeller, ~_had)
_held = exists().where(lease.c.item == item.c.id, HELD, lease.c.purpose == "normal")
OPEN = or_(_held, and_(item.c.free > 0, or_(_expected, _able)))


def any_open(connection: Connection, among: Collection[str]) -> bool:
    """Whether one of these items is being answered, or has a slot that somebody can fill."""
    found = connection.execute(select(item.c.id).where(OPEN).execution_options(yield_per=200))
    return any(identity in among for identity in found.scalars())
