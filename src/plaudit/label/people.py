"""People: invites, passwords, sessions, roles, and the limit on guessing.

There is no open sign-up. An admin makes an invite; its link works once and sets the password. Secrets that are handed
out (links, session cookies) are random and stored as hashes. A session is a row on the server: it ends with log-out,
with its time, and when the person is disabled, and logging in always makes a new one.
"""

import secrets
import threading
import time
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, func, insert, select, update

from plaudit.data.hashes import sha256_text
from plaudit.errors import UserError
from plaudit.label.db.names import known_person, tidy_name
from plaudit.label.db.schema import LIVE, ROLES, identity, invite, lease, login_attempt, person, session
from plaudit.label.queue.leases import end_open, recount

SESSION_DAYS, INVITE_DAYS = 7, 7
WINDOW_SECONDS = 15 * 60
PER_NAME, PER_ADDRESS = 10, 40
"""Failed logins in the window after which a name, or an address, has to wait."""
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 200
_LONGEST_NAME = 64
_IN_NAMES = frozenset(" .,@+-_'\u2019")
_DAY = 86_400

# OWASP's second profile (19 MiB, two passes): the library's default takes 64 MiB a login, more than this process may.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_at_once = threading.Semaphore(2)


@dataclass(frozen=True)
class Caller:
    """Who sends a request, by their session."""

    id: int
    name: str
    role: str
    csrf: str


def is_name(name: str) -> bool:
    """Whether somebody could have this name, tidied: letters with their marks, digits, and what names are joined by."""
    fits = all(one in _IN_NAMES or unicodedata.category(one)[0] in "LMN" for one in name)
    return 0 < len(name) <= _LONGEST_NAME and fits and unicodedata.category(name[0])[0] in "LN"


def hash_password(password: str) -> str:
    """argon2id, or UserError for one that is too short or too long; takes tens of milliseconds on purpose, so never
    inside a transaction."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UserError(f"the password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    with _at_once:
        return _hasher.hash(password.encode("utf-8", "surrogatepass"))


@cache
def _nobody() -> str:
    """What the password of a name that is not there is checked against."""
    return _hasher.hash(secrets.token_hex(16))


def password_fits(stored: str | None, password: str) -> bool:
    """Whether it is the password; takes as long where there is none."""
    with _at_once:
        try:
            _hasher.verify(stored or _nobody(), password.encode("utf-8", "surrogatepass"))
        except VerifyMismatchError:
            return False
    return stored is not None


# --- invites ---


def make_invite(connection: Connection, name: str, role: str, now: float | None = None) -> str:
    """The token of a link that sets `name`'s password, once. The person is made where they are new.

    For somebody who has a password already the link sets another one. UserError for a bad name or role.
    """
    now = time.time() if now is None else now
    if role not in ROLES:
        raise UserError(f"role {role[:40]!r}: write one of {', '.join(ROLES)}")
    name = _checked(name)
    known = known_person(connection, name)
    name = name if known is None else known.name
    if known is not None and known.role != role:
        raise UserError(f"{name!r} is there already, as {known.role}; choose another name, or the role {known.role}")
    if known is not None and not known.active:
        raise UserError(f"{name!r} is disabled; enable them first")
    if known is None:
        made = insert(person).values(name=name, role=role, active=True, created=now).returning(person.c.id)
        identity = connection.execute(made).scalar_one()
    else:
        identity = known.id
    token = secrets.token_urlsafe(32)
    # An older link of the same person stops working: only the newest is in the hands of who it is for.
    connection.execute(update(invite).where(invite.c.person == identity, invite.c.used.is_(None)).values(used=now))
    times = {"created": now, "expires": now + INVITE_DAYS * _DAY}
    row = {"token_hash": sha256_text(token), "person": identity, "role": role, "name": name, **times}
    connection.execute(insert(invite), row)
    return token


def _checked(name: str) -> str:
    name = tidy_name(name)
    if not is_name(name):
        allowed = "1 to 64 letters, digits, blanks or . , _ @ + - ', beginning with a letter or digit"
        raise UserError(f"name {name[:70]!r}: {allowed}")
    return name


def invited(connection: Connection, token: str, now: float | None = None) -> str | None:
    """The name that an invite is for; None when it was used, ran out or never was."""
    valid = open_invite(connection, token, time.time() if now is None else now)
    return None if valid is None else str(valid.name)


def open_invite(connection: Connection, token: str, now: float) -> Row[Any, Any] | None:
    """The person and name of an invite that is still to be taken."""
    query = (
        select(invite.c.person, invite.c.name)
        .join(person, person.c.id == invite.c.person)
        .where(
            invite.c.token_hash == sha256_text(token), invite.c.used.is_(None), invite.c.expires > now, person.c.active
        )
        .with_for_update(of=invite)
    )
    return connection.execute(query).first()


def take_invite(connection: Connection, token: str, password_hash: str) -> str | None:
    """Use the invite up, set the password, end the person's sessions and begin one: its token. None: no such invite."""
    now = time.time()
    valid = open_invite(connection, token, now)
    if valid is None:
        return None
    connection.execute(update(invite).where(invite.c.token_hash == sha256_text(token)).values(used=now))
    connection.execute(update(person).where(person.c.id == valid.person).values(password_hash=password_hash))
    connection.execute(delete(session).where(session.c.person == valid.person))
    return begin_session(connection, valid.person, now)


