"""What a scorer of texts is asked, and what it must answer: for every id, once, a finite number.

    score(items) -> {id: score}

Results are matched by id, never by order. A reward that fails stops the run; it is never a score of 0. Loads no tensor
library: the process of a reward function loads this file (function.py).
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from plaudit.errors import RunStopped
from plaudit.records import Completion, Message, Prompt, messages_as_json


@dataclass(frozen=True)
class ScoreItem:
    """One reply to be scored; `id` is unique within a call."""

    id: str
    prompt: Prompt
    completion: Completion

    def as_json(self) -> dict[str, Any]:
        """What a function or an endpoint is given: id, prompt (messages), completion (text), finished."""
        return {
            "id": self.id,
            "prompt": messages_as_json(self.prompt.messages),
            "completion": self.completion.text,
            "finished": self.completion.finished,
        }


PROBE = ScoreItem(
    "probe",
    Prompt("probe", (Message("user", "How do I boil an egg?"),), "probe", "train"),
    Completion("Boil it for eight minutes."),
)
"""What a reward is asked before long work begins."""


class Scorer(Protocol):
    """Anything that scores texts."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        """A finite score for the id of every item; RunStopped, with the reason, when there is none."""
        ...


def matched(name: str, ids: Sequence[str], answer: object) -> dict[str, float]:
    """`answer` as id -> score, exactly the ids that were asked about; RunStopped that names what is wrong with it.

    It is a mapping of ids to scores, or a list of mappings with the keys `id` and `score`; `score_of` says what a score
    is.
    """
    asked = set(ids)
    assert len(asked) == len(ids), "ids of one call are unique"
    scores: dict[str, float] = {}
    for id, value in _pairs(name, answer):
        if not isinstance(id, str) or id not in asked:
            kind = "" if isinstance(id, str) else f" ({type(id).__name__}, not text)"
            raise RunStopped(f"{name}: answered for id {said(id)}{kind}, which it was not asked about")
        if id in scores:
            raise RunStopped(f"{name}: answered twice for id {said(id)}")
        try:
            scores[id] = score_of(value)
        except ValueError as error:
            raise RunStopped(f"{name}: the score of {said(id)} is {error}") from error
    missing = sorted(asked - scores.keys())
    if missing:
        raise RunStopped(
            f"{name}: gave {len(scores)} scores for {len(ids)} replies; there is none for id {missing[0]!r}"
        )
    return scores


def _pairs(name: str, answer: object) -> list[tuple[object, object]]:
    if isinstance(answer, Mapping):
        return list(answer.items())
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise RunStopped(
            f"{name}: answered {type(answer).__name__} {said(answer)}; it must answer {{id: score}} or a list of "
            "{'id': ..., 'score': ...}"
        )
    for row in answer:
        if not isinstance(row, Mapping) or "id" not in row or "score" not in row:
            raise RunStopped(f"{name}: {said(row)} is no score; write {{'id': ..., 'score': ...}}")
    return [(row["id"], row["score"]) for row in answer]


def score_of(value: object) -> float:
    """A score as a float. Any real number is one, a Decimal or Fraction too, and what holds a single number without
    dimensions: a 0-d array or tensor. ValueError says what else it is; the sentence goes on after "is"."""
    if getattr(value, "ndim", None) == 0 and callable(item := getattr(value, "item", None)):
        value = item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        raise ValueError(f"{said(value)}, not a number but {type(value).__name__}")
    try:
        score = float(value)
    except (OverflowError, ValueError):  # an integer beyond the largest float; a signalling NaN
        raise ValueError(f"{said(value)}, beyond what a float holds; nothing can be learnt from it") from None
    if not math.isfinite(score):
        raise ValueError(f"{score}; nothing can be learnt from it")
    return score


def said(value: object) -> str:
    """A value for an error message, cut; what cannot be shown is named by its type."""
    try:
        return repr(str(value)[:80])
    except Exception:
        return f"something of type {type(value).__name__} that cannot be shown"
