"""Annotators who are programs: on the database itself, or over HTTP as a browser would."""

import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from sqlalchemy import Engine, insert

from plaudit.label.db.database import connect, writing
from plaudit.label.db.schema import person
from plaudit.label.queue import leases
from plaudit.label.web.app import create_app

Judge = Callable[[list[str]], dict[str, Any]]
"""Texts of replies as shown -> what is sent as `positions`."""


def join(engine: Engine, name: str) -> int:
    """Somebody new, without a password."""
    with writing(engine) as connection:
        made = insert(person).values(name=name, role="annotator", active=True, created=time.time())
        return int(connection.execute(made.returning(person.c.id)).scalar_one())


def label_next(engine: Engine, who: int, judge: Judge, task: str | None = None) -> bool:
    """Claim and submit one item; False when nothing is left."""
    with writing(engine) as connection:
        claimed = leases.claim(connection, who, task)
        if claimed is None:
            return False
        shown = [claimed.replies[reply]["text"] for reply in claimed.order]
        leases.submit(connection, who, claimed.lease, str(uuid.uuid4()), judge(shown))
        return True


@contextmanager
def labelling(path: Path, judge: Judge, names: list[str]) -> Iterator[None]:
    """These people label whatever turns up in the database at `path`, which need not be there yet."""
    stop = threading.Event()

    def work() -> None:
        while not path.is_file() and not stop.wait(0.02):
            continue
        engine = connect(path)
        people: dict[str, int] = {}
        while not stop.wait(0.02):
            with engine.connect() as connection:
                ready = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'project'").first()
                ready = ready and connection.exec_driver_sql("SELECT count(*) FROM item").scalar()
            for name in names if ready else ():
                who = people[name] = people.get(name) or join(engine, name)
                label_next(engine, who, judge)
        engine.dispose()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def served(engine: Engine) -> Iterator[int]:
    """The port of the web application on this database, on the loopback interface."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = create_app(engine, url=f"http://127.0.0.1:{port}", hosts=("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


class Browser:
    """One person's way through the page's own addresses: invite, claim, submit."""

    def __init__(self, port: int):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=120)
        self.cookies: dict[str, str] = {}
        self.csrf = ""

    def send(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, str]:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        headers |= {"X-CSRF-Token": self.csrf, "Content-Type": kind} if method == "POST" else {}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie":
                cookie = value.partition(";")[0]
                self.cookies[cookie.partition("=")[0]] = cookie.partition("=")[2]
        return answer.status, answer.read().decode()

    def take_invite(self, token: str, password: str) -> None:
        _, page = self.send("GET", f"/invite/{token}")
        found = re.search(r'name="csrf"[^>]*value="([^"]+)"', page)
        assert found, page
        form = urlencode({"password": password, "csrf": found[1]}).encode()
        status, page = self.send("POST", f"/invite/{token}", form, "application/x-www-form-urlencoded")
        assert status == 303, page
        self.csrf = json.loads(self.send("GET", "/api/me")[1])["csrf"]

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Tried again, as the page does, while the server is too busy."""
        while True:
            status, text = self.send("POST", path, json.dumps(body).encode())
            if status != 503:
                return status, json.loads(text) if text else None
            time.sleep(0.5)

    def label_all(self, judge: Judge) -> int:
        """How many items there were."""
        count = 0
        while True:
            status, claimed = self.post("/api/claim", {"task": None})
            if status == 204:
                return count
            assert status == 200, claimed
            texts = [reply["html"] for reply in claimed["item"]["replies"]]
            sent = {"client_id": str(uuid.uuid4()), "lease": claimed["lease"], "positions": judge(texts)}
            status, answer = self.post("/api/submit", sent)
            assert status == 200, answer
            count += 1
