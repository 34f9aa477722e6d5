"""Annotators without people: items and sessions in a database, a server process, and clients that speak plain HTTP.

Used by benchmarks/label.py and by the test that kills the server (tests/faults/test_label_ledger.py).
"""

import asyncio
import json
import re
import secrets
import subprocess
import sys
import time
import uuid
from typing import Any

from sqlalchemy import insert, select

from plaudit.label import people
from plaudit.label.db import schema
from plaudit.label.db.database import open_project, writing
from plaudit.label.queue.items import Draft, add_items
from plaudit.label.web.shared.service import session_cookie
from plaudit.records import Completion, Message, Prompt


class Unexpected(RuntimeError):
    """An answer other than 200; `status` is its number."""

    def __init__(self, status: int, text: str):
        super().__init__(f"{status}: {text}")
        self.status = status


def prepare(database: str, clients: int, items: int, overlap: int) -> list[tuple[str, str]]:
    """Items of about 600 characters a reply, and a session for every client: (cookie, csrf)."""
    engine = open_project(database)
    text = "A reply of *some* length, with `code`, and a list:\n\n- one\n- two\n\n" + "Words that fill it up. " * 20
    add_items(
        engine,
        (
            Draft(
                "rank",
                Prompt("", (Message("user", f"Question {n}?"),), "instruction", "train"),
                tuple(Completion(f"{n}{k} {text}") for k in range(4)),
                ("sft", "sft", "ppo", "ppo"),
                overlap=overlap,
            )
            for n in range(items)
        ),
    )
    sessions = []
    with writing(engine) as connection:
        name = session_cookie(connection.execute(select(schema.project.c.secret)).scalar_one())
        for number in range(clients):
            made = insert(schema.person).values(name=f"p{number}", role="annotator", active=True, created=time.time())
            who = connection.execute(made.returning(schema.person.c.id)).scalar_one()
            token = people.begin_session(connection, who)
            caller = people.caller_of(connection, token)
            assert caller is not None
            sessions.append((f"{name}={token}", caller.csrf))
    engine.dispose()
    return sessions


def start_server(database: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """A server process on `database`, as the command line starts it, and its port."""
    code = "from plaudit.cli.main import main; main()"
    command = [sys.executable, "-c", code, "label", "serve", "--database", database, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"Labelling at http://127\.0\.0\.1:(\d+)", line)
        if found:
            return process, int(found[1])
    raise RuntimeError("the server did not start")


class Client:
    """One annotator on one kept connection; `cycle` claims an item and submits its label."""

    def __init__(self, port: int, cookie: str, csrf: str):
        self.port = port
        self.head = f"Host: 127.0.0.1:{port}\r\nCookie: {cookie}\r\nX-CSRF-Token: {csrf}\r\n"
        self.free = asyncio.Lock()
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\n{self.head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        assert self.writer is not None
        self.writer.write(head.encode() + data)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", answer, re.IGNORECASE)
        text = await self.reader.readexactly(int(length[1])) if length else b""
        status = int(answer.split(" ", 2)[1])
        if status != 200:
            raise Unexpected(status, f"{path} {text[:200]!r}")
        found: dict[str, Any] = json.loads(text)
        return found

    async def cycle(self, due: float, times: dict[str, list[float]]) -> None:
        async with self.free:
            began = time.perf_counter()
            claimed = await self.post("/api/claim", {"task": None})
            between = time.perf_counter()
            times["claim"].append(between - began)
            ranks = [1 + secrets.randbelow(4) for _ in claimed["item"]["replies"]]
            body = {"client_id": str(uuid.uuid4()), "lease": claimed["lease"], "positions": {"ranks": ranks}}
            await self.post("/api/submit", body)
            now = time.perf_counter()
        times["submit"].append(now - between)
        times["cycle"].append(now - due)
