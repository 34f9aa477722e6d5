"""Stops that leave something to look at, and micro-batches that shrink when memory runs out."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from plaudit.config import AutoOrCount
from plaudit.data.files import write_json
from plaudit.data.packing import balanced, by_length
from plaudit.dist.memory import halving, too_large
from plaudit.errors import RunStopped, writing
from plaudit.run.display import console
from plaudit.train.run import Run

STOPPED = "stopped.json"
WHOLE = 1 << 24
"""Tokens that no step has."""
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
    """How much goes through the model at once: the rows that the recipe says, or the tokens that there was memory for
    when the run began; halved as often as memory ran out."""

    def __init__(self, run: Run, stage: str, key: str, asked: AutoOrCount, *, tokens: int | None = None):
        """`key` of the stage's section or, with a dot, of the recipe, for messages, and its value; `tokens` is a budget
        that the recipe names itself. What happened is written to the stage's folder/memory.jsonl. A process that is not
        alone in its work stops at once: the others would go on in other micro-batches."""
        self._folder, self._ranks, self.halvings = run.folder.stage(stage), run.ranks, 0
        self._key = key if "." in key else f"{stage}.{key}"
        self._auto = asked == "auto" and tokens is None
        # A stage that nobody planned (a test, a call from Python) takes its steps as a whole.
        self._most = tokens or (run.micro_batches.get(stage, WHOLE) if asked == "auto" else asked)
        self._by_rows = asked != "auto" and tokens is None

    def bounds(self, count: int) -> tuple[int, int | None]:
        """(rows, tokens) of a pass at most, where `count` rows are a step: no rank is idle where there are enough."""
        now = max(1, self._most >> self.halvings)
        return self._ranks.rows(now if self._by_rows else count, count), None if self._by_rows else now

    def groups(self, lengths: Sequence[int], *, packed: bool) -> list[list[int]]:
        """The numbers of a step's examples in its passes: of like cost when packed, of like length when padded."""
        rows, tokens = self.bounds(len(lengths))
        return balanced(lengths, rows, tokens) if packed else by_length(lengths, rows, tokens)

    def fit(self, where: str, attempt: Callable[[], T], undo: Callable[[], object]) -> T:
        """`attempt()`, again in passes of half the size while memory runs out; `undo` first takes back what it left.

        RunStopped when one row is too many.
        """

        def smaller(told: str) -> None:
            undo()
            now = max(1, self._most >> self.halvings)
            if now == 1 or self._ranks.count > 1:
                change = "use shorter replies or a smaller model" if now == 1 else f"lower {self._key}"
                raise too_large(where, told, now, f"give {self._key} a number" if self._auto and now > 1 else change)
            self.halvings += 1
            key = f"{self._key} (tokens)" if self._auto else self._key
            row = {"where": where, key: now // 2, "why": told}
            path = self._folder / "memory.jsonl"
            with writing(path), path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            console.print(f"{where}: out of memory; going on with {key}={now // 2}", soft_wrap=True)

        return halving(attempt, smaller)
