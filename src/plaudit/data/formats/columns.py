"""The names of a file's columns: ours, those that the user gave for ours, and those that differ from ours in capitals.

Nothing is renamed in silence: `said` tells what was taken for what.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plaudit.data.formats.rows import Row, row_of, shown
from plaudit.errors import UserError

OURS = frozenset(
    {
        *("id", "kind", "split", "prompt", "completion", "messages", "instruction", "input", "output", "system"),
        *("conversations", "chosen", "rejected", "responses", "response_1", "response_2", "preference_strength"),
        *("strength", "annotator"),
    }
)
"""The keys that the formats read."""
ALIASES = frozenset({"question", "query", "history", "items", "answers", "label"})
"""Keys that other people's files have, which formats/shapes.py makes ours."""
TEXTS = frozenset({"prompt", "completion", "messages", "conversations", "instruction", "output", "chosen", "rejected"})
"""Those that no row may have twice."""
DUEL = ("answer_a", "answer_b", "answer_0", "answer_1", "answer_2", "winner", "ranking")
"""What a file of two answers and a verdict has, where the user says which columns these are."""
_RANKED = re.compile(r"(answer|rank)_([a-p]|\d{1,2})")
"""What a file of more answers and their ranks has."""


class Columns:
    """`given` maps a key of ours to the file's own name of it."""

    def __init__(self, source: str | Path, given: Mapping[str, str] | None = None):
        self.source, self.given = source, dict(given or {})
        for ours in self.given:
            if ours not in OURS | ALIASES | {*DUEL} and not _RANKED.fullmatch(ours):
                known = ", ".join(sorted({*OURS, *DUEL}))
                raise UserError(f"columns {ours}={self.given[ours]}: {ours!r} is none of {known}")
        self.said: list[str] = []
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def say(self, text: str) -> None:
        """Once a file, and not for ever where every row differs."""
        if text not in self.said and len(self.said) < 20:
            self.said.append(text)

    def names(self, place: str, theirs: tuple[str, ...]) -> tuple[str, ...]:
        """Our names of these columns, in their order; any other keeps its own."""
        if theirs in self._names:
            return self._names[theirs]
        if not self._names:
            for ours, name in self.given.items():
                if name not in theirs:
                    columns = ", ".join(map(shown, theirs[:12]))
                    raise UserError(f"{place}: columns {ours}={name}: there is no column {name!r}, but {columns}")
        wanted = {name: ours for ours, name in self.given.items()}
        made: list[str] = []
        for name in theirs:
            plain = "_".join(name.strip().lower().split())
            if name in wanted:
                plain = wanted[name]
            elif name in self.given:
                plain = f"{name} (the file's own)"
            elif plain != name and plain in TEXTS and plain in {*theirs, *made}:
                raise UserError(
                    f"{place}: two columns read as {plain!r}, one of them {name!r}; delete one, or give it another name"
                )
            elif plain in theirs or plain in made or plain not in OURS | ALIASES:
                plain = name
            made.append(plain)
            if plain != name:
                self.say(f"{shown(name)} read as {shown(plain)}")
        return self._names.setdefault(theirs, tuple(made))

    def renamed(self, row: Row) -> Row:
        """The row with our names."""
        value = row.value
        if value is None:
            return row

        def read() -> dict[str, Any]:
            return dict(zip(self.names(row.place, tuple(value)), value.values(), strict=True))

        return row_of(row.place, row.number, row.raw, read)
