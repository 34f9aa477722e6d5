"""What the tests of the labelling service share: items with telling sources, and people with browsers."""

import json
import re
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Engine, insert, select
from starlette.testclient import TestClient

from plaudit.label import people
from plaudit.label.db import schema
from plaudit.label.db.database import writing
from plaudit.label.queue.items import Draft
from plaudit.records import Completion, Message, Prompt

PASSWORD = "correct horse battery"


def free_of(engine: Engine) -> list[int]:
    """Open slots of every item, in order."""
    with engine.connect() as connection:
        return list(connection.execute(select(schema.item.c.free).order_by(schema.item.c.number)).scalars())


def draft(number: int, *, count: int = 4, **more: Any) -> Draft:
    """Item `number`; its sources are as telling as names can be."""
    texts = tuple(Completion(f"item {number} reply {k}") for k in range(count))
    sources = tuple(f"secret-source-{k}" for k in range(count))
    said = (Message("user", f"Question {number}?"),)
    prompt = Prompt(f"secret-prompt-{number}", said, "secret-kind", "train")
    more = {"task": "rank", "prompt": prompt, "replies": texts, "sources": sources} | more
    return Draft(source_file="secret-file.jsonl", **more)


def written(number: int, text: str | None = "a start") -> Draft:
    """A `write` item."""
    replies = () if text is None else (Completion(text),)
    return draft(number, task="write", replies=replies, sources=("secret-source-w",) * len(replies))


# --- the application ---


@dataclass
class World:
    """The application in this process, and browsers for it."""

    app: Any
    engine: Engine

    def browser(self) -> TestClient:
        return TestClient(
            self.app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False, follow_redirects=False
        )

    def invite(self, name: str, role: str = "annotator") -> str:
        with writing(self.engine) as connection:
            return people.make_invite(connection, name, role)

    def join(self, name: str, role: str = "annotator") -> "Person":
        """Somebody who is signed in, with PASSWORD; put there directly, since a password takes time to hash."""
        with writing(self.engine) as connection:
            row = {"name": name, "role": role, "active": True, "created": 0.0, "password_hash": stored_password()}
            who = connection.execute(insert(schema.person).values(row).returning(schema.person.c.id)).scalar_one()
            token = people.begin_session(connection, who)
        browser = self.browser()
        browser.cookies.set(self.app.state.service.cookie, token)
        return Person(browser)


def cookie_of(world: World) -> str:
    """The name of the session cookie."""
    return str(world.app.state.service.cookie)


@cache
def stored_password() -> str:
    return people.hash_password(PASSWORD)


@dataclass
class Person:
    """A signed-in browser that sends the session's token."""

    browser: TestClient

    def __post_init__(self) -> None:
        self.me = self.browser.get("/api/me").json()
        self.headers = {"X-CSRF-Token": self.me["csrf"]}

    def get(self, path: str) -> Any:
        return self.browser.get(path)

    def post(self, path: str, body: Any = None) -> Any:
        text = json.dumps(body)  # ASCII, so that half a surrogate pair can be sent as well
        return self.browser.post(path, content=text, headers={**self.headers, "Content-Type": "application/json"})

    def claim(self, task: str | None = None) -> Any:
        answer = self.post("/api/claim", {"task": task})
        return answer.json() if answer.status_code == 200 else None

    def submit(self, lease: str, ranks: Any = (1, 2, 3, 4), client: str | None = None, **positions: Any) -> Any:
        sent = {"ranks": None if ranks is None else list(ranks)} | positions
        return self.post("/api/submit", {"client_id": client or str(uuid.uuid4()), "lease": lease, "positions": sent})


def form_token(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]
