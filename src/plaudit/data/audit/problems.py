"""The kinds of problems that an audit finds: how bad each is, what to do about it, and how often it was met."""

from collections import Counter
from typing import Any

_EXAMPLES = 5
MOST_OF_ONE = 0.1
"""Of labels of single replies, the share that one annotator may give."""
LEVELS = {
    "bad row": ("error", "mend the row, or read with on_bad_row: quarantine"),
    "leak": ("error", "a held-out prompt must not be trained on: keep one split of it"),
    "identical replies": ("error", "one text cannot beat itself: give both the same rank or delete the row"),
    "repeated id": ("error", "make the id unique"),
    "contradiction": ("warning", "two rows prefer opposite replies: keep one, make it a tie, or name who said it"),
    "length bias": ("warning", "a reward model learns length from it: add pairs whose better reply is the other one"),
    "duplicate": ("warning", "the row stands twice: delete one, or it counts twice"),
    "near-duplicate": ("warning", "the row nearly repeats another: keep one of them"),
    "near leak": ("warning", "a row close to a held-out one is trained on: keep one split of it"),
    "validation and test overlap": ("warning", "what chooses the policy should not judge it: keep one split"),
    "empty reply": ("warning", "write the reply or delete the row"),
    "short shared prompt": ("warning", "what two replies begin with is hardly a prompt: add a column 'prompt'"),
    "scored otherwise": ("warning", "are the columns swapped? The row's own score of the rejected reply is higher"),
    "scored alike": ("warning", "the row's own scores are equal: make it a tie, or delete the row"),
    "template mark": ("warning", "a chat template's mark is learnt as plain text: take it out of the text"),
    "one annotator": ("warning", "a reward model of these labels learns one person's taste: ask more people"),
    "cut reply": ("warning", "the reply seems to stop in the middle: complete it, or mark it finished: false"),
}
"""Kind -> (level, what to do). Errors make training wrong; warnings may be wanted."""


class Problems:
    """Counts every problem and keeps the first few different ones of each kind, each with its first place and count."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[dict[str, Any]]] = {}

    def add(self, kind: str, place: str, text: str) -> None:
        self._counts[kind] += 1
        kept = self._examples.setdefault(kind, [])
        same = next((example for example in kept if example["text"] == text), None)
        if same is not None:
            same["count"] += 1
        elif len(kept) < _EXAMPLES:
            kept.append({"place": place, "text": text, "count": 1})

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"level": level, "kind": kind, "count": self._counts[kind], "fix": fix, "examples": self._examples[kind]}
            for kind, (level, fix) in LEVELS.items()
            if self._counts[kind]
        ]
