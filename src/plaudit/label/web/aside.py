"""The admin's numbers and exports, and new items, by `plaudit label ...` in a process of its own.

Reading the whole ledger takes memory and seconds; here nobody who labels waits for it, and what it took is gone after.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import typer

from plaudit.errors import UserError
from plaudit.label.db.writer import Busy

DATABASE = "PLAUDIT_LABEL_DATABASE"
"""The variable that hands the database over: a password in a command line could be read by other users."""
_COMMAND = (sys.executable, "-c", "from plaudit.cli.main import main; main()", "label")
_SECONDS = 300
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


class Remembered:
    """The last result of a slow command, for `seconds`; whoever asks meanwhile waits for the one who computes it."""

    def __init__(self, seconds: float):
        self.seconds, self.made, self.value = seconds, 0.0, b""
        self._lock = threading.Lock()

    def get(self, database: str, arguments: Sequence[str]) -> bytes:
        with self._lock:
            if not self.value or time.monotonic() - self.made > self.seconds:
                self.value = b"".join(blocks(run(database, arguments)[0]))
                self.made = time.monotonic()
            return self.value
