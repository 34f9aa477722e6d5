"""Requests over HTTP to a server that may be slow, silent, gone or wrong: each is over in time, with an answer or with
the reason why there is none. Redirects are not followed. Imports no torch: the labelling service asks, too."""

import ipaddress
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2

from plaudit.errors import RunStopped, UserError

HUNG_UP = "hung up"
"""Why a request brought no answer that we no longer wait for."""


@dataclass(frozen=True)
class Failed:
    """Why a request brought no answer; another attempt may."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def begins(self) -> str:
        """For a message."""
        return repr(self.body[:120].decode("utf-8", "replace"))


class Asking:
    """Asks one server. `timeout` is seconds a request, from the connection to the answer's last byte."""

    def __init__(
        self,
        name: str,
        url: str,
        timeout: float,
        *,
        largest: int | None,
        holds: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        """`name` is what messages call the server. RunStopped for an answer of more than `largest` bytes, which shall
        hold what `holds` says; where that is None, only the status is read. A proxy of the environment is not asked for
        an address of this machine; UserError where it names one that cannot be used."""
        self.name, self.url, self._timeout, self._largest, self._holds = name, url, timeout, largest, holds
        self._waiting = set[queue.SimpleQueue[Answer | Failed | BaseException]]()
        self._closed = False
        # An answer that is not packed cannot unpack to more than was read.
        known = {"Content-Type": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        try:
            self._client = httpx2.Client(
                timeout=timeout,
                headers=known,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=8),
                trust_env=not _is_here(url),
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise UserError(f"{self.name}: the proxy that the environment names cannot be used ({error})") from error

    def close(self) -> None:
        """Hang up on who has not answered yet: who waits, or asks from now on, hears that it failed."""
        self._closed = True
        for found in list(self._waiting):
            found.put(Failed(HUNG_UP))
        self._client.close()

    def ask(self, body: bytes | None, path: str = "") -> Answer | Failed:
        """One request to the address, with `path` behind it: POST with a body, GET without one. In a thread, because a
        client's time-out is for each read, and a server that sends a byte a second would never exceed it; a thread that
        is late is left to itself."""
        found: queue.SimpleQueue[Answer | Failed | BaseException] = queue.SimpleQueue()
        deadline = time.monotonic() + self._timeout

        def ask() -> None:
            try:
                found.put(self._request(body, path, deadline))
            except BaseException as error:
                found.put(error)

        self._waiting.add(found)
        try:
            if self._closed:  # looked at only now: `close` wakes who is among the waiting
                return Failed(HUNG_UP)
            threading.Thread(target=ask, daemon=True).start()
            answer = found.get(timeout=self._timeout)
        except queue.Empty:
            return self._late()
        finally:
            self._waiting.discard(found)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _late(self) -> Failed:
        return Failed(f"no answer within {self._timeout:g} s")

    def _request(self, body: bytes | None, path: str, deadline: float) -> Answer | Failed:
        method = "GET" if body is None else "POST"
        try:
            with self._client.stream(method, self.url + path, content=body) as response:
                if self._largest is None:
                    return Answer(response.status_code, response.headers, b"")
                pieces, size = [], 0
                for piece in response.iter_raw():
                    if time.monotonic() > deadline:
                        return self._late()
                    pieces.append(piece)
                    size += len(piece)
                    if size > self._largest:
                        raise RunStopped(
                            f"{self.name}: the answer has more than {self._largest:,} bytes; it must hold {self._holds}"
                        )
        except httpx2.TimeoutException:
            return self._late()
        except httpx2.HTTPError as error:
            return Failed(f"{type(error).__name__}: {error}")
        return Answer(response.status_code, response.headers, b"".join(pieces))


def _is_here(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(what: str, url: str) -> httpx2.URL:
    """The URL of `what`, or UserError where no request can be sent to it. The message leaves out what stands before the
    host."""
    shown = url.rpartition("@")[2] if "@" in url else url
    try:
        address = httpx2.URL(url)
        # As the look-up of an address does: it takes no empty or overlong part of a name.
        address.host.encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise UserError(f"{what} {shown}: no URL that can be reached ({error}); write http://HOST:PORT/PATH") from error
    if not address.host or " " in address.host or "%20" in address.host:
        raise UserError(f"{what} {shown}: no host in it; write http://HOST:PORT/PATH")
    if address.port is not None and not 1 <= address.port <= 65535:
        raise UserError(f"{what} {shown}: port {address.port} is none; a port is 1 to 65535")
    return address
