"""`plaudit data convert`: any file to the canonical JSON lines, row by row. Rows in = rows written + rows set aside."""

import json
from contextlib import ExitStack
from pathlib import Path

from plaudit.data.files import whole_file
from plaudit.data.formats.reader import Reader, canonical
from plaudit.errors import UserError


def convert(
    source: str | Path, to: Path, *, format: str | None = None, quarantine: bool = False
) -> tuple[Reader, Path]:
    """Write `to`, and the bad rows to TO.quarantine.jsonl beside it; without `quarantine` the first bad row stops it.
    Returns the reader, which counted the rows, and the path of the bad ones.

    Both files appear at the end, whole; a file that is there already is not replaced.
    """
    aside = to.with_name(f"{to.name.removesuffix('.jsonl')}.quarantine.jsonl")
    for path in (to, aside):
        if path.exists():
            raise UserError(f"{path}: the file is there already; move it or choose another name with --to")
    reader = Reader(source, format=format, quarantine=quarantine)
    with ExitStack() as opened:
        good, bad = opened.enter_context(whole_file(to)), None
        for row, record in reader:
            if record is not None:
                good.write(json.dumps(canonical(record), ensure_ascii=False).encode() + b"\n")
            else:
                bad = bad or opened.enter_context(whole_file(aside))
                bad.write(json.dumps(row.as_json()).encode() + b"\n")
    return reader, aside
