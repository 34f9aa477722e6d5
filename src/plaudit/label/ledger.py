"""What the database holds, as plain frozen rows: what quality, dashboard and export are computed from.

They are pure functions of a `Ledger`, so they need no database to be tested, and one read of the database gives all of
them the same moment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from plaudit.records import Completion, Message


@dataclass(frozen=True)
class Reply:
    """A reply of an item; `source` says which model wrote it and is never shown to annotators."""

    completion: Completion
    source: str | None = None


@dataclass(frozen=True)
class ItemRow:
    """What is to be labelled. `overlap` is how many people are to label it."""

    id: str
    task: str
    prompt_id: str
    messages: tuple[Message, ...]
    replies: tuple[Reply, ...]
    kind: str = "instruction"
    split: str = "train"
    gold: tuple[int, ...] | None = None
    priority: float = 0.0
    overlap: int = 1


@dataclass(frozen=True)
class PersonRow:
    """Who labels; a disabled person's labels stay."""

    id: int
    name: str
    role: str = "annotator"
    active: bool = True


@dataclass(frozen=True)
class LabelRow:
    """One row of the ledger. Times are seconds since 1970 (UTC) by the server's clock; `seconds` is from serving to
    submitting. `ranks` and `flags` are in the item's order of replies; `order[p]` is the reply shown in position p."""

    seq: int
    item: str
    person: int
    created: float
    seconds: float
    order: tuple[int, ...] = ()
    ranks: tuple[int, ...] | None = None
    verdict: str | None = None
    strength: int | None = None
    reason: str = ""
    flags: tuple[tuple[str, ...], ...] = ()
    text: str | None = None
    late: bool = False
    supersedes: int | None = None
    purpose: str = "normal"


@dataclass(frozen=True)
class Ledger:
    """One moment of a database; `open_leases` are items being looked at now."""

    name: str
    items: tuple[ItemRow, ...]
    people: tuple[PersonRow, ...]
    labels: tuple[LabelRow, ...]
    open_leases: int = 0


def standing(labels: Iterable[LabelRow]) -> list[LabelRow]:
    """The labels that hold: those that no later row corrects, by `seq`."""
    rows = sorted(labels, key=lambda label: label.seq)
    corrected = {label.supersedes for label in rows}
    return [label for label in rows if label.seq not in corrected]


Verdicts = dict[tuple[int, int], int]
"""(i, j) with i < j -> 1: reply i is better, −1: reply j is, 0: a tie."""


def verdicts_of(ranks: Sequence[int]) -> Verdicts:
    """What ranks (1 is best) say of every pair of replies."""
    return {(i, j): (ranks[i] < ranks[j]) - (ranks[i] > ranks[j]) for i, j in combinations(range(len(ranks)), 2)}


def dense(ranks: Sequence[float]) -> tuple[int, ...]:
    """The same order as ranks without gaps: (2, 5, 2) -> (1, 2, 1)."""
    place = {value: number + 1 for number, value in enumerate(sorted(set(ranks)))}
    return tuple(place[value] for value in ranks)
