"""A message to another program when a batch is done: when nothing of a file that was added is open any more.

It is a POST of JSON, signed, sent again until it is answered with 2xx or `DEADLINE` is over, and so may come twice: its
`id` stays the same. Only who runs the server names the address, so no page can make the server ask others. Of the
answer only the status is read.
"""

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, Engine, exists, func, select, update

from plaudit.data.hashes import sha256_text
from plaudit.dist.asking import Asking, Failed, address_of
from plaudit.errors import UserError
from plaudit.label.db.schema import LIVE, batch, item, lease, project
from plaudit.label.queue.leases import HELD
from plaudit.label.queue.left import waiting
from plaudit.label.queue.settings import note

DEADLINE = 3600.0
"""Seconds in which a message is tried; then it is given up, and the log of admins says so."""
LONGEST_PAUSE = 300.0
_SECONDS, _LOOK_EVERY = 30.0, 5.0
Post = Callable[[str, bytes, dict[str, str]], str | None]
"""(address, body, headers) -> None, or why it was not taken."""


def checked_url(url: str) -> str:
    """A http or https address; UserError otherwise."""
    address = address_of("webhook", url)
    if address.scheme not in ("http", "https") or address.userinfo:
        raise UserError(f"webhook {url!r}: write https://HOST/PATH, without a name and password")
    return url


def key_of(secret: str) -> str:
    """What messages of a project are signed with."""
    return hmac.new(secret.encode(), b"webhook", hashlib.sha256).hexdigest()


def signed(secret: str, message: dict[str, Any], now: float) -> tuple[bytes, dict[str, str]]:
    """A message's body, and its headers. X-Plaudit-Signature is "t=TIME,v1=H", H the HMAC-SHA256 of the time, a dot and
    the body, so that an old message is of no use to anybody."""
    body, sent = json.dumps(message).encode(), int(now)
    found = hmac.new(key_of(secret).encode(), b"%d." % sent + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "User-Agent": "plaudit"}
    return body, {**headers, "X-Plaudit-Signature": f"t={sent},v1={found}"}


def post(url: str, body: bytes, headers: dict[str, str]) -> str | None:
    """Send it, once."""
    with closing(Asking("webhook", url, _SECONDS, largest=None, headers=headers)) as asking:
        answer = asking.ask(body)
    if isinstance(answer, Failed):
        return answer.reason
    return None if 200 <= answer.code < 300 else f"it answered {answer.code}"


def done_batches(connection: Connection) -> list[Any]:
    """Batches that nobody was told of and in which nothing is open."""
    of_batch = item.c.source_file == batch.c.name
    still = exists().where(of_batch, waiting(connection)).correlate(batch)
    # From what is held, which is little, and not from the items, which are many.
    being = exists().where(HELD, lease.c.purpose == "normal", item.c.id == lease.c.item, of_batch).correlate(batch)
    return list(connection.execute(select(batch).where(batch.c.told.is_(None), ~batch.c.gold, ~being, ~still)))


class Messenger:
    """Looks every few seconds whether somebody is to be told; `begin` and `end` are the server's."""

    def __init__(self, engine: Engine, write: Callable[..., None], post: Post = post):
        self.engine, self.write, self.post = engine, write, post
        self._tried: dict[int, tuple[float, float, float]] = {}  # batch -> first try, next one, pause before it
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="messenger", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()

    def _work(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            try:
                self.look(time.time())
            # The database may be away for a while: the next look comes, and labelling goes on.
            except Exception:
                logging.getLogger(__name__).warning("the webhook was not looked after", exc_info=True)

    def look(self, now: float) -> None:
        """Tell of each batch that is done and due."""
        with self.engine.connect() as connection:
            settings = connection.execute(select(project)).one()
            if not settings.webhook:
                return
            due = [row for row in done_batches(connection) if self._tried.get(row.id, (0, 0, 0))[1] <= now]
            messages = [_message(connection, settings, row) for row in due]
        for row, message in zip(due, messages, strict=True):
            problem = self.post(settings.webhook, *signed(settings.secret, message, now))
            first, _, pause = self._tried.get(row.id, (now, now, 2.5))
            if problem is None or now - first >= DEADLINE:
                self.write(_settled, row, now, problem)
                self._tried.pop(row.id, None)
            else:
                pause = min(LONGEST_PAUSE, 2 * pause)
                self._tried[row.id] = (first, now + pause, pause)


def _message(connection: Connection, settings: Any, row: Any) -> dict[str, Any]:
    answered = select(func.count()).select_from(lease).join(item, item.c.id == lease.c.item)
    answered = answered.where(item.c.source_file == row.name, LIVE, ~lease.c.aside)
    return {
        "event": "batch done",
        "id": f"{sha256_text(settings.secret)[:8]}-{row.id}",
        "project": settings.name,
        "batch": row.name,
        "items": row._mapping["items"],
        "answers": connection.execute(answered).scalar_one(),
    }


def _settled(connection: Connection, row: Any, now: float, problem: str | None) -> None:
    connection.execute(update(batch).where(batch.c.id == row.id).values(told=now))
    if problem is not None:
        note(connection, None, "webhook given up", batch=row.name, because=problem)
