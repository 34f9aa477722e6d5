"""Exports and new items by `plaudit label ...` in a process of its own, and the last of the admin's numbers.

Reading the whole ledger takes memory and seconds; here nobody who labels waits for it, and what it took is gone after.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import IO, Any

import typer

from plaudit.errors import UserError
from plaudit.label.db.writer import Busy
from plaudit.label.quality.process import DATABASE
from plaudit.run.threads import begun

_COMMAND = (sys.executable, "-c", "from plaudit.cli.main import main; main()", "label")
_SECONDS = 3600
_BLOCK = 1 << 16
_at_once = threading.Semaphore(2)


def run(database: str, arguments: Sequence[str]) -> tuple[IO[bytes], str]:
    """What `plaudit label ARGUMENTS` prints, as an open file without a name, and the last line of what it says on the
    standard error. UserError with its words when it fails."""
    # Whoever is given the file closes it.
    out = tempfile.TemporaryFile()  # noqa: SIM115
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.PIPE}
    try:
        with _at_once:
            done = subprocess.run([*_COMMAND, *arguments], env=_environment(database), timeout=_SECONDS, **pipes)
    except subprocess.TimeoutExpired as error:
        raise Busy(f"`plaudit label {arguments[0]}` took more than {_SECONDS} s") from error
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode != 0:
        raise UserError(said[-1].removeprefix("Error: ") if said else f"`plaudit label {arguments[0]}` failed")
    out.seek(0)
    return out, said[-1] if said else ""


def add(database: str, arguments: Sequence[str]) -> None:
    """`plaudit label add`, which says itself what is wrong; what reads data files may take memory that this process
    must not keep."""
    done = subprocess.run([*_COMMAND, "add", *arguments], check=False, env=_environment(database))
    if done.returncode != 0:
        raise typer.Exit(done.returncode)


def _environment(database: str) -> dict[str, str]:
    return {**os.environ, DATABASE: database}


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The file's bytes; it is closed at the end."""
    with file:
        while block := file.read(_BLOCK):
            yield block


class Jobs:
    """Commands that may take longer than a proxy waits: begun by the first who asks, and handed over when they are done
    to whoever asks with the same key again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going: dict[Hashable, tuple[float, Future[tuple[IO[bytes], str]]]] = {}

    def get(
        self, key: Hashable, database: str, arguments: Sequence[str], patience: float
    ) -> tuple[IO[bytes], str] | float:
        """As of `run`, or after `patience` the seconds for which it has been at work: ask again, then."""
        with self._lock:
            self._tidy()
            if key not in self._going:
                self._going[key] = time.monotonic(), begun(partial(run, database, arguments), "aside")
            began, going = self._going[key]
        try:
            result = going.result(patience)
        except FutureTimeout:
            return time.monotonic() - began
        except Exception:
            self._take(key)
            raise
        # Another who asked with this key meanwhile may have the file: it is read once.
        return result if self._take(key) else self.get(key, database, arguments, patience)

    def _take(self, key: Hashable) -> bool:
        with self._lock:
            return self._going.pop(key, None) is not None

    def _tidy(self) -> None:
        """What nobody fetched is forgotten after an hour."""
        old = time.monotonic() - _SECONDS
        for key, (began, going) in list(self._going.items()):
            if began < old and going.done():
                del self._going[key]


class Remembered:
    """The last result of `make`, which takes long. When it is older than `seconds` it is made anew, once for all who
    ask; they wait for `patience` seconds and then have the old one, if there is one."""

    def __init__(self, make: Callable[[], bytes], seconds: float, patience: float = 1.5):
        self.make, self.seconds, self.patience = make, seconds, patience
        self.made, self.value = 0.0, b""
        self._lock = threading.Lock()
        self._going: Future[None] | None = None

    def get(self, *, wait: bool = False) -> bytes:
        """The result; with `wait` never an old one."""
        with self._lock:
            if self.value and time.monotonic() - self.made <= self.seconds:
                return self.value
            if self._going is None or self._going.done():
                self._going = begun(self._make, "aside")
            going = self._going
        old = self.value
        try:
            going.result(None if wait or not old else self.patience)
        except FutureTimeout:
            return old
        return self.value

    def _make(self) -> None:
        self.value = self.make()
        self.made = time.monotonic()
