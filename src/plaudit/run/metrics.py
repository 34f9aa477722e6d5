"""Metrics as JSON lines: one object a step, flushed at once, so that a run can be read while it goes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Metrics:
    """Appends to one file; `read_metrics` gives the rows back."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("w", encoding="utf-8")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def log(self, **row: Any) -> None:
        """One row; every number in it must be finite (a NaN in a log is a run that should have stopped)."""
        for name, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError as error:
                raise FloatingPointError(f"metric {name!r} is {value} in {row}") from error
        line = json.dumps(row)
        self._handle.write(line + "\n")
        self._handle.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Clock:
    """Seconds that a step spends in each of its parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
