"""What somebody may be given: all that waits, or the kinds of prompts that they know, up to a quota."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from plaudit.errors import UserError
from plaudit.label.db.schema import LIVE, item, lease, person, person_field


@dataclass(frozen=True)
class Allowance:
    """`kinds` are those of prompts that somebody is given, None for all; `left` is how many labels more, None for any
    number; both with what was given already taken off."""

    kinds: tuple[str, ...] | None = None
    left: int | None = None

    @property
    def nothing(self) -> bool:
        return self.left == 0 or self.kinds == ()


def allowances(connection: Connection, who: int | None = None) -> dict[int, Allowance]:
    """What each person, or this one, may still be given; only of those who have a quota or fields."""
    people, fields = select(person.c.id, person.c.quota), select(person_field)
    given = select(lease.c.person, func.count().label("n")).where(LIVE, ~lease.c.aside).group_by(lease.c.person)
    if who is not None:
        people, fields = people.where(person.c.id == who), fields.where(person_field.c.person == who)
        given = given.where(lease.c.person == who)
    quotas = {row.id: row.quota for row in connection.execute(people)}
    known: dict[int, dict[str, int | None]] = {}
    for row in connection.execute(fields):
        known.setdefault(row.person, {})[row.kind] = row.quota
    limited = {one for one, quota in quotas.items() if quota is not None} | known.keys()
    if not limited:
        return {}
    in_all = {row.person: row.n for row in connection.execute(given)}
    of_kind: dict[tuple[int, str], int] = {}
    if any(most is not None for own in known.values() for most in own.values()):  # else no item need be looked at
        by_kind = given.join(item, item.c.id == lease.c.item).add_columns(item.c.kind).group_by(item.c.kind)
        of_kind = {(row.person, row.kind): row.n for row in connection.execute(by_kind)}
    found = {}
    for one in limited:
        quota, own = quotas[one], known.get(one)
        kinds = None
        if own is not None:
            kinds = tuple(kind for kind, most in own.items() if most is None or of_kind.get((one, kind), 0) < most)
        found[one] = Allowance(kinds, None if quota is None else max(0, quota - in_all.get(one, 0)))
    return found


def set_allowance(
    connection: Connection,
    who: int,
    *,
    paused: bool | None = None,
    quota: int | None = None,
    fields: Mapping[str, int | None] | None = None,
) -> None:
    """Change what is given of these. A `quota` of 0 is none; `fields` are kinds of prompts with the quota of each, in
    place of those of before, and none of them is all kinds. UserError for a number that is none."""
    for number in (quota, *(fields or {}).values()):
        if number is not None and not 0 <= number < 2**31:
            raise UserError(f"quota {number}: write a number of labels, 0 for no limit")
    values: dict[str, Any] = {} if paused is None else {"paused": paused}
    if quota is not None:
        values["quota"] = quota or None
    if values:
        connection.execute(update(person).where(person.c.id == who).values(values))
    if fields is not None:
        connection.execute(delete(person_field).where(person_field.c.person == who))
        rows = [{"person": who, "kind": kind, "quota": most or None} for kind, most in fields.items()]
        if rows:
            connection.execute(insert(person_field), rows)


def read_fields(text: str) -> dict[str, int | None]:
    """Fields as people write them: "medical 50; law" is at most 50 labels of the kind medical and any number of law."""
    fields: dict[str, int | None] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        kind, _, number = part.rpartition(" ")
        if kind and number.isdecimal():
            fields[kind.strip()] = int(number)
        else:
            fields[part] = None
    return fields


def written_fields(fields: Mapping[str, int | None]) -> str:
    """The inverse of `read_fields`."""
    return "; ".join(kind if most is None else f"{kind} {most}" for kind, most in fields.items())
