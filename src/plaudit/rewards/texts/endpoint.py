"""An HTTP endpoint as a reward: one request holds some texts with ids, its answer their scores."""

import json
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from plaudit.errors import RunStopped, UserError
from plaudit.rewards.texts.answers import ScoreItem, matched, said

LONGEST_WAIT = 30.0
LARGEST_ANSWER = 16 << 20
"""Bytes; scores of a request are kilobytes."""


@dataclass(frozen=True)
class _Failed:
    """Why a request brought no answer; another attempt may."""

    reason: str


class EndpointScorer:
    """An HTTP endpoint: POST {"items": [ScoreItem.as_json(), ...]}, answered {"scores": [{"id", "score"}, ...]}.

    A time-out, a lost connection, status 429 and 5xx are tried again, with waits of 0.5, 1, 2, ... seconds; any other
    status and any wrong answer stop the run at once.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, batch_size: int, auth_env: str | None = None):
        """`timeout` is seconds a request, from the connection to the answer's last byte; `retries` are attempts after
        the first. `auth_env` names the environment variable whose value is sent as the Authorization header; UserError
        when it cannot be, and for a URL that nothing can be sent to."""
        address = _address(url)
        self.name = f"reward endpoint {address.copy_with(userinfo=b'')}"
        self.url, self.retries, self.batch_size = url, retries, batch_size
        # An answer that is not packed cannot unpack to more than was read.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if auth_env is not None:
            headers["Authorization"] = self._secret(auth_env)
        self._timeout = timeout
        try:
            self._client = httpx2.Client(timeout=timeout, headers=headers)
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise UserError(f"{self.name}: the proxy that the environment names cannot be used ({error})") from error

    def _secret(self, auth_env: str) -> str:
        value = os.environ.get(auth_env)
        if not value:
            raise UserError(f"{self.name}: the environment variable {auth_env} is not set; auth_env names it")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise UserError(
                f"{self.name}: the value of the environment variable {auth_env} cannot be a header: it has a line end, "
                "a blank at an end, or a character beyond ASCII; set it to what the Authorization header shall say"
            )
        return value

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for start in range(0, len(items), self.batch_size):
            part = items[start : start + self.batch_size]
            scores |= matched(self.name, [item.id for item in part], self._scores(self._post(part)))
        return scores

    def _post(self, items: Sequence[ScoreItem]) -> bytes:
        body = json.dumps({"items": [item.as_json() for item in items]}).encode()
        answer = self._attempt(body)
        for attempt in range(self.retries):
            if isinstance(answer, bytes):
                break
            time.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt))
            answer = self._attempt(body)
        if isinstance(answer, _Failed):
            raise RunStopped(f"{self.name}: {answer.reason}; given up after {self.retries + 1} attempts")
        return answer

    def _attempt(self, body: bytes) -> bytes | _Failed:
        """One request. In a thread, because a client's time-out is for each read, and a server that sends a byte a
        second would never exceed it; a thread that is late is left to itself."""
        found: queue.SimpleQueue[bytes | _Failed | BaseException] = queue.SimpleQueue()
        deadline = time.monotonic() + self._timeout

        def ask() -> None:
            try:
                found.put(self._request(body, deadline))
            except BaseException as error:
                found.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = found.get(timeout=self._timeout)
        except queue.Empty:
            return self._late()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _late(self) -> _Failed:
        return _Failed(f"no answer within {self._timeout:g} s")

    def _request(self, body: bytes, deadline: float) -> bytes | _Failed:
        try:
            with self._client.stream("POST", self.url, content=body) as response:
                pieces, size = [], 0
                for piece in response.iter_raw():
                    if time.monotonic() > deadline:
                        return self._late()
                    pieces.append(piece)
                    size += len(piece)
                    if size > LARGEST_ANSWER:
                        raise RunStopped(
                            f"{self.name}: the answer has more than {LARGEST_ANSWER:,} bytes; it must hold scores only"
                        )
        except httpx2.TimeoutException:
            return self._late()
        except httpx2.HTTPError as error:
            return _Failed(f"{type(error).__name__}: {error}")
        answer = b"".join(pieces)
        return self._refused(response, answer) or answer

    def _refused(self, response: httpx2.Response, answer: bytes) -> _Failed | None:
        """Why the answer is none: None for a good one; RunStopped where asking again would not help."""
        code, begins = response.status_code, repr(answer[:120].decode("utf-8", "replace"))
        if code == 429 or code >= 500:
            return _Failed(f"status {code}: {begins}")
        if response.is_redirect:
            to = said(response.headers.get("Location"))
            raise RunStopped(f"{self.name}: status {code}: it redirects to {to}; write the address that answers itself")
        if code != 200:
            raise RunStopped(f"{self.name}: status {code}: {begins}")
        if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise RunStopped(f"{self.name}: the answer is packed ({packed}); send it as it is, as Accept-Encoding asks")
        return None

    def _scores(self, answer: bytes) -> object:
        begins = repr(answer[:80].decode("utf-8", "replace"))
        try:
            found = json.loads(answer.decode("utf-8"), object_pairs_hook=_no_key_twice)
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
            raise RunStopped(f"{self.name}: the answer is no JSON ({error}): {begins}") from error
        if not isinstance(found, dict) or "scores" not in found:
            raise RunStopped(f"{self.name}: the answer has no key 'scores': {begins}")
        return found["scores"]


def _address(url: str) -> httpx2.URL:
    """The URL, or UserError where no request can be sent to it. The message leaves out what stands before the host."""
    shown = url.rpartition("@")[2] if "@" in url else url
    try:
        address = httpx2.URL(url)
        # As the look-up of an address does: it takes no empty or overlong part of a name.
        address.host.encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise UserError(
            f"reward endpoint {shown}: no URL that can be reached ({error}); write http://HOST:PORT/PATH"
        ) from error
    if not address.host or " " in address.host or "%20" in address.host:
        raise UserError(f"reward endpoint {shown}: no host in it; write http://HOST:PORT/PATH")
    if address.port is not None and not 1 <= address.port <= 65535:
        raise UserError(f"reward endpoint {shown}: port {address.port} is none; a port is 1 to 65535")
    return address


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice")
    return found
