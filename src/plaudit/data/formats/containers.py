"""Containers: a file, a folder or a Hub data set becomes a stream of rows, each with its place.

JSON lines, a JSON array or object, CSV or TSV, plain text (each also as .gz), Excel, Parquet, a folder or
`hub:OWNER/NAME[:CONFIG][#SPLIT]` through `datasets`. What was recognised beyond the name of the file is added to
`columns.said`. What the rows mean is formats/reader.py's business.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from plaudit.data.formats.columns import OURS, Columns
from plaudit.data.formats.json_rows import array_rows, json_lines, object_rows
from plaudit.data.formats.rows import DAMAGE, HUB, Row, first_bytes, is_hub, is_utf16, open_bytes
from plaudit.data.formats.signatures import refuse_other_kinds
from plaudit.data.formats.spreadsheet import SHEETS, excel_rows, refuse_sheet
from plaudit.data.formats.table_rows import csv_rows, dataset_rows, delimiter_of, parquet_rows, prompt_lines
from plaudit.data.formats.thumbs import LIBRECHAT, librechat_rows
from plaudit.errors import UserError, no_file

_LINES = (".jsonl", ".ndjson")
_JSON = (*_LINES, ".json")


def rows(source: str | Path, columns: Columns | None = None) -> Iterator[Row]:
    """Every row of a source, in order, with our names for its columns. UserError where there is nothing that could be
    read row by row."""
    columns = columns or Columns(source)
    path = Path(source)
    if is_hub(source) or path.is_dir():
        yield from map(columns.renamed, dataset_rows(str(source)))
        return
    if why := no_file(path):
        hub = "" if path.exists() else f"; a data set of the Hub is {HUB}OWNER/NAME"
        raise UserError(f"{path}: {why}{hub}")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix in SHEETS:
        refuse_sheet(path)
    elif suffix in (".xlsx", ".xlsm"):
        yield from excel_rows(path, columns)
        return
    elif suffix == ".parquet":
        yield from map(columns.renamed, parquet_rows(path))
        return
    refuse_other_kinds(path)
    if is_utf16(first_bytes(path, 2)):
        columns.said.append("UTF-16")
    if suffix in (".csv", ".tsv") and not _start(path).startswith((b"{", b"[")):
        yield from csv_rows(path, delimiter_of(path, "\t" if suffix == ".tsv" else ","), columns)
    elif suffix == ".txt" and not _start(path).startswith((b"{", b"[")):
        yield from _text_rows(path, columns)
    else:
        if suffix not in _JSON and (start := _start(path)) and not start.startswith((b"{", b"[")):
            raise UserError(
                f"{path}: a {suffix or 'nameless'} file is not read; rows stand in .csv, .tsv, .xlsx, .jsonl, .json or "
                ".parquet, prompts alone in .txt, a prompt a line"
            )
        yield from map(columns.renamed, _json_rows(path, suffix, columns))


def _start(path: Path) -> bytes:
    """The first 4 KiB without leading white space; nothing of a damaged file."""
    try:
        with open_bytes(path) as handle:
            return bytes(handle.read(4096).lstrip())
    except DAMAGE:
        return b""


def _json_rows(path: Path, suffix: str, columns: Columns) -> Iterator[Row]:
    """The rows of JSON, those of LibreChat gathered from its messages."""
    start = _start(path)
    found = _values(path, suffix, columns, start)
    if LIBRECHAT not in start:
        return found
    columns.said.append("messages of LibreChat that were rated")
    return librechat_rows(path, found)


def _values(path: Path, suffix: str, columns: Columns, start: bytes) -> Iterator[Row]:
    """JSON lines, unless the file is an array, or objects that are no line each."""
    if start.startswith(b"[") and (suffix not in _LINES or not _is_line_of_many(path)):
        if suffix in _LINES:
            columns.said.append("a JSON array")
        return array_rows(path)
    # An object that is one line is looked at as a whole only where it is the only one.
    if start.startswith(b"{") and (start[1:2] in b"\r\n" or _is_only_line(path)) and (found := object_rows(path)):
        columns.said.append(found[0])
        return found[1]
    return json_lines(path)


def _first_lines(path: Path) -> tuple[bytes, bytes]:
    try:
        with open_bytes(path) as handle:
            return handle.readline(), handle.readline()
    except DAMAGE:
        return b"", b""


def _is_only_line(path: Path) -> bool:
    first, second = _first_lines(path)
    return bool(first) and not second.strip()


def _is_line_of_many(path: Path) -> bool:
    """Whether the first line is a whole JSON value and another one follows."""
    first, second = _first_lines(path)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(second.strip())


def _text_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """A table with tabs, which is what Excel calls text, or with what else separates our names; or a prompt a line."""
    first, _ = _first_lines(path)
    delimiter = delimiter_of(path, "\t")
    names = first.decode("utf-8", "replace").strip("\r\n").split(delimiter)
    ours = OURS & {name.strip().strip('"').lower() for name in names}
    if len(names) > 1 and (columns.given or ours) and (delimiter == "\t" or len(ours) > 1 or columns.given):
        return csv_rows(path, delimiter, columns)
    if b"\t" in first.strip():
        raise UserError(
            f"{path}:1: the line has tabs, as the header of a table has, but no column of ours: name them with columns "
            "prompt=THEIRS; of prompts alone, a prompt a line, take the tabs out of the first one"
        )
    columns.said.append("plain text, a prompt a line")
    return prompt_lines(path)
