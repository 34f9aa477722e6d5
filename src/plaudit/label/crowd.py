"""Paid crowds: one link for everybody, with the worker's id in it, and a code at the end that says they are done.

The link makes a person of whoever comes by it with a worker's id: an annotator without a password, with a quota. As
everybody of the crowd has the link, an id alone opens nobody's account: who has begun goes on in the same browser.
"""

import hashlib
import hmac
import secrets
import time
from typing import Any

from sqlalchemy import Connection, insert, select, update

from plaudit.data.hashes import sha256_text
from plaudit.errors import UserError
from plaudit.label.db.names import known_person, tidy_name
from plaudit.label.db.schema import person, project
from plaudit.label.people import begin_session, caller_of, is_name

WORKER = ("worker", "PROLIFIC_PID", "workerId")
"""Under which names platforms put the worker's id into an address."""


def open_to_crowd(connection: Connection, quota: int, code: str | None) -> str:
    """The token of a new link; an older one stops working. `quota` is of each who comes, `code` what they are told when
    they are done, None for one of their own. UserError for what cannot be."""
    if not 1 <= quota < 2**31:
        raise UserError(f"--quota {quota}: write how many labels each of the crowd is to give")
    if code is not None and not 1 <= len(code) <= 200:
        raise UserError(f"--code {code[:40]!r}: write 1 to 200 characters")
    token = secrets.token_urlsafe(32)
    values = {"crowd_token": sha256_text(token), "crowd_quota": quota, "crowd_code": code}
    connection.execute(update(project).values(values))
    return token


def close_to_crowd(connection: Connection) -> None:
    """Nobody new comes in; who is there goes on."""
    connection.execute(update(project).values(crowd_token=None))


def is_open(connection: Connection, token: str) -> bool:
    return connection.execute(select(project.c.crowd_token)).scalar_one() == sha256_text(token)


def enter(connection: Connection, token: str, worker: str, session: str | None) -> str | None:
    """The token of a worker's session: a new one for a new worker, `session` where it is theirs already. None where the
    id is somebody's who has begun in another browser. UserError for a link that is closed, or an id that is none."""
    row = connection.execute(select(project)).one()
    if row.crowd_token != sha256_text(token):
        raise UserError("this link is closed; ask whoever sent it")
    name = tidy_name(worker)
    if not is_name(name):
        raise UserError("the link has no worker's id; come by the link of your platform")
    known = known_person(connection, name)
    if known is not None:
        caller = caller_of(connection, session) if session else None
        return session if caller is not None and caller.id == known.id else None
    made = {"name": name, "role": "annotator", "active": True, "created": time.time()}
    added = insert(person).values(**made, quota=row.crowd_quota, crowd=True).returning(person.c.id)
    return begin_session(connection, connection.execute(added).scalar_one())


def completion_code(settings: Any, name: str) -> str:
    """What a worker gives to their platform: the project's code, or one that nobody can make up for this name."""
    own = hmac.new(settings.secret.encode(), f"completion {name}".encode(), hashlib.sha256).hexdigest()
    return str(settings.crowd_code or own[:10].upper())


def codes(connection: Connection) -> list[dict[str, Any]]:
    """Of each of the crowd the code that is right for them."""
    settings = connection.execute(select(project)).one()
    crowd = connection.execute(select(person.c.name).where(person.c.crowd).order_by(person.c.id)).scalars()
    return [{"worker": name, "code": completion_code(settings, name)} for name in crowd]