# --- sessions ---

_CALLER = (
    select(person.c.id, person.c.name, person.c.role, session.c.csrf)
    .join(person, person.c.id == session.c.person)
    .where(session.c.token_hash == bindparam("token"), session.c.expires > bindparam("now"), person.c.active)
)


def begin_session(connection: Connection, who: int, now: float | None = None) -> str:
    """The token of a new session."""
    now = time.time() if now is None else now
    token = secrets.token_urlsafe(32)
    connection.execute(delete(session).where(session.c.expires < now))
    times = {"created": now, "expires": now + SESSION_DAYS * _DAY}
    row = {"token_hash": sha256_text(token), "person": who, "csrf": secrets.token_urlsafe(32), **times}
    connection.execute(insert(session), row)
    return token


def caller_of(connection: Connection, token: str) -> Caller | None:
    """Whose session it is; None when it ended or the person was disabled."""
    row = connection.execute(_CALLER, {"token": sha256_text(token), "now": time.time()}).first()
    return None if row is None else Caller(*row)


def end_session(connection: Connection, token: str) -> None:
    connection.execute(delete(session).where(session.c.token_hash == sha256_text(token)))


# --- logging in ---


def begin_attempt(connection: Connection, name: str, address: str, now: float | None = None) -> int | None:
    """Count a try before its password is looked at, so that many at once cannot slip through; its id.

    None when the name or the address has failed too often in the last quarter of an hour. An empty name, of one that
    nobody can have, counts for its address alone.
    """
    now = time.time() if now is None else now
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE login_attempt IN EXCLUSIVE MODE")
    connection.execute(delete(login_attempt).where(login_attempt.c.at < now - WINDOW_SECONDS))
    limits = ((login_attempt.c.name, name, PER_NAME), (login_attempt.c.address, address, PER_ADDRESS))
    for column, value, most in limits:
        if value and connection.execute(select(func.count()).where(column == value)).scalar_one() >= most:
            return None
    made = insert(login_attempt).values(name=name, address=address, at=now).returning(login_attempt.c.id)
    return connection.execute(made).scalar_one()


def log_in(connection: Connection, name: str, attempt: int, who: int, old: str | None) -> str:
    """The password was right: forget the name's failures, end the session the browser came with, begin another."""
    connection.execute(delete(login_attempt).where((login_attempt.c.name == name) | (login_attempt.c.id == attempt)))
    if old is not None:
        end_session(connection, old)
    return begin_session(connection, who)


def forget_attempt(connection: Connection, attempt: int) -> None:
    """It was no guess."""
    connection.execute(delete(login_attempt).where(login_attempt.c.id == attempt))


def stored_password(connection: Connection, name: str) -> tuple[int, str | None] | None:
    """(id, password hash) of an active person, by their name in capitals or not."""
    query = select(person.c.id, person.c.name, person.c.password_hash).where(person.c.active)
    # Here and not in SQL: databases differ in what they take for the same letter.
    rows = [row for row in connection.execute(query) if row.name.casefold() == name.casefold()]
    rows.sort(key=lambda row: row.name != name)
    return (rows[0].id, rows[0].password_hash) if rows else None


