"""Files in and out, strict: a bad row stops with file:line, the field, the value and the fix, or is set aside.

Reads prompts, demonstrations and rankings, of any format (data/formats.py) in any container (data/read.py);
writes JSON lines, whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plaudit.data.formats.reader import Reader, prompt_of
from plaudit.data.formats.rows import BadRow, json_lines
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError
from plaudit.records import Demonstration, Message, Prompt, Ranking, Record


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line of JSON lines; place is "file:line". An empty or malformed line is an error."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a JSONL file")
    for row in json_lines(path):
        if row.value is None:
            raise UserError(row.problem)
        yield row.place, row.value


def _quiet(line: str) -> None: ...


@dataclass(frozen=True)
class Reading:
    """How files are read: `format` overrides detection, `bad` takes the rows that are set aside (None stops at the
    first), `say` hears what was detected."""

    format: str | None = None
    bad: list[BadRow] | None = None
    say: Callable[[str], None] = field(default=_quiet)

    def records(self, source: Path, wanted: str) -> Iterator[tuple[str, Record]]:
        """(place, record) of every good row."""
        reader = Reader(source, format=self.format, wanted=wanted, quarantine=self.bad is not None)
        for item in reader:
            if item.record is not None:
                yield item.place, item.record
            elif item.bad is not None and self.bad is not None:
                self.bad.append(item.bad)
        self.say(reader.describe())


_STRICT = Reading()


def read_prompts(path: Path, reading: Reading = _STRICT) -> list[Prompt]:
    """Rows `{id, kind, split, prompt}`, or those of any format; ids are unique, and no prompt stands in two splits."""
    prompts: list[Prompt] = []
    place_of_id: dict[str, str] = {}
    first_of: dict[tuple[Message, ...], tuple[str, str]] = {}
    for place, record in reading.records(path, "prompts"):
        prompt = prompt_of(record)
        if prompt.id in place_of_id:
            raise UserError(
                f"{place}: field 'id' {prompt.id!r} is already used in {place_of_id[prompt.id]}; make it unique"
            )
        place_of_id[prompt.id] = place
        split, first = first_of.setdefault(prompt.messages, (prompt.split, place))
        if split != prompt.split:
            raise UserError(
                f"{place}: the prompt {prompt.text[:60]!r} is in split {prompt.split!r} and, in {first}, in {split!r}: "
                "a held-out prompt must not be trained on; keep one of them"
            )
        prompts.append(prompt)
    return prompts


def read_demonstrations(path: Path, reading: Reading = _STRICT) -> DemonstrationTable:
    """Rows `{id, kind, split, prompt, completion}`, or those of any format of demonstrations; split train is trained
    on, the others measure the held-out loss. The rows are on disk, not in memory."""
    records = (record for _, record in reading.records(path, "demonstrations"))
    return DemonstrationTable.of(record for record in records if isinstance(record, Demonstration))


def read_rankings(path: Path, reading: Reading = _STRICT) -> list[Ranking]:
    """Rows `{id, kind, split, prompt, responses: [{text, rank, finished}]}`, or those of any format of preferences:
    a pair is a ranking of two replies."""
    records = [record for _, record in reading.records(path, "rankings")]
    return [record for record in records if isinstance(record, Ranking)]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
