"""The ledger loses nothing: fifty annotators over HTTP while the server, and the database, are killed again and again.

Every annotator tries until it is answered, with the same client id. Afterwards, in the database itself: every label
that was acknowledged is there exactly once and as it was sent, nothing is there that nobody sent, and no item went to
more people than asked. Loopback only; bounded by kills and by time.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from label_load import Client, Unexpected, prepare
from local_postgres import PostgresServer, binaries
from plaudit.label.db import schema
from plaudit.label.db.database import connect, open_project, snapshot, writing
from plaudit.label.queue.settings import settle

ANNOTATORS, OVERLAP, ITEMS = 50, 3, 1000
KILLS, KILLS_LONG = 20, 60
LEASE_SECONDS = 8.0
MOST_SECONDS = 900.0
"""Longer than any machine takes: what hangs must end."""
BETWEEN = 15
"""A kill falls after 1 to this many more acknowledgements: at random, and on a slow machine too."""


@dataclass
class Told:
    """What the annotators sent, and what they were told."""

    sent: dict[str, list[int]] = field(default_factory=dict)
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    released: int = 0


class Annotator(Client):
    """One person who labels until `over`, whatever happens to the server."""

    def __init__(self, port: int, session: tuple[str, str], told: Told, seed: int):
        super().__init__(port, *session)
        self.told, self.draw, self.over = told, random.Random(seed), False

    async def work(self) -> None:
        while not self.over:
            claimed = await self.until_answered("/api/claim", {"task": None})
            if claimed is None:
                return
            if self.draw.random() < 0.05:
                await self.until_answered("/api/release", {"lease": claimed["lease"]})
                self.told.released += 1
                continue
            dawdles = self.draw.random() < 0.02  # until the lease has run out
            await asyncio.sleep(LEASE_SECONDS + 1 if dawdles else self.draw.random() * 0.2)
            await self.label(claimed)

    async def label(self, claimed: dict[str, Any]) -> None:
        client = str(uuid.uuid4())
        ranks = [self.draw.randint(1, 4) for _ in claimed["item"]["replies"]]
        body = {"client_id": client, "lease": claimed["lease"], "positions": {"ranks": ranks}}
        self.told.sent[client] = ranks
        answer = await self.until_answered("/api/submit", body)
        assert answer is not None
        self.told.acknowledged[client] = answer
        if self.draw.random() < 0.1:  # the answer was lost on its way: the page asks again
            again = await self.until_answered("/api/submit", body)
            assert again is not None and (again["seq"], again["replayed"]) == (answer["seq"], True)

    async def until_answered(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None for 204. What comes of a dead server or a 503 is tried again; anything else is a failure."""
        wait = 0.05
        while (found := await self.try_once(path, body)) is NOT_YET:
            await asyncio.sleep(wait * (0.5 + self.draw.random()))
            wait = min(1.0, 2 * wait)
        return found

    async def try_once(self, path: str, body: dict[str, Any]) -> Any:
        try:
            if self.writer is None:
                await self.open()
            return await asyncio.wait_for(self.post(path, body), 30)
        except Unexpected as error:
            if error.status not in (204, 503):
                raise
            self.told.refused["503"] += error.status == 503
            return None if error.status == 204 else NOT_YET
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.told.refused[type(error).__name__] += 1
            self.writer = None
            return NOT_YET


NOT_YET = object()


class Server:
    """The labelling server on a database, as the command line starts it, in a process that can be killed and started
    again; serving.py has imported all it needs."""

    def __init__(self, database: str, port: int):
        self.arguments = ["label", "serve", "--database", database, "--port", str(port)]
        script = Path(__file__).with_name("serving.py")
        self.warm = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self) -> None:
        assert self.warm.stdin is not None
        self.warm.stdin.write(json.dumps(self.arguments) + "\n")
        self.warm.stdin.flush()
        self.pid = int(self._until(""))
        self._until("Labelling at http://127.0.0.1:")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._until("gone")

    def close(self) -> None:
        self.kill()
        self.warm.communicate()

    def _until(self, start: str) -> str:
        assert self.warm.stdout is not None
        return next(line for line in self.warm.stdout if line.startswith(start))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def run(
    database: str, kills: int, kill_database: Callable[[], None] | None, seed: int
) -> tuple[Told, Counter[str]]:
    """Annotators at work while `kills` kills fall at random; then a moment of peace, and the end."""
    sessions = prepare(database, ANNOTATORS, ITEMS, OVERLAP)
    draw, told, killed = random.Random(seed), Told(), Counter[str]()
    began = time.monotonic()
    port = free_port()
    server = Server(database, port)
    await asyncio.to_thread(server.start)
    annotators = [Annotator(port, session, told, seed * 1000 + n) for n, session in enumerate(sessions)]
    working = [asyncio.create_task(annotator.work()) for annotator in annotators]
    try:
        for _ in range(kills):
            enough = len(told.acknowledged) + draw.randint(1, BETWEEN)
            while len(told.acknowledged) < enough:
                await asyncio.sleep(0.01 * draw.random())
                assert time.monotonic() - began < MOST_SECONDS, f"out of time after {killed} kills, {told.refused}"
                assert not any(task.done() for task in working), [task for task in working if task.done()]
            if kill_database is not None and draw.random() < 0.5:
                killed["database"] += 1
                await asyncio.to_thread(kill_database)
                continue
            killed["server"] += 1
            server.kill()
            await asyncio.to_thread(server.start)
        await asyncio.sleep(1.0)
        for annotator in annotators:
            annotator.over = True
        await asyncio.wait_for(asyncio.gather(*working), MOST_SECONDS)
    finally:
        for task in working:
            task.cancel()
        server.close()
    return told, killed


