"""The project's settings: changed in one place, by one admin at a time, and written down with who changed what."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, case, func, insert, select, update

from plaudit.label.db.schema import admin_log, item, lease, project

_TAKEN = (
    select(func.count())
    .where(lease.c.item == item.c.id, lease.c.slot.is_not(None), lease.c.state.in_(("open", "done")))
    .scalar_subquery()
)


class Outdated(RuntimeError):
    """The settings were changed by somebody else since they were read."""


def note(connection: Connection, who: int | None, what: str, **detail: Any) -> None:
    """Write down what an admin did; None is the command line."""
    row = {"at": time.time(), "person": who, "what": what, "detail": detail}
    connection.execute(insert(admin_log), row)


def settle(
    connection: Connection, settings: Mapping[str, Any], who: int | None = None, version: int | None = None
) -> None:
    """Change the project's settings that are given and differ. Slots that are taken stay taken, whatever the overlap.

    `version` is that of the settings which the change was made from; Outdated where they are others by now.
    """
    now = connection.execute(select(project).with_for_update()).one()
    if version is not None and version != now.version:
        raise Outdated
    given = {name: value for name, value in settings.items() if value is not None and value != now._mapping[name]}
    if not given:
        return
    counts = {"version": now.version + 1, "guidelines_version": now.guidelines_version + ("guidelines" in given)}
    connection.execute(update(project).values(given | counts))
    note(connection, who, "settings", **{name: [now._mapping[name], value] for name, value in given.items()})
    if "overlap" in given:
        if connection.dialect.name == "postgresql":
            # Claims wait, so that the count below holds.
            connection.exec_driver_sql("LOCK TABLE item IN EXCLUSIVE MODE")
        left = given["overlap"] - _TAKEN
        change = update(item).where(item.c.gold.is_(None), item.c.overlap.is_(None), ~item.c.withdrawn)
        connection.execute(change.values(free=case((left > 0, left), else_=0)))


def not_of_overlap(engine: Engine, overlap: int) -> int:
    """How many items go to another number of people than the project's `overlap`, since they have one of their own."""
    query = select(func.count()).where(item.c.overlap != overlap, item.c.gold.is_(None), ~item.c.withdrawn)
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def gold_rate_of(engine: Engine) -> float:
    """The share of gold items among what is served."""
    with engine.connect() as connection:
        return float(connection.execute(select(project.c.gold_rate)).scalar_one())


def once_offered(connection: Connection) -> list[str]:
    """Every flag that the project had before, the latest first."""
    rows = connection.execute(
        select(admin_log.c.detail).where(admin_log.c.what == "settings").order_by(admin_log.c.id.desc())
    ).scalars()
    return list(dict.fromkeys(flag for detail in rows for flag in (detail.get("flags") or [[]])[0]))


def log(connection: Connection, most: int = 200) -> list[dict[str, Any]]:
    """What admins did, the newest first."""
    rows = connection.execute(select(admin_log).order_by(admin_log.c.id.desc()).limit(most))
    return [dict(row._mapping) for row in rows]