def change_password(connection: Connection, who: int, password_hash: str, keep: str) -> None:
    """Another password; whoever is signed in elsewhere with the old one is signed out."""
    connection.execute(update(person).where(person.c.id == who).values(password_hash=password_hash))
    others = delete(session).where(session.c.person == who, session.c.token_hash != sha256_text(keep))
    connection.execute(others)


# --- what an admin does ---


def set_active(connection: Connection, who: int, active: bool, me: int | None = None) -> bool:
    """Disable or enable somebody; what they labelled stays. False: nobody has this id. UserError: one's own id, or the
    last active admin."""
    if who == me and not active:
        raise UserError("you cannot disable yourself; another admin can")
    if not active:
        _another_admin(connection, who)
    changed = connection.execute(update(person).where(person.c.id == who).values(active=active)).rowcount == 1
    if changed and not active:
        end_open(connection, who)
        connection.execute(delete(session).where(session.c.person == who))
        open_invites = update(invite).where(invite.c.person == who, invite.c.used.is_(None))
        connection.execute(open_invites.values(used=time.time()))
    return changed


def _another_admin(connection: Connection, who: int) -> None:
    """UserError where this is the last active admin."""
    admins = connection.execute(select(person.c.id, person.c.name).where(person.c.role == "admin", person.c.active))
    left = {row.id: row.name for row in admins}
    if who in left and len(left) == 1:
        raise UserError(f"{left[who]!r} is the only admin; first `plaudit label invite` another with --role admin")


def rename(connection: Connection, who: int, name: str) -> bool:
    """Another name to sign in with; labels are the person's, under whatever name. False: nobody has this id."""
    name = _checked(name)
    others = connection.execute(select(person.c.name).where(person.c.id != who)).scalars()
    if taken := next((other for other in others if other.casefold() == name.casefold()), None):
        raise UserError(f"{taken!r} is there already; choose another name, or merge the two people")
    connection.execute(update(invite).where(invite.c.person == who).values(name=name))
    return connection.execute(update(person).where(person.c.id == who).values(name=name)).rowcount == 1


def set_role(connection: Connection, who: int, role: str, me: int | None = None) -> bool:
    """What somebody may do, from their next request on. False: nobody has this id."""
    if who == me:
        raise UserError("you cannot change your own role; another admin can")
    if role != "admin":
        _another_admin(connection, who)
    connection.execute(update(invite).where(invite.c.person == who).values(role=role))
    return connection.execute(update(person).where(person.c.id == who).values(role=role)).rowcount == 1


def merge(connection: Connection, who: int, into: int, me: int | None = None) -> int:
    """Two accounts of one person become one: what `who` had is `into`'s, and `who` is shut out. How many items moved.

    The ledger is as it was: whose a label is, its lease says. Of an item that both answered the other one's answer
    stays with `who`, set aside, and somebody else is asked: nobody has two voices.
    """
    if who == into:
        raise UserError("these are the same person; choose another one")
    there = set(connection.execute(select(person.c.id).where(person.c.id.in_((who, into)))).scalars())
    if missing := {who, into} - there:
        raise UserError(f"nobody has the id {min(missing)}; see /api/admin/people")
    set_active(connection, who, False, me)
    other = lease.alias()
    consistency = lease.c.purpose == "consistency"
    same = (other.c.purpose == "consistency") == consistency
    twice = exists().where(
        other.c.item == lease.c.item, other.c.person == into, other.c.state.in_(("open", "done")), same
    )
    both = and_(lease.c.person == who, LIVE, twice)
    items = connection.execute(select(lease.c.item).where(both)).scalars().all()
    connection.execute(update(lease).where(both).values(slot=None, aside=True))
    for which in items:
        recount(connection, which)
    connection.execute(update(identity).where(identity.c.person == who).values(person=into))
    mine = and_(lease.c.person == who, ~and_(LIVE, twice))
    return connection.execute(update(lease).where(mine).values(person=into)).rowcount
