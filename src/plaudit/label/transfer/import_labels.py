"""Labels into the database, from files of rankings, pairs, HH texts or demonstrations that say who chose what.

A row becomes an item and a label of the person it names; of rows that name nobody, the first on an item goes to a
person called "(not named)", the next to "(not named 2)" and so on. Such people are made without a password and cannot
log in. Importing a file again changes nothing; a row that differs from what that person said of the item before is a
correction: the old row stays in the ledger.

Unlike `items.drafts`, which takes a file's replies to be labelled and drops its ranks.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from plaudit.data.files import undecided
from plaudit.data.formats.reader import Reader
from plaudit.data.hashes import sha256_text
from plaudit.errors import UserError
from plaudit.label.db.database import writing
from plaudit.label.db.names import known_person
from plaudit.label.db.schema import LIVE, item, label, lease, person, project
from plaudit.label.kinds import body_of
from plaudit.label.kinds.rank import STRENGTHS, dense
from plaudit.label.kinds.shared import BadAnswer, canonical
from plaudit.label.queue.items import Draft, add_items, draft_of
from plaudit.label.queue.leases import SLOTS, recount
from plaudit.label.transfer.export import unnamed
from plaudit.records import Demonstration, Labelled, Ranking

_AT_ONCE = 200


@dataclass(frozen=True)
class Imported:
    """What became of a file's rows."""

    items: int
    labels: int
    known: int
    """Labels that were there already."""


@dataclass(frozen=True)
class _Said:
    """One row: an item, and what somebody (None: nobody is named) said of it, as an annotator's page sends it."""

    place: str
    draft: Draft
    annotator: str | None
    sent: dict[str, Any]


def import_labels(
    engine: Engine, source: str | Path, *, compare: bool = False, annotator: str | None = None
) -> Imported:
    """Read the whole file, then write it in parts, each whole or not at all; after a stop, import it again.

    With `compare` rankings of two replies become items of task compare. `annotator` names who labelled, where the rows
    do not. UserError with the place for a row that is no label, and before anything is written.
    """
    rows = list(_rows(source, compare, annotator))
    if not rows:
        raise UserError(f"{source}: holds no labels")
    for row in rows:
        _body(row)
    new, _ = add_items(engine, (row.draft for row in rows))
    seen: Counter[str] = Counter()
    added = 0
    for start in range(0, len(rows), _AT_ONCE):
        with writing(engine) as connection:
            for row in rows[start : start + _AT_ONCE]:
                name = row.annotator
                if name is None:
                    seen[row.draft.id] += 1
                    name = unnamed(seen[row.draft.id])
                added += _put(connection, row, _person(connection, name))
    return Imported(new, added, len(rows) - added)


def put_label(engine: Engine, draft: Draft, annotator: str, sent: dict[str, Any]) -> bool:
    """One label that was given on another page, with its item; whether it is new. `sent` is in the item's order."""
    add_items(engine, [draft])
    with writing(engine) as connection:
        return _put(connection, _Said("the choice", draft, annotator, sent), _person(connection, annotator))


def _rows(source: str | Path, compare: bool, annotator: str | None) -> Iterator[_Said]:
    for row, record in Reader(source, by_person=True):
        if isinstance(record, Demonstration):
            draft = Draft("write", record.prompt, (), (), source_file="import")
            yield _Said(row.place, draft, record.annotator or annotator, {"text": record.completion})
        elif isinstance(record, Ranking):
            yield _ranking(row.place, record, compare, annotator)
        elif isinstance(record, Labelled):
            raise UserError(
                f"{row.place}: a reply that was liked or not is no answer to a task of this service; name the file in "
                "preferences.unpaired of a recipe"
            )
        else:
            fix = "`plaudit label serve` takes it as an item"
            raise UserError(f"{row.place}: a prompt without a reply is no label; {fix}")


def _ranking(place: str, record: Ranking, compare: bool, annotator: str | None) -> _Said:
    if problem := undecided(place, record):
        raise UserError(problem)
    draft = draft_of(place, record, "compare" if compare else "rank", False, "import")
    if record.strength is not None and record.strength not in STRENGTHS:
        raise UserError(f"{place}: field 'strength' is {record.strength:g}; a label's is 1, 2 or 3: scale or remove it")
    strength = None if record.strength is None else int(record.strength)
    sent = {"ranks": list(dense(record.ranks)), "strength": strength}
    return _Said(place, draft, record.annotator or annotator, sent)


def _person(connection: Connection, name: str) -> int:
    """Whose this name is, in capitals or not, as where people sign in: otherwise somebody agrees with themselves."""
    if (known := known_person(connection, name)) is not None:
        return int(known.id)
    made = insert(person).values(name=name, role="annotator", password_hash=None, active=False, created=time.time())
    return int(connection.execute(made.returning(person.c.id)).scalar_one())


def _body(row: _Said) -> str:
    """What the ledger keeps of the answer."""
    try:
        return canonical(body_of(row.draft.task, range(len(row.draft.replies)), (), row.sent))
    except BadAnswer as error:
        raise UserError(f"{row.place}: field {error.field!r}: {error.error}; {error.fix}") from error


def _put(connection: Connection, row: _Said, who: int) -> bool:
    """Whether the label is new."""
    identity, body = row.draft.id, _body(row)
    client = sha256_text(f"import {identity} {who} {body}")
    if connection.execute(select(label.c.seq).where(label.c.client_id == client)).first() is not None:
        return False
    own = select(lease.c.id, lease.c.state).where(lease.c.item == identity, lease.c.person == who)
    held = connection.execute(own.where(lease.c.purpose == "normal", LIVE)).first()
    now = time.time()
    last = None
    if held is None:
        which = _lease(connection, row.draft.task, identity, who, now)
    else:
        which = held.id
        if held.state == "open":
            connection.execute(update(lease).where(lease.c.id == which).values(state="done"))
        newest = select(label.c.seq, label.c.body_hash).where(label.c.lease == which).order_by(label.c.seq.desc())
        last = connection.execute(newest.limit(1)).first()
        if last is not None and last.body_hash == sha256_text(body):
            return False
    # No order and no seconds: nobody was shown anything, so neither can be judged.
    unseen = {"created": now, "seconds": 0.0, "order": [], "late": False}
    kept = {"client_id": client, "body": body, "body_hash": sha256_text(body)}
    supersedes = None if last is None else last.seq
    said = {"lease": which, "item": identity, "person": who, "supersedes": supersedes, **kept, **unseen}
    connection.execute(insert(label), said)
    return True


def _lease(connection: Connection, task: str, identity: str, who: int, now: float) -> str:
    """A lease that is done, in a free slot of the item where there is one, else beside them."""
    overlap = connection.execute(select(project.c.overlap)).scalar_one()
    wanted = connection.execute(select(item.c.overlap).where(item.c.id == identity)).scalar_one() or overlap
    taken = connection.execute(SLOTS, {"which": identity}).scalars()
    slot = min(set(range(1, wanted + 1)) - set(taken), default=None)
    which = uuid.uuid4().hex
    done = {"served_at": now, "expires_at": now, "state": "done", "purpose": "normal", "late": False}
    row = {"id": which, "item": identity, "person": who, "task": task, "slot": slot, "order": [], **done}
    connection.execute(insert(lease), row)
    recount(connection, identity)
    return which
