"""Containers: a file, a folder or a Hub data set becomes a stream of rows, each with its place.

JSON lines, a JSON array, CSV or TSV (each also as .gz), Parquet, a folder or `hub:OWNER/NAME[:CONFIG][#SPLIT]` through
`datasets`. What the rows mean is formats/reader.py's business.
"""

from collections.abc import Iterator
from pathlib import Path

from plaudit.data.formats.json_rows import array_rows, json_lines
from plaudit.data.formats.rows import BOM, DAMAGE, HUB, Row, is_hub, open_bytes
from plaudit.data.formats.table_rows import csv_rows, dataset_rows, parquet_rows
from plaudit.errors import UserError, no_file


def rows(source: str | Path) -> Iterator[Row]:
    """Every row of a source, in order. UserError where there is nothing that could be read row by row."""
    path = Path(source)
    if is_hub(source) or path.is_dir():
        yield from dataset_rows(str(source))
        return
    if why := no_file(path):
        hub = "" if path.exists() else f"; a data set of the Hub is {HUB}OWNER/NAME"
        raise UserError(f"{path}: {why}{hub}")
    suffix = path.with_suffix("").suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        yield from parquet_rows(path)
    elif suffix in (".csv", ".tsv"):
        yield from csv_rows(path, "\t" if suffix == ".tsv" else ",")
    elif suffix not in (".jsonl", ".ndjson") and _begins_with_bracket(path):
        yield from array_rows(path)
    else:
        yield from json_lines(path)


def _begins_with_bracket(path: Path) -> bool:
    try:
        with open_bytes(path) as handle:
            return handle.read(4096).removeprefix(BOM).lstrip()[:1] == b"["
    except DAMAGE:
        return False
