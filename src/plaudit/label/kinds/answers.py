"""What an annotator sends (in the order shown to them) and what the ledger keeps (in the item's order).

`order[p]` is the index of the reply that was shown at position p, so `kept[order[p]] = sent[p]`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

VERDICTS = ("all_bad", "cannot_judge")
STRENGTHS = (1, 2, 3)
MOST_REASON, MOST_TEXT = 5_000, 200_000
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class BadAnswer(ValueError):
    """What is wrong with which field of an answer, and what to send instead."""

    def __init__(self, field: str, error: str, fix: str):
        super().__init__(f"{field}: {error}; {fix}")
        self.field, self.error, self.fix = field, error, fix


def body_of(task: str, order: Sequence[int], flags: Sequence[str], sent: dict[str, Any]) -> dict[str, Any]:
    """The body of a label: every key of the task, ranks dense from 1, all in the item's order. BadAnswer if wrong.

    rank and compare: {"ranks", "verdict", "strength", "reason", "flags"}; write: {"text", "reason"}.
    """
    unknown = sent.keys() - {"ranks", "verdict", "strength", "reason", "flags", "text"}
    if unknown:
        raise BadAnswer(_shown(min(unknown)), "not a part of an answer", "see docs/label-api.md")
    if task == "write":
        for field in ("ranks", "verdict", "strength"):
            if sent.get(field) is not None:
                raise BadAnswer(field, "a written reply has none", "send null")
        text = _text("text", sent.get("text"), MOST_TEXT)
        if not text.strip():
            raise BadAnswer("text", "the reply is empty", "write a reply, or skip this item")
        return {"text": text, "reason": _text("reason", sent.get("reason") or "", MOST_REASON)}
    if sent.get("text") is not None:
        raise BadAnswer("text", f"a text where the task is {task}", "send null")
    verdict = sent.get("verdict")
    if verdict is not None and verdict not in VERDICTS:
        raise BadAnswer("verdict", f"unknown verdict {_shown(verdict)}", f"send null or one of {', '.join(VERDICTS)}")
    strength = sent.get("strength")
    if strength is not None and (isinstance(strength, bool) or strength not in STRENGTHS):
        raise BadAnswer("strength", f"unknown strength {_shown(strength)}", "send null, 1, 2 or 3")
    return {
        "ranks": _ranks(order, verdict, sent.get("ranks")),
        "verdict": verdict,
        "strength": strength,
        "reason": _text("reason", sent.get("reason") or "", MOST_REASON),
        "flags": _flags(order, flags, sent.get("flags")),
    }


def _ranks(order: Sequence[int], verdict: str | None, sent: Any) -> list[int] | None:
    count = len(order)
    if sent is None:
        if verdict is None:
            raise BadAnswer("ranks", "there are no ranks", "rank every reply, or say all_bad or cannot_judge")
        return None
    if verdict == "cannot_judge":
        raise BadAnswer("ranks", "ranks of replies that cannot be judged", "send ranks null with cannot_judge")
    whole = isinstance(sent, list) and all(isinstance(rank, int) and not isinstance(rank, bool) for rank in sent)
    if not whole or len(sent) != count or not all(1 <= rank <= count for rank in sent):
        raise BadAnswer("ranks", f"not {count} ranks from 1 to {count}: {_shown(sent)}", "send one rank a reply")
    dense = {rank: place for place, rank in enumerate(sorted(set(sent)), start=1)}
    return in_items_order(order, [dense[rank] for rank in sent])


def _flags(order: Sequence[int], known: Sequence[str], sent: Any) -> list[list[str]]:
    if sent is None:
        return [[] for _ in order]
    if not isinstance(sent, list) or len(sent) != len(order) or not all(isinstance(item, list) for item in sent):
        raise BadAnswer("flags", f"not {len(order)} lists of flags: {_shown(sent)}", "send one list a reply")
    for flag in (flag for item in sent for flag in item):
        if flag not in known:
            raise BadAnswer("flags", f"unknown flag {_shown(flag)}", f"the flags are {', '.join(known) or 'none'}")
    return in_items_order(order, [[flag for flag in known if flag in item] for item in sent])


def _text(field: str, sent: Any, most: int) -> str:
    if not isinstance(sent, str):
        raise BadAnswer(field, f"not a text: {_shown(sent)}", "send a string")
    if len(sent) > most:
        raise BadAnswer(field, f"{len(sent):,} characters, more than {most:,}", "shorten it")
    if _NOT_TEXT.search(sent):
        raise BadAnswer(field, "it holds a NUL or half a surrogate pair, which is not text", "remove that character")
    return sent


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def in_items_order(order: Sequence[int], shown: Sequence[Any]) -> list[Any]:
    """kept[order[p]] = shown[p]."""
    kept: list[Any] = [None] * len(order)
    for position, reply in enumerate(order):
        kept[reply] = shown[position]
    return kept


def positions_of(order: Sequence[int], body: dict[str, Any]) -> dict[str, Any]:
    """The answer as it was sent: the inverse of `body_of`."""
    if "text" in body:
        return dict(body)
    ranks = None if body["ranks"] is None else [body["ranks"][reply] for reply in order]
    return {**body, "ranks": ranks, "flags": [body["flags"][reply] for reply in order]}


def canonical(body: dict[str, Any]) -> str:
    """One text for equal bodies: sorted keys, no spaces, ASCII."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_of(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()
