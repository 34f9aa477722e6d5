"""The kinds of task: one file says what counts as an answer, what its page is given, how it is exported."""

from collections.abc import Sequence

from plaudit.label.db.ledger import Label
from plaudit.label.kinds.rank import COMPARE, RANK, VERDICTS
from plaudit.label.kinds.shared import BadAnswer, Body, quoted
from plaudit.label.kinds.write import WRITE

KINDS = {"rank": RANK, "compare": COMPARE, "write": WRITE}
SAID = ("ranked", *VERDICTS, "written")
_PARTS = {"ranks", "verdict", "strength", "reason", "flags", "text"}


def body_of(task: str, order: Sequence[int], flags: Sequence[str], sent: Body) -> Body:
    """The body of a label: every key of the task, in the item's order. BadAnswer if it is none."""
    unknown = sent.keys() - _PARTS
    if unknown:
        raise BadAnswer(quoted(min(unknown)), "not a part of an answer", "see docs/label-api.md")
    return KINDS[task].body(order, flags, sent)


def said_by(label: Label) -> str:
    """One of `SAID`: a verdict, or what was given without one."""
    return label.verdict or ("ranked" if label.text is None else "written")
