"""Metrics as JSON lines: one object a step, flushed at once, so that a run can be read while it goes.

A log is append-only. A checkpoint records how long it was (`end`), and a resumed run cuts it there before it goes on:
so no step stands twice and none is missing.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plaudit.errors import UserError, writing

TAIL = 1 << 14
"""Bytes of a log's end that are read at a time."""


def is_number(value: Any) -> bool:
    """Whether a value of a row is a figure that can be drawn or handed to a logger: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Metrics:
    """Appends to one file; `read_metrics` gives the rows back."""

    def __init__(self, path: Path, start: int = 0):
        """A new file, or with `start` the one that is there, cut to its first `start` bytes; UserError when it has
        fewer."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if start and (not path.is_file() or path.stat().st_size < start):
            now = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
            raise UserError(
                f"{path} {now}, its checkpoint was made after {start}: the file was changed or removed since; put it "
                "back, or run the stage again with --from"
            )
        self.path = path
        self._handle = path.open("r+b" if start else "wb")
        self._handle.truncate(start)
        self._handle.seek(start)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self.path):
            self._handle.close()

    def log(self, **row: Any) -> None:
        """One row; every number in it must be finite (a NaN in a log is a run that should have stopped)."""
        for name, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError as error:
                raise FloatingPointError(f"metric {name!r} is {value} in {row}") from error
        with writing(self.path):
            self._handle.write((json.dumps(row) + "\n").encode("utf-8"))
            self._handle.flush()

    def end(self) -> int:
        """Bytes so far, all of them on the disk."""
        with writing(self.path):
            self._handle.flush()
            os.fsync(self._handle.fileno())
        return self._handle.tell()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a log that may still be written to: a last line without its end is not read yet."""
    # Not splitlines, which also ends a line at the line separators that a reply may hold.
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def last_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` rows of a log, read from its end: a log grows with its run. None of a log that is not there."""
    if not path.is_file():
        return []
    start = path.stat().st_size
    with path.open("rb") as handle:
        while True:
            start = max(0, start - TAIL)
            handle.seek(start)
            whole, _, _ = handle.read().rpartition(b"\n")
            lines = whole.split(b"\n")[bool(start) :]  # the first one may have begun before
            if start == 0 or len(lines) >= count:
                return [json.loads(line) for line in lines[-count:] if line]


class Clock:
    """Seconds that a step spends in each of its parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