def check(database: str, told: Told) -> None:
    engine = connect(database)
    with snapshot(engine) as connection:
        rows = connection.execute(select(schema.label).order_by(schema.label.c.seq)).all()
        leases = connection.execute(select(schema.lease)).all()
        free = dict(connection.execute(select(schema.item.c.id, schema.item.c.free)).all())
        if engine.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    engine.dispose()
    by_client = Counter(row.client_id for row in rows)
    stored = {row.client_id: row for row in rows}
    for client, answer in told.acknowledged.items():
        assert by_client[client] == 1, client
        row = stored[client]
        assert (row.seq, row.late) == (answer["seq"], answer["late"])
        values = sorted(set(told.sent[client]))
        ranks = json.loads(row.body)["ranks"]
        assert [ranks[reply] for reply in row.order] == [values.index(r) + 1 for r in told.sent[client]]
    assert set(by_client) <= set(told.sent)  # nothing that nobody sent
    assert len(rows) >= len(told.acknowledged)
    in_time = Counter(row.item for row in rows if not row.late)
    assert max(in_time.values()) <= OVERLAP
    assert max(Counter((row.item, row.person) for row in rows if not row.late).values()) == 1
    live = Counter(lease.item for lease in leases if lease.state in ("open", "done") and lease.slot is not None)
    slots = Counter((lease.item, lease.slot) for lease in leases if lease.state in ("open", "done"))
    assert max(live.values()) <= OVERLAP and max(slots.values()) == 1
    assert {slot for _, slot in slots} <= {1, 2, 3}
    assert all(free[item] == OVERLAP - live[item] for item in free)


def ledger_test(database: str, kills: int, kill_database: Callable[[], None] | None = None) -> None:
    seed = int(os.environ.get("PLAUDIT_LEDGER_SEED", time.time()))
    engine = open_project(database)
    with writing(engine) as connection:
        settle(connection, {"overlap": OVERLAP, "lease_minutes": LEASE_SECONDS / 60})
    engine.dispose()
    began = time.monotonic()
    # In a thread of its own: browser tests of the same process leave an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        told, killed = thread.submit(asyncio.run, run(database, kills, kill_database, seed)).result()
    late = sum(answer["late"] for answer in told.acknowledged.values())
    print(
        f"seed {seed}: {len(told.acknowledged)} acknowledged ({late} late), {told.released} released, {dict(killed)} "
        f"killed, {dict(told.refused)}, {time.monotonic() - began:.0f} s"
    )
    check(database, told)
    assert sum(killed.values()) == kills and told.refused  # the kills were felt
    assert len(told.acknowledged) > kills


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_LONG, marks=pytest.mark.slow)])
def test_no_acknowledged_label_is_lost_on_sqlite(tmp_path: Path, kills: int) -> None:
    ledger_test(str(tmp_path / "labels.sqlite"), kills)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_LONG, marks=pytest.mark.slow)])
def test_no_acknowledged_label_is_lost_on_postgres(kills: int) -> None:
    if binaries() is None:
        assert os.environ.get("REQUIRE_SERVICES") != "1", "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer() as server:

        def kill_and_start() -> None:
            server.kill()
            server.start()

        ledger_test(server.create("labels"), kills, kill_and_start)


def test_the_check_finds_a_lost_label(tmp_path: Path) -> None:
    """The check itself: a label that was acknowledged and is not there, and one that is not as it was sent."""
    database = str(tmp_path / "labels.sqlite")
    prepare(database, 1, 1, OVERLAP)
    told = Told(sent={"a": [1]}, acknowledged={"a": {"seq": 1, "late": False}})
    with pytest.raises(AssertionError):
        check(database, told)
