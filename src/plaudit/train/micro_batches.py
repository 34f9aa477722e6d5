"""Stops that leave something to look at, and micro-batches that shrink when memory runs out."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from plaudit.data.files import write_json
from plaudit.dist.memory import halving, too_large
from plaudit.errors import RunStopped
from plaudit.run.display import console

STOPPED = "stopped.json"
T = TypeVar("T")


@contextmanager
def batch_kept(folder: Path, where: str, batch: Callable[[], list[dict[str, Any]]]) -> Iterator[None]:
    """When a guard stops what is done here, the rows of `batch()` go to folder/stopped.json; the message names it."""
    try:
        yield
    except (RunStopped, FloatingPointError) as stop:
        write_json(folder / STOPPED, {"where": where, "reason": str(stop), "batch": batch()})
        raise RunStopped(f"{stop}; its batch is in {folder / STOPPED}") from stop


class MicroBatches:
    """How many rows go through the model at once: what the recipe says, halved as often as memory ran out."""

    def __init__(self, folder: Path, key: str, *, alone: bool = True):
        """`key` is the recipe's, for messages; what happened is written to folder/memory.jsonl. A process that is not
        `alone` in its work stops at once: the others would go on in other micro-batches."""
        self._folder, self._key, self._alone, self.halvings = folder, key, alone, 0

    def rows(self, asked: int) -> int:
        return max(1, asked >> self.halvings)

    def fit(self, asked: int, where: str, attempt: Callable[[], T], undo: Callable[[], object]) -> T:
        """`attempt()`, again with half the rows while memory runs out; `undo` first takes back what it left.

        `asked` are the rows (or tokens) of the recipe. RunStopped when one row is too many.
        """

        def smaller(told: str) -> None:
            undo()
            if self.rows(asked) == 1 or not self._alone:
                change = "use shorter replies or a smaller model" if self.rows(asked) == 1 else f"lower {self._key}"
                raise too_large(where, told, self.rows(asked), change)
            self.halvings += 1
            row = {"where": where, self._key: self.rows(asked), "why": told}
            with (self._folder / "memory.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            console.print(f"{where}: out of memory; going on with {self._key}={self.rows(asked)}", soft_wrap=True)

        return halving(attempt, smaller)
