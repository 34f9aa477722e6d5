"""What the studio knows, and who is let in."""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from sqlalchemy import Engine

from plaudit.label.web.shared.service import Refused
from plaudit.view.arena.match import Matches
from plaudit.view.arena.process import ModelProcess
from plaudit.view.studio import logs
from plaudit.view.studio.replies import Replies


@dataclass(frozen=True)
class Labels:
    """The label database that replies are sent to, and whose name the arena's choices get."""

    engine: Engine
    annotator: str


@dataclass
class Studio:
    """The folders with runs, the token of the link, the sessions that it opened, and what was read and asked."""

    folders: Sequence[Path]
    port: int
    labels: Labels | None = None
    token: str | None = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    cards: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    replies: dict[str, Replies] = field(default_factory=dict)
    models: ModelProcess = field(default_factory=ModelProcess)
    matches: Matches = field(default_factory=Matches)

    @property
    def cookie(self) -> str:
        """Browsers do not tell ports apart: two studios on one machine must not sign each other out."""
        return f"plaudit_studio_{self.port}"

    def run(self, name: str) -> Path:
        """The folder of a run by its name on the overview; no other folder can be named."""
        known = logs.known_runs(self.folders)
        if name not in known:
            raise Refused(404, "there is no such run", "go back to the overview")
        return known[name]

    def card_of(self, name: str, folder: Path) -> dict[str, Any]:
        """The card of a run, read anew only when something of it has changed."""
        mark = (folder, logs.mark_of(folder))
        if name not in self.cards or self.cards[name][0] != mark:
            self.cards[name] = mark, logs.card(name, folder)
        return self.cards[name][1]

    def replies_of(self, name: str) -> Replies:
        folder = self.run(name)
        if name not in self.replies or self.replies[name].folder != folder:
            self.replies[name] = Replies(folder)
        return self.replies[name]

    def labelling(self) -> Labels:
        if self.labels is None:
            raise Refused(409, "no label database is open", "start the studio with --labels FILE")
        return self.labels


def studio_of(request: Request) -> Studio:
    """The studio, for a browser that was signed in. Refused: 401 nobody, 403 a POST without this session's token."""
    studio = request.app.state.studio
    assert isinstance(studio, Studio)
    if not same(request.cookies.get(studio.cookie, ""), studio.session):
        raise Refused(401, "this browser is not signed in", "open the link that `plaudit studio` printed")
    if request.method != "GET" and not same(request.headers.get("X-CSRF-Token", ""), studio.csrf):
        raise Refused(403, "the request does not carry this session's token", "load the page again")
    return studio


def same(sent: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that says nothing of where they differ."""
    return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), expected.encode())
