"""Names of people: how they are kept, and who has one."""

import unicodedata
from typing import Any

from sqlalchemy import Connection, Row, select

from plaudit.label.db.schema import person


def tidy_name(name: str) -> str:
    """A name as it is kept and looked for: in Unicode's composed form, without blanks at its ends or twice within."""
    return " ".join(part for part in unicodedata.normalize("NFC", name).split(" ") if part)


def known_person(connection: Connection, name: str) -> Row[Any] | None:
    """Who has this name, in capitals or not; who has it letter for letter, where two do."""
    wanted = tidy_name(name).casefold()  # an imported name may have blanks at its ends
    found = [one for one in connection.execute(select(person)) if tidy_name(one.name).casefold() == wanted]
    return min(found, key=lambda one: one.name != name, default=None)
