"""The message when a batch is done: when it is sent, what it says, that it is tried again, and that nothing hangs."""

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any

import pytest
from label_kit import draft
from sqlalchemy import Engine, insert, select

from plaudit.errors import UserError
from plaudit.label.db import schema
from plaudit.label.db.database import writing
from plaudit.label.queue import leases
from plaudit.label.queue.settings import log, settle
from plaudit.label.transfer import webhook
from plaudit.label.transfer.webhook import DEADLINE, Messenger, checked_url, key_of, post, signed

Do = Callable[..., Any]


@contextmanager
def listener(answer: bytes, drip: float | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """An address of this machine, and what it is sent; with `drip` the answer comes a byte at a time."""
    heard: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            try:
                while True:
                    caller, _ = listening.accept()
                    with caller:
                        heard.append(caller.recv(65_536))
                        while b"\r\n\r\n" in heard[-1] and heard[-1].endswith(b"\r\n\r\n"):
                            heard[-1] += caller.recv(65_536)  # the body comes after the head
                        for part in [answer] if drip is None else [bytes([byte]) for byte in answer]:
                            caller.sendall(part)
                            time.sleep(drip or 0)
            except OSError:
                return  # closed: the test is over, or the caller has hung up

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/done", heard


def test_what_is_sent_can_be_checked_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody there: an address of this machine needs no proxy
    with listener(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, heard):
        assert post(url, *signed("secret", {"event": "test"}, 1234.5)) is None
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /done HTTP/1.1") and json.loads(body) == {"event": "test"}
    right = hmac.new(key_of("secret").encode(), b"1234." + body, hashlib.sha256).hexdigest()
    assert f"t=1234,v1={right}" in head.decode()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "it answered 500"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "it answered 302"),
        (b"", "RemoteProtocolError"),
    ],
)
def test_what_is_no_success_is_none(answer: bytes, told: str) -> None:
    with listener(answer) as (url, _):
        assert told in str(post(url, b"{}", {}))


def test_of_an_answer_only_the_status_is_read() -> None:
    with listener(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n") as (url, _):
        assert post(url, b"{}", {}) is None


def test_who_answers_a_byte_now_and_then_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_SECONDS", 0.3)
    began = time.monotonic()
    with listener(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000, drip=0.05) as (url, _):
        assert post(url, b"{}", {}) is not None
    assert time.monotonic() - began < 30  # the whole answer would take 100


def test_an_address_that_is_none_is_refused() -> None:
    for bad in ("ftp://x/y", "example.org/hook", "https://", "https://me:pw@example.org/"):
        with pytest.raises(UserError, match="webhook"):
            checked_url(bad)


class Ear:
    """Instead of the network: what it was sent, and what it answers."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.heard: list[dict[str, Any]] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> str | None:
        self.heard.append(json.loads(body))
        return self.problem


@pytest.fixture
def told(engine: Engine, do: Do, add: Callable[..., list[str]]) -> tuple[Ear, Messenger]:
    """A batch of two items, and who is told."""
    add(draft(1), draft(2))
    row = {"name": "secret-file.jsonl", "gold": False, "items": 2, "created": 0.0}
    with writing(engine) as connection:
        connection.execute(insert(schema.batch).values(row))
    ear = Ear()
    return ear, Messenger(engine, do, ear)


def test_a_batch_is_told_of_once_when_nothing_of_it_is_open(
    told: tuple[Ear, Messenger], do: Do, person: Callable[[str], int]
) -> None:
    ear, messenger = told
    ann = person("ann")
    do(settle, {"webhook": "https://example.org/hook"})
    first = do(leases.claim, ann)
    do(leases.submit, ann, first.lease, "client-1", {"ranks": [1, 2, 3, 4]})
    messenger.look(10.0)
    second = do(leases.claim, ann)
    messenger.look(20.0)  # the last item is being answered
    assert ear.heard == []
    do(leases.release, ann, second.lease)  # nobody else is there who could answer it
    for now in (30.0, 40.0, 5000.0):
        messenger.look(now)
    (message,) = ear.heard
    assert message | {"event": "batch done", "batch": "secret-file.jsonl", "items": 2, "answers": 1} == message


def test_it_is_tried_again_with_pauses_and_then_given_up(
    told: tuple[Ear, Messenger], engine: Engine, do: Do, person: Callable[[str], int]
) -> None:
    ear, messenger = told
    ear.problem = "it answered 500"
    ann = person("ann")
    for _ in range(2):
        do(leases.submit, ann, (held := do(leases.claim, ann)).lease, f"client-{held.lease}", {"ranks": [1, 2, 3, 4]})
    messenger.look(0.0)
    assert ear.heard == []  # nobody is to be told
    do(settle, {"webhook": "https://example.org/hook"})
    times = []
    for now in (*range(0, 100, 5), *range(100, int(DEADLINE) + 700, 100)):
        before = len(ear.heard)
        messenger.look(float(now))
        times += [now] * (len(ear.heard) - before)
    assert times[:5] == [0, 5, 15, 35, 75] and max(after - before for before, after in pairwise(times)) <= 400
    assert DEADLINE <= times[-1] < DEADLINE + 400
    assert len({message["id"] for message in ear.heard}) == 1
    with engine.connect() as connection:
        given_up = log(connection)[0]
        assert given_up["what"] == "webhook given up" and "500" in given_up["detail"]["because"]
        assert connection.execute(select(schema.batch.c.told)).scalar_one() == times[-1]
