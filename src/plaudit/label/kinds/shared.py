"""What a kind of task is, what can be wrong with an answer, and how an answer is kept."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["rankings", "comparisons", "pairs", "hh", "demonstrations", "table", "ledger"]
"""Formats of an export; `table` and `ledger` are of every kind."""
Aggregate = Literal["mean", "reliability"]
"""How the rankings of several people become one."""
MOST_REASON = 5_000
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
Body = dict[str, Any]
Reply = dict[str, Any]
"""A reply as the table `item` holds it: text, ended, source."""


@dataclass(frozen=True)
class Kind:
    """A kind of task. `order[p]` is the index of the reply that is shown at position p.

    - `body(order, flags, sent)`: what the ledger keeps of an answer, in the item's order; BadAnswer if it is none.
    - `sent(order, body)`: the answer as it was sent, the inverse of `body`.
    - `shown(order, replies)`: what the page is given: the replies to judge, and the text to start writing from.
    - `formats`: those in which its labels are exported.
    """

    name: str
    body: Callable[[Sequence[int], Sequence[str], Body], Body]
    sent: Callable[[Sequence[int], Body], Body]
    shown: Callable[[Sequence[int], list[Reply]], tuple[list[Reply], str | None]]
    formats: tuple[Format, ...]


class BadAnswer(ValueError):
    """What is wrong with which field of an answer, and what to send instead."""

    def __init__(self, field: str, error: str, fix: str):
        super().__init__(f"{field}: {error}; {fix}")
        self.field, self.error, self.fix = field, error, fix


def text_of(field: str, sent: Any, most: int) -> str:
    """A text of an answer."""
    if not isinstance(sent, str):
        raise BadAnswer(field, f"not a text: {quoted(sent)}", "send a string")
    if len(sent) > most:
        raise BadAnswer(field, f"{len(sent):,} characters, more than {most:,}", "shorten it")
    if _NOT_TEXT.search(sent):
        raise BadAnswer(field, "it holds a NUL or half a surrogate pair, which is not text", "remove that character")
    return sent


def reason_of(sent: Body) -> str:
    return text_of("reason", sent.get("reason") or "", MOST_REASON)


def quoted(value: Any) -> str:
    return ascii(value)[:80]


def canonical(body: Body) -> str:
    """One text for equal bodies: sorted keys, no spaces, ASCII."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
