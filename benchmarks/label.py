"""How many labels the labelling service takes: 50 clients that do not wait for each other, on SQLite and PostgreSQL.

    python benchmarks/label.py [--database sqlite|postgres|both] [--seconds 60] [--clients 50] [--rate R]

The load is an open loop: claim+submit cycles begin at fixed times, R of them a second, spread over the clients, whether
or not earlier ones have come back; a cycle that has to wait for its client counts that wait in its time. The server is
a process of its own, as `plaudit label serve` starts it; the clients are one more process that speaks plain HTTP. The
last line is JSON: cycles a second that were answered, and percentiles of their times in milliseconds.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from local_postgres import PostgresServer
from plaudit.label import people, schema
from plaudit.label.database import writing
from plaudit.label.items import Draft, add_items
from plaudit.label.serve import open_project
from plaudit.records import Completion, Message

OVERLAP = 3
RATES = {"sqlite": 90, "postgres": 130}
"""Cycles offered a second: above what is to be reached, so that the queue is never the client's."""


def prepare(database: str, clients: int, items: int) -> list[tuple[str, str]]:
    """Items of about 600 characters a reply, and a session for every client: (cookie, csrf)."""
    engine = open_project(database)
    text = "A reply of *some* length, with `code`, and a list:\n\n- one\n- two\n\n" + "Words that fill it up. " * 20
    add_items(
        engine,
        (
            Draft("rank", (Message("user", f"Question {n}?"),), tuple(Completion(f"{n}{k} {text}") for k in range(4)),
                  ("sft", "sft", "ppo", "ppo"), overlap=OVERLAP)
            for n in range(items)
        ),
    )  # fmt: skip
    sessions = []
    with writing(engine) as connection:
        for number in range(clients):
            made = insert(schema.person).values(name=f"p{number}", role="annotator", active=True, created=time.time())
            who = connection.execute(made.returning(schema.person.c.id)).scalar_one()
            token = people.begin_session(connection, who)
            caller = people.caller_of(connection, token)
            assert caller is not None
            sessions.append((token, caller.csrf))
    engine.dispose()
    return sessions


@contextmanager
def served(database: str) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server on `database`."""
    code = "from plaudit.cli import main; main()"
    command = [sys.executable, "-c", code, "label", "serve", "--database", database, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"Labelling at http://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise RuntimeError("the server did not start")
        yield int(found[1]), process.pid
        process.terminate()


class Client:
    """One annotator on one kept connection; `cycle` claims an item and submits its label."""

    def __init__(self, port: int, token: str, csrf: str):
        self.port = port
        self.head = f"Host: 127.0.0.1:{port}\r\nCookie: plaudit_session={token}\r\nX-CSRF-Token: {csrf}\r\n"
        self.free = asyncio.Lock()

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\n{self.head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", answer, re.IGNORECASE)
        text = await self.reader.readexactly(int(length[1])) if length else b""
        if not answer.startswith("HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {answer.splitlines()[0]} {text[:200]!r}")
        found: dict[str, Any] = json.loads(text)
        return found

    async def cycle(self, due: float, times: dict[str, list[float]]) -> None:
        async with self.free:
            claimed = await self.post("/api/claim", {"task": None})
            between = time.perf_counter()
            ranks = [1 + secrets.randbelow(4) for _ in claimed["item"]["replies"]]
            body = {"client_id": str(uuid.uuid4()), "lease": claimed["lease"], "positions": {"ranks": ranks}}
            await self.post("/api/submit", body)
            now = time.perf_counter()
        times["submit"].append(now - between)
        times["cycle"].append(now - due)


async def load(port: int, sessions: list[tuple[str, str]], rate: float, seconds: float) -> dict[str, Any]:
    clients = [Client(port, *session) for session in sessions]
    for client in clients:
        await client.open()
    times: dict[str, list[float]] = {"submit": [], "cycle": []}
    began = time.perf_counter()
    going = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        going.append(asyncio.create_task(clients[number % len(clients)].cycle(due, times)))
    done = await asyncio.gather(*going, return_exceptions=True)
    spent = time.perf_counter() - began
    failures = [str(error) for error in done if isinstance(error, BaseException)]
    return {
        "offered_per_s": rate,
        "answered": len(times["cycle"]),
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "cycles_per_s": round(len(times["cycle"]) / spent, 1),
        **{f"{name}_ms": _percentiles(values) for name, values in times.items()},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for name, share in at.items()
    }


def cpu_seconds(process: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, database: str, options: argparse.Namespace) -> dict[str, Any]:
    rate = options.rate or RATES[kind]
    sessions = prepare(database, options.clients, items=int(rate * options.seconds / OVERLAP) + 200)
    with served(database) as (port, process):
        before = cpu_seconds(process)
        found = asyncio.run(load(port, sessions, rate, options.seconds))
        found["server_cpu_ms_per_cycle"] = round(1000 * (cpu_seconds(process) - before) / max(1, found["answered"]), 2)
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        found["server_peak_mb"] = round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, help="cycles offered a second; by default by database")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "clients": options.clients,
        "seconds": options.seconds,
    }
    if options.database != "postgres":
        with tempfile.TemporaryDirectory() as folder:
            results["sqlite"] = measure("sqlite", f"{folder}/labels.sqlite", options)
    if options.database != "sqlite":
        with PostgresServer() as server:
            results["postgres"] = measure("postgres", server.create("labels"), options)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
