"""Which rows are held out where their files do not say it: a hash of the prompt decides, so that a prompt has one split
in every file, however often rows are added."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from plaudit.data.audit.texts import hash_of, words_alone
from plaudit.data.formats.columns import Columns
from plaudit.data.formats.containers import rows
from plaudit.errors import UserError
from plaudit.records import Message


def split_of(messages: Iterable[Message], validation: float, test: float) -> str:
    """The split of a prompt. Its system message, its capitals, punctuation and spacing do not matter: a copy that
    differs in these alone stays on the same side."""
    said = (part for m in messages if m.role != "system" for part in (m.role, words_alone(m.content)))
    place = hash_of(*said) / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def names_split(path: Path, columns: Mapping[str, str] | None = None) -> bool:
    """Whether any row of a file names its split. A file that cannot be read names none: reading it says why."""
    try:
        return any(row.value is not None and row.value.get("split") for row in rows(path, Columns(path, columns)))
    except (UserError, OSError):
        return False
