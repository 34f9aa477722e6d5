"""A reward that is an HTTP endpoint, against servers that are really there: what is tried again, and what stops."""

import contextlib
import gzip
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from conftest import Answer, RewardServer, length_rows, score_lengths
from plaudit.errors import RunStopped, UserError
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.texts import endpoint
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.rewards.texts.endpoint import EndpointScorer

ITEMS = [
    ScoreItem(f"p{i}#0", Prompt(f"p{i}", (Message("user", f"Question {i}?"),), "domain", "train"), Completion("x" * i))
    for i in range(5)
]
LENGTHS = {f"p{i}#0": float(i) for i in range(5)}


def backwards(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": length_rows(body)[::-1]})


def mapping(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": {row["id"]: row["score"] for row in length_rows(body)}})


def slow(body: dict[str, Any]) -> tuple[int, str]:
    time.sleep(0.6)
    return score_lengths(body)


def status(code: int) -> Answer:
    return lambda body: (code, "out of order")


def says(text: str) -> Answer:
    return lambda body: (200, text)


def asking(server: RewardServer, **settings: Any) -> EndpointScorer:
    return EndpointScorer(server.url, **{"timeout": 5.0, "retries": 2, "batch_size": 8, **settings})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The back-off's waits, written down instead of waited."""
    found: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("answer", [score_lengths, backwards, mapping])
def test_an_endpoint_scores_by_id_in_batches(reward_server: RewardServer, answer: Answer) -> None:
    reward_server.answers = [answer]
    assert asking(reward_server, batch_size=2).score(ITEMS) == LENGTHS
    assert [len(body["items"]) for body, _ in reward_server.requests] == [2, 2, 1]
    assert reward_server.requests[1][0]["items"][0] == {
        "id": "p2#0",
        "prompt": [{"role": "user", "content": "Question 2?"}],
        "completion": "xx",
        "finished": True,
    }


def test_an_endpoint_that_fails_for_a_while_is_asked_again(reward_server: RewardServer, waits: list[float]) -> None:
    reward_server.answers = [status(500), status(429), status(503), score_lengths]
    assert asking(reward_server, retries=3).score(ITEMS) == LENGTHS
    assert waits == [0.5, 1.0, 2.0]
    assert len(reward_server.requests) == 4
    assert len({json.dumps(body) for body, _ in reward_server.requests}) == 1, "every attempt sends the same"


def test_an_endpoint_that_stays_down_stops_the_run(reward_server: RewardServer, waits: list[float]) -> None:
    reward_server.answers = [status(500)]
    with pytest.raises(RunStopped, match=r"/score: status 500: 'out of order'; given up after 3 attempts"):
        asking(reward_server).score(ITEMS)
    assert waits == [0.5, 1.0]


def test_an_endpoint_without_a_server_stops_the_run(waits: list[float]) -> None:
    scorer = EndpointScorer("http://127.0.0.1:9/score", timeout=2, retries=1, batch_size=8)
    with pytest.raises(RunStopped, match=r"reward endpoint http://127.0.0.1:9/score: ConnectError.*after 2 attempts"):
        scorer.score(ITEMS)


def test_a_slow_endpoint_times_out_and_may_recover(
    reward_server: RewardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)
    reward_server.answers = [slow, score_lengths]
    # The first answer comes too late; on a busy machine others may too, so there are many tries.
    assert asking(reward_server, timeout=0.2, retries=50).score(ITEMS) == LENGTHS
    reward_server.answers = [slow]
    with pytest.raises(RunStopped, match=r"no answer within 0.2 s; given up after 1 attempts"):
        asking(reward_server, timeout=0.2, retries=0).score(ITEMS)


@pytest.mark.parametrize("code", [301, 401, 404])
def test_another_status_is_not_tried_again(reward_server: RewardServer, code: int, waits: list[float]) -> None:
    reward_server.answers = [status(code), score_lengths]
    with pytest.raises(RunStopped, match=f"status {code}"):
        asking(reward_server).score(ITEMS)
    assert waits == []


ANSWERS: dict[str, tuple[Answer, str]] = {
    "no json": (says("<html>"), "the answer is no JSON .*<html>"),
    "no scores": (says('{"score": 1}'), "the answer has no key 'scores'"),
    "no object": (says("[1, 2]"), "the answer has no key 'scores'"),
    "too few": (lambda body: (200, json.dumps({"scores": length_rows(body)[:-1]})), "gave 4 scores for 5 replies"),
    "a foreign id": (
        lambda body: (200, json.dumps({"scores": [*length_rows(body), {"id": "who", "score": 1}]})),
        "answered for id 'who'",
    ),
    "an id twice": (
        lambda body: (200, json.dumps({"scores": length_rows(body) + length_rows(body)[:1]})),
        "twice for id 'p0#0'",
    ),
    "a key twice": (says('{"scores": {"p0#0": 1, "p0#0": 2}}'), "key 'p0#0' stands twice"),
    "nothing": (says(""), "the answer is no JSON .*: ''"),
    "deep JSON": (says("[" * 100_000), "the answer is no JSON .*recursion"),
    "an integer beyond text": (says('{"scores": {"p0#0": 1' + "0" * 5000 + "}}"), "no JSON .*integer string"),
    "an integer beyond float": (says('{"scores": {"p0#0": 1' + "0" * 400 + "}}"), "'p0#0' is '1000*', beyond what a"),
    "no UTF-8": (lambda body: (200, b'{"scores": {"\xff": 1}}'), r"the answer is no JSON \('utf-8' codec can't decode"),
    "an id that is a list": (says('{"scores": [{"id": ["p0#0"], "score": 1}]}'), r"for id .* \(list, not text\)"),
    "a truth value": (says('{"scores": {"p0#0": true}}'), "'p0#0' is 'True', not a number but bool"),
    "too much": (says(" " * (17 << 20)), "the answer has more than 16,777,216 bytes"),
    "nan": (
        lambda body: (200, json.dumps({"scores": [{**row, "score": math.nan} for row in length_rows(body)]})),
        "the score of 'p0#0' is nan",
    ),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=list(ANSWERS))
def test_a_wrong_answer_of_an_endpoint_stops_at_once(
    reward_server: RewardServer, answer: Answer, message: str, waits: list[float]
) -> None:
    reward_server.answers = [answer, score_lengths]
    with pytest.raises(RunStopped, match=f"reward endpoint {reward_server.url}: .*{message}"):
        asking(reward_server).score(ITEMS)
    assert waits == []


def test_the_authorization_header_comes_from_the_environment(
    reward_server: RewardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_AUTH", "Bearer secret")
    asking(reward_server, auth_env="REWARD_AUTH").score(ITEMS)
    assert reward_server.requests[0][1]["Authorization"] == "Bearer secret"
    asking(reward_server).score(ITEMS)
    assert "Authorization" not in reward_server.requests[1][1]
    monkeypatch.delenv("REWARD_AUTH")
    with pytest.raises(UserError, match="the environment variable REWARD_AUTH is not set"):
        asking(reward_server, auth_env="REWARD_AUTH")


# --- servers that no HTTP library would make ---


@pytest.fixture
def raw_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[socket.socket], object]], str]]:
    """raw_server(answer) -> the URL of a server that gives each connection, its request read, to `answer`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ended = threading.Event()
    made: list[socket.socket] = []

    def serve(answer: Callable[[socket.socket], object]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 20)
                answer(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/score"

    yield serve
    ended.set()
    for listening in made:
        listening.close()


def drip(connection: socket.socket, text: bytes) -> None:
    """A byte every twentieth of a second, for ten seconds."""
    pause = threading.Event()  # not time.sleep, which `waits` replaces
    for byte in (text * 200)[:200]:
        connection.sendall(bytes([byte]))
        pause.wait(0.05)


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS: dict[str, Callable[[socket.socket], object]] = {
    "no answer": lambda connection: threading.Event().wait(10),
    "a head": lambda connection: drip(connection, HEAD),
    "a body": lambda connection: (connection.sendall(HEAD + b"Content-Length: 9999\r\n\r\n"), drip(connection, b" ")),
    "chunks": lambda connection: (
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
        drip(connection, b"1\r\n \r\n"),
    ),
}


@pytest.mark.parametrize("answer", DRIPS.values(), ids=list(DRIPS))
def test_a_server_that_drips_is_left_at_the_deadline(
    answer: Callable[[socket.socket], object], raw_server: Callable[..., str]
) -> None:
    """Every byte comes well within the time-out, all of them do not."""
    scorer = EndpointScorer(raw_server(answer), timeout=0.5, retries=0, batch_size=8)
    started = time.monotonic()
    with pytest.raises(RunStopped, match=r"no answer within 0\.5 s; given up after 1 attempts"):
        scorer.score(ITEMS)
    assert time.monotonic() - started < 5


CUT: dict[str, tuple[bytes, str]] = {
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "RemoteProtocolError"),
    # What has not been read when a connection is closed resets it.
    "closed at once": (b"", "(RemoteProtocolError|ReadError)"),
    "a body that is cut": (HEAD + b"Content-Length: 99\r\n\r\n{}", "RemoteProtocolError"),
    "chunks that are none": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "RemoteProtocolError"),
}


@pytest.mark.parametrize(("says", "message"), CUT.values(), ids=list(CUT))
def test_a_lost_connection_is_tried_again_and_named(
    says: bytes, message: str, raw_server: Callable[..., str], waits: list[float]
) -> None:
    scorer = EndpointScorer(raw_server(lambda c: c.sendall(says)), timeout=5, retries=1, batch_size=8)
    with pytest.raises(RunStopped, match=f"{message}.*given up after 2 attempts"):
        scorer.score(ITEMS)
    assert waits == [0.5]


def test_a_packed_answer_is_refused_before_it_is_unpacked(raw_server: Callable[..., str]) -> None:
    """A gigabyte of blanks is a megabyte as gzip; the request asks for no packing."""
    bomb = gzip.compress(b" " * (1 << 20))
    head = HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    scorer = EndpointScorer(raw_server(lambda c: c.sendall(head + bomb)), timeout=5, retries=0, batch_size=8)
    with pytest.raises(RunStopped, match=r"the answer is packed \(gzip\); send it as it is, as Accept-Encoding asks"):
        scorer.score(ITEMS)


def test_a_request_asks_for_no_packing_and_is_json(reward_server: RewardServer) -> None:
    asking(reward_server).score(ITEMS)
    headers = reward_server.requests[0][1]
    assert (headers["Accept-Encoding"], headers["Content-Type"]) == ("identity", "application/json")


def test_a_redirect_says_where_to(raw_server: Callable[..., str], waits: list[float]) -> None:
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /score/\r\nContent-Length: 0\r\n\r\n"
    scorer = EndpointScorer(raw_server(lambda c: c.sendall(head)), timeout=5, retries=3, batch_size=8)
    with pytest.raises(RunStopped, match=r"status 307: it redirects to '/score/'; write the address that answers"):
        scorer.score(ITEMS)
    assert waits == []


def test_texts_that_are_no_unicode_arrive(reward_server: RewardServer) -> None:
    item = replace(ITEMS[0], completion=Completion("half \ud800"))
    assert asking(reward_server).score([item]) == {"p0#0": 6.0}
    assert reward_server.requests[0][0]["items"][0]["completion"] == "half \ud800"


URLS = {
    "an empty part": ("http://a..b/score", r"http://a\.\.b/score: no URL that can be reached \("),
    "a long part": ("http://" + "x" * 64 + ".org/", r"label empty or too long"),
    "no name": ("http://\u20ac_.org/", r"Invalid IDNA hostname"),
    "no host": ("http:///score", r"http:///score: no host in it; write http://HOST:PORT/PATH"),
    "a blank": ("http://a b/score", r"no host in it|no URL that can be reached"),
    "a port beyond": ("http://127.0.0.1:99999/", r"port 99999 is none; a port is 1 to 65535"),
    "port 0": ("http://127.0.0.1:0/", r"port 0 is none"),
    "a port of letters": ("http://127.0.0.1:http/", r"Invalid port: 'http'"),
    "half an address": ("http://[::1/", r"no URL that can be reached"),
}


@pytest.mark.parametrize(("url", "message"), URLS.values(), ids=list(URLS))
def test_a_url_that_nothing_can_be_sent_to_is_refused_at_once(url: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^reward endpoint .*{message}"):
        EndpointScorer(url, timeout=5, retries=0, batch_size=8)


def test_no_message_shows_who_asks(waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"^reward endpoint h:99999/: port") as refused:
        EndpointScorer("http://me:secret@h:99999/", timeout=5, retries=0, batch_size=8)
    scorer = EndpointScorer("http://me:secret@127.0.0.1:9/", timeout=5, retries=0, batch_size=8)
    with pytest.raises(RunStopped, match=r"^reward endpoint http://127\.0\.0\.1:9/: ConnectError") as stopped:
        scorer.score(ITEMS)
    assert "secret" not in f"{refused.value}{stopped.value}"


@pytest.mark.parametrize("value", ["Bearer a\nb", "Bearer a\n", "Bearer \u20ac", "Bearer a\x00"])
def test_a_key_that_is_no_header_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.os, "environ", {"KEY": value})
    with pytest.raises(UserError, match=r"the value of the environment variable KEY cannot be a header") as refused:
        EndpointScorer("http://h/", timeout=5, retries=0, batch_size=8, auth_env="KEY")
    assert "Bearer" not in str(refused.value)


def test_a_proxy_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://nowhere:1")
    with pytest.raises(UserError, match=r"^reward endpoint http://h/: the proxy that the environment names cannot be"):
        EndpointScorer("http://h/", timeout=5, retries=0, batch_size=8)
