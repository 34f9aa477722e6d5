"""Rows of a ledger for tests, short to write."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from plaudit.label.db.ledger import ItemRow, Label, Ledger, PersonRow, ReplyRow
from plaudit.records import Message

_numbers = count(1)


def item(
    identity: str,
    texts: Sequence[str] = (),
    sources: Sequence[str | None] = (),
    prompt_id: str = "",
    **changes: Any,
) -> ItemRow:
    """An item to be ranked: of replies with these texts, or one a source."""
    texts = texts or [f"reply {number}" for number in range(len(sources))]
    replies = tuple(
        ReplyRow(text, True, source) for text, source in zip(texts, sources or [None] * len(texts), strict=True)
    )
    values: dict[str, Any] = {
        "number": next(_numbers),
        "task": "rank",
        "messages": (Message("user", "Say something."),),
        "replies": replies,
        "prompt_id": prompt_id or identity,
        "kind": "instruction",
        "split": "train",
        "gold": None,
        "priority": 0.0,
        "overlap": None,
        "source_file": "",
    }
    return ItemRow(id=identity, **{**values, **changes})


def label(of: ItemRow, ranks: Sequence[int] | None, person: int = 1, **changes: Any) -> Label:
    """What a person said of an item, shown in the item's own order unless told otherwise."""
    values: dict[str, Any] = {"created": 0.0, "seconds": 30.0, "order": tuple(range(len(of.replies)))}
    seq = changes.pop("seq", None) or next(_numbers)
    said = None if ranks is None else tuple(ranks)
    return Label(seq, of.id, person, ranks=said, **{**values, **changes})


def person(number: int, name: str, **changes: Any) -> PersonRow:
    values: dict[str, Any] = {"role": "annotator", "active": True, "invited": False, "created": 0.0}
    return PersonRow(id=number, name=name, **{**values, **changes})


def ledger(items: Sequence[ItemRow], people: Sequence[PersonRow], labels: Sequence[Label], overlap: int = 1) -> Ledger:
    return Ledger("project", overlap, tuple(items), tuple(people), tuple(labels))
