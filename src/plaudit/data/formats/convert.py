"""`plaudit data convert`: any file to the canonical JSON lines, row by row. Rows in = rows written + rows set aside."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from plaudit.data.formats.reader import Reader, canonical
from plaudit.errors import UserError


@dataclass(frozen=True)
class Converted:
    """What became of the rows."""

    described: str
    rows: int
    written: int
    quarantined: int
    quarantine: Path


def convert(source: str | Path, to: Path, *, format: str | None = None, quarantine: bool = False) -> Converted:
    """Write `to`, and the bad rows to TO.quarantine.jsonl beside it; without `quarantine` the first bad row stops it.

    Both files appear at the end, whole; a file that is there already is not replaced.
    """
    aside = to.with_name(f"{to.name.removesuffix('.jsonl')}.quarantine.jsonl")
    for path in (to, aside):
        if path.exists():
            raise UserError(f"{path}: the file is there already; move it or choose another name with --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(path.name + ".part") for path in (to, aside)]
    reader = Reader(source, format=format, quarantine=quarantine)
    try:
        with parts[0].open("w", encoding="utf-8") as good, parts[1].open("w", encoding="utf-8") as bad:
            for item in reader:
                if item.record is not None:
                    good.write(json.dumps(canonical(item.record), ensure_ascii=False) + "\n")
                elif item.bad is not None:
                    bad.write(json.dumps(item.bad.as_json()) + "\n")
            for handle in (good, bad):
                handle.flush()
                os.fsync(handle.fileno())
        parts[0].replace(to)
        if reader.bad:
            parts[1].replace(aside)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return Converted(reader.describe(), reader.rows, reader.rows - reader.bad, reader.bad, aside)
