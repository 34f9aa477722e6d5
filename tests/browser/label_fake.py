"""A small server that keeps the contract of the labelling service in memory, and can be told to fail.

It serves the real pages (plaudit.label.web.shared.render) with the real policy. What the real server does otherwise is
tested there; here it must only be possible to say "now you are away" and to read afterwards what arrived.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from plaudit.label.web.shared.render import HEADERS, STATIC, page_html, reply_html, text_html
from plaudit.label.web.text.markdown import markdown_html

PASSWORD = "a long password"
COOKIE = "plaudit_session"
SETTINGS = {
    "name": "Kind replies",
    "guidelines": "Be *fair*.",
    "overlap": 2,
    "lease_minutes": 30.0,
    "consistency_rate": 0.0,
    "gold_rate": 0.1,
    "flags": ["unsafe"],
    "plain_text": False,
    "language": "browser",
    "languages": {"en": "English"},
    "paused": False,
    "version": 1,
}
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def rank_item(prompt: str, *replies: str, task: str = "rank", write_text: str | None = None) -> dict[str, Any]:
    return {"task": task, "prompt": [("user", prompt)], "replies": list(replies), "write_text": write_text}


@dataclass
class Fake:
    """State, and the ways to fail. `down` is None, "503", "drop" (the connection breaks before anything is kept) or
    "lost" (the label is kept, its answer is lost)."""

    items: list[dict[str, Any]]
    flags: list[str] = field(default_factory=lambda: ["unsafe", "untrue", "too long"])
    guidelines: str = "Prefer the reply that is **true** and short."
    down: str | None = None
    role: str = "annotator"
    language: str = "en"
    dashboard: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    lease_seconds: float = 1800.0
    labels: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    posts: list[tuple[str, Any]] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    sessions: dict[str, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    url: str = ""

    def session_of(self, name: str) -> str:
        """A new session of that name: the value of its cookie."""
        token = f"s{len(self.sessions) + len(self.posts)}x{time.monotonic_ns()}"
        self.sessions[token] = name
        return token

    def claim(self) -> dict[str, Any] | None:
        for number in range(len(self.items)):
            if number not in self.done and f"lease-{number}" not in self.released:
                return {
                    "lease": f"lease-{number}",
                    "expires_at": time.time() + self.lease_seconds,
                    "seconds_left": self.lease_seconds,
                    "settings": 1,
                    "item": self.view(number),
                }
        return None

    def view(self, number: int) -> dict[str, Any]:
        item = self.items[number]
        return {
            "id": f"view-{number}",
            "task": item["task"],
            "draft_key": f"draft-{number}",
            "prompt": [{"role": role, "html": text_html(text)} for role, text in item["prompt"]],
            "replies": [{"position": at, "html": reply_html(text)} for at, text in enumerate(item["replies"])],
            "write_text": item["write_text"],
        }

    def keep(self, client: str, number: int, positions: Any, supersedes: int | None) -> tuple[int, dict[str, Any]]:
        known = [label for label in self.labels if label["client_id"] == client]
        if known and known[0]["positions"] != positions:
            self.conflicts.append({"client_id": client, "positions": positions})
            return 409, {"error": "conflict"}
        if known:
            return 200, {"seq": known[0]["seq"], "late": known[0]["late"], "replayed": True}
        earlier = [label["seq"] for label in self.labels if label["number"] == number]
        label = {
            "seq": len(self.labels) + 1,
            "client_id": client,
            "number": number,
            "positions": positions,
            "late": self.lease_seconds < 0,
            "supersedes": supersedes or (earlier[-1] if earlier else None),
            "created": time.time(),
        }
        self.labels.append(label)
        self.done.add(number)
        return 200, {"seq": label["seq"], "late": label["late"], "replayed": False}

    def me(self, name: str, token: str) -> dict[str, Any]:
        left = sum(number not in self.done for number in range(len(self.items)))
        return {
            "name": name,
            "role": self.role,
            "csrf": f"csrf-{token}",
            "progress": {"done": len(self.done), "available": left},
            "project": {
                "name": "Kind replies",
                "guidelines_html": markdown_html(self.guidelines, shift=1),
                "flags": self.flags,
                "plain_text": False,
                "paused": False,
                "settings": 1,
                "guidelines_version": 1,
            },
        }

    def history(self, before: int | None) -> dict[str, Any]:
        newest = {label["number"]: label for label in self.labels}
        rows = sorted(newest.values(), key=lambda label: -label["seq"])
        rows = [row for row in rows if before is None or row["seq"] < before]
        shown = [
            {key: row[key] for key in ("seq", "created", "positions", "late")}
            | {"corrected": row["supersedes"] is not None, "view": self.view(row["number"])}
            for row in rows[:20]
        ]
        return {"labels": shown, "next": shown[-1]["seq"] if len(rows) > 20 else None}


class Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        with self.fake.lock:
            if path.startswith("/static/"):
                file = STATIC / path.removeprefix("/static/")
                self.send(200, file.read_bytes(), TYPES[file.suffix])
            elif self.failing():
                return
            elif path == "/login":
                self.page("login", project="Kind replies", csrf="form", name="", error=None)
            elif path.startswith("/invite/"):
                self.page(
                    "invite", up="../", project="Kind replies", csrf="form", token=path[8:], name="ann", error=None
                )
            elif self.name is None:
                self.json(401, {"error": "signed out"}) if path.startswith("/api/") else self.redirect("/login")
            elif path in ("/", "/history", "/admin"):
                self.page({"/": "label"}.get(path, path[1:]))
            elif path == "/api/me":
                self.json(200, self.fake.me(self.name, self.token))
            elif path == "/api/history":
                self.json(200, self.fake.history(int(query["before"][0]) if "before" in query else None))
            elif path == "/api/admin/dashboard":
                self.json(200, self.fake.dashboard)
            elif path == "/api/admin/people":
                rows = [
                    {key: row[key] for key in ("id", "name", "role", "active")} for row in self.fake.dashboard["people"]
                ]
                newer = {"id": 9, "name": "eve", "role": "annotator", "active": True, "invited": True}
                self.json(200, {"people": [*rows, newer]})
            elif path == "/api/admin/export" and query["format"] == ["pairs"]:
                said = "0 rows; left out: 8 of other dates" if query.get("until") == ["2026-12-31"] else "3 rows"
                more = {"Content-Disposition": 'attachment; filename="pairs.jsonl"', "X-Plaudit-Export": said}
                self.send(200, f"?{urlsplit(self.path).query}".encode(), "application/jsonl", more)
            elif path == "/api/admin/export":
                self.json(422, {"error": "there is nothing to export", "fix": "wait for labels"})
            elif path == "/api/admin/log":
                done = {"id": 1, "at": 1764000000.0, "person": None, "what": "settings", "detail": {"overlap": [1, 2]}}
                self.json(200, {"log": [done]})
            elif path == "/api/admin/project":
                self.json(200, self.fake.settings)
            else:
                self.json(404, {"error": "there is no such page"})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with self.fake.lock:
            if self.failing():
                return None
            if self.path in ("/login", "/invite/token"):
                return self.login({key: values[0] for key, values in parse_qs(text).items()})
            if self.name is None:
                return self.json(401, {"error": "signed out"})
            if self.headers["X-CSRF-Token"] != f"csrf-{self.token}":
                return self.json(403, {"error": "the token is not this session's"})
            body = json.loads(text)
            self.fake.posts.append((self.path, body))
            if self.path == "/logout":
                del self.fake.sessions[self.token]
                return self.json(200, {})
            if self.path == "/api/claim":
                claimed = self.fake.claim()
                return self.json(200, claimed) if claimed else self.send(204, b"", "text/plain")
            if self.path == "/api/release":
                self.fake.released.append(body["lease"])
                return self.json(200, {})
            if self.path == "/api/submit":
                kept = self.fake.keep(body["client_id"], int(body["lease"][6:]), body["positions"], None)
            elif self.path == "/api/correct":
                (old,) = [label for label in self.fake.labels if label["seq"] == body["seq"]]
                kept = self.fake.keep(body["client_id"], old["number"], body["positions"], old["seq"])
            else:
                kept = (200, {"link": f"{self.fake.url}/invite/token"})
            if self.fake.down == "lost":
                return self.hang_up()
            return self.json(*kept)

    def failing(self) -> bool:
        if self.fake.down == "503":
            self.json(503, {"error": "the database is busy"})
        elif self.fake.down == "drop":
            self.hang_up()
        return self.fake.down in ("503", "drop")

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    @property
    def token(self) -> str:
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        return cookie.value if cookie else ""

    @property
    def name(self) -> str | None:
        return self.fake.sessions.get(self.token)

    def login(self, form: dict[str, str]) -> None:
        if form.get("password") != PASSWORD:
            words = "Name and password do not match."
            return self.page("login", 401, project="Kind replies", csrf="form", name=form.get("name", ""), error=words)
        token = self.fake.session_of(form.get("name", "ann"))
        return self.redirect("/", f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/")

    def page(self, which: str, status: int = 200, /, **values: Any) -> None:
        self.send(status, page_html(which, language=self.fake.language, **values).encode(), "text/html; charset=utf-8")

    def json(self, status: int, value: Any) -> None:
        self.send(status, json.dumps(value).encode(), "application/json")

    def redirect(self, to: str, cookie: str | None = None) -> None:
        self.send(303, b"", "text/plain", {"Location": to} | ({"Set-Cookie": cookie} if cookie else {}))

    def send(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))} | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    class Bound(Handler):
        pass

    Bound.fake = fake
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()
