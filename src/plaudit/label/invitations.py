"""Many invitations at once, from a CSV file: who, in which role, with which quota and fields. Links come back as CSV.

name,role,quota,fields
ann,annotator,200,medical 50; law
bo,admin,,
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from plaudit.errors import UserError
from plaudit.label.db.names import known_person
from plaudit.label.people import make_invite
from plaudit.label.queue.allowances import read_fields, set_allowance
from plaudit.label.transfer.table import csv_lines

COLUMNS = ("name", "role", "quota", "fields")
MOST = 1_000


@dataclass(frozen=True)
class Row:
    """A line of the file; `place` is file:line."""

    place: str
    name: str
    role: str
    quota: int
    fields: dict[str, int | None]


def read_invitations(text: str, file: str) -> list[Row]:
    """The file's rows; UserError with the place for one that cannot be."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), skipinitialspace=True)
    columns = [column.strip().lower() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    if "name" not in columns or (unknown := [column for column in columns if column not in COLUMNS]):
        wrong = f"column {unknown[0]!r} is unknown" if "name" in columns else "there is no column 'name'"
        raise UserError(f"{file}:1: {wrong}; the columns are {', '.join(COLUMNS)}, separated by commas")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line in reader:
        place = f"{file}:{reader.line_num}"
        given = {column: (line.get(column) or "").strip() for column in COLUMNS}
        if line.get(None):
            raise UserError(f"{place}: more cells than columns; put quotes around a cell that has a comma")
        if not given["quota"].isdecimal() and given["quota"]:
            raise UserError(f"{place}: field 'quota' {given['quota']!r}: write a number of labels, or nothing")
        before = lines.setdefault(given["name"].casefold(), reader.line_num)
        if before != reader.line_num:
            raise UserError(f"{place}: {given['name']!r} is in line {before} already; remove one of the two")
        fields = read_fields(given["fields"])
        rows.append(Row(place, given["name"], given["role"] or "annotator", int(given["quota"] or 0), fields))
    if not 0 < len(rows) <= MOST:
        raise UserError(f"{file}: {len(rows):,} people; write 1 to {MOST:,}")
    return rows


def invite_all(connection: Connection, rows: list[Row], link: Callable[[str], str]) -> str:
    """Invite them all, or nobody; their links as CSV. `link` makes an address of a token."""
    made = []
    for row in rows:
        try:
            token = make_invite(connection, row.name, row.role)
        except UserError as error:
            raise UserError(f"{row.place}: {error}") from error
        who = known_person(connection, row.name)
        assert who is not None
        if row.quota or row.fields:
            set_allowance(connection, who.id, quota=row.quota, fields=row.fields)
        made.append({"name": who.name, "role": row.role, "link": link(token)})
    return "".join(csv_lines(made))
