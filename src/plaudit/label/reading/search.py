"""Words that somebody looks for, and pages whose cost does not grow with the rows that there are.

A page begins behind the last row of the page before and not at a count of rows, and looking for it ends after some
time: what was found until then is a page too, and the next one goes on where it ended.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Text, and_, cast, or_, true

SECONDS = 1.5
_CHUNK = 100


@dataclass(frozen=True)
class Words:
    """Every word, and every "phrase in quotes", has to be there somewhere, in capitals or not."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Words":
        return cls(tuple(phrase or word for phrase, word in re.findall(r'"([^"]+)"|(\S+)', text)))

    def among(self, texts: Iterable[str]) -> bool:
        """Whether each word is in one of the texts."""
        if not self.words:
            return True
        lower = "\n".join(texts).lower()
        return all(word.lower() in lower for word in self.words)

    def maybe(self, condition: Callable[[Callable[[Any], ColumnElement[bool]]], ColumnElement[bool]]) -> Any:
        """The condition in SQL that lets every such row through, and perhaps others: JSON also holds its keys.
        `condition(has)` puts together what the columns have to say; `has(column)` asks one of them for a word."""
        return and_(true(), *(condition(partial(_has, word)) for word in self.words))


NO_WORDS = Words(())


def _has(word: str, column: Any) -> ColumnElement[bool]:
    """Whether a column of JSON, which is kept as ASCII, may hold the word; databases know capitals of a to z alone."""
    forms = {json.dumps(form)[1:-1] for form in (word, word.lower(), word.upper(), word.capitalize())}
    return or_(*(cast(column, Text).icontains(form, autoescape=True) for form in sorted(forms)))


def chunks(
    connection: Connection, query: Select[Any], key: ColumnElement[Any], after: int | None, newest: bool
) -> Iterator[list[Row[Any]]]:
    """The query's rows behind `after` by `key`, some at a time, so that whoever has enough can stop."""
    while True:
        behind = true() if after is None else key < after if newest else key > after
        rows = list(connection.execute(query.where(behind).order_by(key.desc() if newest else key).limit(_CHUNK)))
        yield rows
        if len(rows) < _CHUNK:
            return
        after = rows[-1].key


def page(
    found: Iterable[list[Row[Any]]], holds: Callable[[list[Row[Any]]], list[Row[Any]]], size: int
) -> tuple[list[Row[Any]], int | None]:
    """(rows that hold, the key behind which the next page begins; None at the end). `holds` picks from a chunk."""
    until, kept = time.monotonic() + SECONDS, list[Row[Any]]()
    for rows in found:
        kept += holds(rows)
        if len(kept) > size:
            return kept[:size], kept[size - 1].key
        if rows and time.monotonic() > until:
            return kept, rows[-1].key
    return kept, None
