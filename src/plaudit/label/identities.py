"""Who an organisation's OpenID Connect provider says somebody is, and whom of the project's people that makes them.

An identity is the provider's: its issuer and the subject there, which never change. It is bound to a person when it
comes first: by an invitation, or by an e-mail address that the provider has verified and that is the person's name.
From then on the identity alone counts, whatever the e-mail becomes. Nobody gets an account by it unless the operator
named the domain of their address.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, exists, insert, select, update

from plaudit.data.hashes import sha256_text
from plaudit.label.db.names import known_person, tidy_name
from plaudit.label.db.schema import identity, invite, person
from plaudit.label.people import begin_session, end_session, is_name, open_invite


@dataclass(frozen=True)
class Identity:
    """`email` is None where the provider has verified none."""

    issuer: str
    subject: str
    email: str | None = None


def enter(
    connection: Connection, who: Identity, *, token: str = "", domains: Collection[str] = (), old: str | None = None
) -> str | None:
    """The token of a new session of the person whom the identity is; None for nobody who may come in. `token` is of the
    invitation that they came by, `domains` are those whose addresses may come without one, `old` is the session that
    ends."""
    bound = _bound(connection, who)
    found = bound or _new(connection, who, token, domains)
    there = select(person.c.id).where(person.c.id == found, person.c.active)
    if found is None or connection.execute(there).first() is None:
        return None
    if bound is None:
        row = {"issuer": who.issuer, "subject": who.subject, "person": found, "created": time.time()}
        connection.execute(insert(identity), row)
    if old is not None:
        end_session(connection, old)
    return begin_session(connection, found)


def _bound(connection: Connection, who: Identity) -> int | None:
    same = (identity.c.issuer == who.issuer, identity.c.subject == who.subject)
    return connection.execute(select(identity.c.person).where(*same)).scalar()


def _new(connection: Connection, who: Identity, token: str, domains: Collection[str]) -> int | None:
    """Whose an identity is that was not here before."""
    if token and (invited := open_invite(connection, token, time.time())) is not None:
        connection.execute(update(invite).where(invite.c.token_hash == sha256_text(token)).values(used=time.time()))
        return int(invited.person)
    if who.email is None:
        return None
    known: Row[Any] | None = known_person(connection, who.email)
    if known is not None:
        # An address may be given to another person in time; whoever had it first keeps the account.
        taken = exists().where(identity.c.person == known.id, identity.c.issuer == who.issuer)
        return None if known.crowd or connection.execute(select(taken)).scalar_one() else int(known.id)
    name = tidy_name(who.email)
    if who.email.rpartition("@")[2].casefold() not in {domain.casefold() for domain in domains} or not is_name(name):
        return None
    made = insert(person).values(name=name, role="annotator", active=True, created=time.time())
    return int(connection.execute(made.returning(person.c.id)).scalar_one())
