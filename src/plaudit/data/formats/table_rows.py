"""Rows of tables: CSV and TSV, Parquet, and what `datasets` reads (a folder, a data set of the Hub)."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from plaudit.data.formats.json_rows import json_object
from plaudit.data.formats.rows import HUB, MAX_LINE, SPLITS, Row, is_hub, lines, refuse_bom, row_of, shown, text_of
from plaudit.errors import UserError

# In CSV these columns hold JSON, because a cell cannot hold a list.
_JSON_COLUMNS = ("messages", "conversations", "responses")
_NUMBER_COLUMNS = ("preference_strength",)
# In a table a cell that was left out is empty or null; in these columns that means "not given".
_OPTIONAL = ("id", "kind", "split", "system", "input")


def csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """CSV as RFC 4180 has it: a header, quotes doubled inside quotes, line breaks allowed inside quotes."""
    csv.field_size_limit(MAX_LINE)
    taken: list[bytes] = []
    broken: list[Row] = []

    def text() -> Iterator[str]:
        for line in lines(path):
            if isinstance(line, Row):
                broken.append(line)
                return
            taken.append(line)
            # Bytes that are no UTF-8 become half surrogates, which the row's check below finds.
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(text(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        taken.clear()
        place, cells, problem = f"{path}:{reader.line_num + 1}", [], None
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem = f"{place}: not valid CSV: {error}; quote the field and double the quotes inside it"
        raw = b"".join(taken)
        if header is None:
            header = _header(place, cells, raw, problem)
            continue
        number += 1
        read = partial(_typed_cells, place, header, cells, raw)
        yield row_of(place, number, raw, read) if problem is None else Row(place, number, None, problem, raw)
    yield from broken
    if number == 0 and not broken:
        raise UserError(f"{path}: there is a header but no row; it needs one example a row")


def _header(place: str, names: list[str], raw: bytes, problem: str | None) -> list[str]:
    refuse_bom(place, raw)
    if problem is not None:
        raise UserError(problem)
    _check_cells(place, names, names, raw)
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise UserError(f"{place}: the header has an empty name or one that stands twice: {shown(names)}")
    return names


def _check_cells(place: str, header: list[str], cells: list[str], raw: bytes) -> None:
    if not text_of(place, raw).strip():
        raise UserError(f"{place}: the line is empty; delete it or put one row there")
    if len(cells) != len(header):
        raise UserError(f"{place}: {len(cells)} fields where the header names {len(header)}: {shown(cells)}")


def _typed_cells(place: str, header: list[str], cells: list[str], raw: bytes) -> dict[str, Any]:
    _check_cells(place, header, cells, raw)
    value: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in (name for name in _JSON_COLUMNS if name in value):
        try:
            value[name] = json_object(place, b'{"cell": ' + value[name].encode() + b"}")["cell"]
        except UserError as error:
            raise UserError(f"{place}: column {name!r} must hold JSON: {error}") from error
    for name in (name for name in _NUMBER_COLUMNS if name in value):
        try:
            value[name] = float(value[name])
        except ValueError as error:
            raise UserError(f"{place}: column {name!r} must hold a number: {shown(value[name])}") from error
    return _given(value)


def _given(value: dict[str, Any]) -> dict[str, Any]:
    """A table's row without the optional cells that are empty or null."""
    return {key: cell for key, cell in value.items() if key not in _OPTIONAL or (cell is not None and cell != "")}


def _table_row(place: str, number: int, value: dict[str, Any]) -> Row:
    raw = json.dumps(value, default=str).encode()

    def read() -> dict[str, Any]:
        text_of(place, raw)
        return _given(value)

    return row_of(place, number, raw, read)


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, a thousand at a time; the number in the place is the row's, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield _table_row(f"{path}:{number}", number, value)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}:{number + 1}: cannot be read as Parquet: {reason}; fetch the file again") from error
    if number == 0:
        raise UserError(f"{path}: the file is empty; it needs one example a row")


def dataset_rows(source: str) -> Iterator[Row]:
    """Rows of a folder or Hub data set through `datasets`, streamed; a row without a split takes that of its part."""
    import datasets

    datasets.disable_progress_bars()
    name, _, only = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":") if is_hub(source) else (name, "", "")
    try:
        if not is_hub(source) and any(next(Path(name).glob(at), None) for at in ("state.json", "*/state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config or None, streaming=True)
        parts = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
        if only and only not in parts:
            raise UserError(f"{source}: no split {only!r}; there are {', '.join(parts)}")
        number = 0
        for part, table in [(only, parts[only])] if only else parts.items():
            split = _split_of(source, part)
            for at, value in enumerate(chain(table), start=1):
                number += 1
                value = dict(value)
                if value.get("split") is None:
                    value["split"] = split
                yield _table_row(f"{source}[{part}]:{at}", number, value)
    except UserError:
        raise
    # `datasets` raises what its readers raise, of dozens of classes: all of them mean that the source is unreadable.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: `datasets` cannot read it: {type(error).__name__}: {reason}") from error
    if number == 0:
        raise UserError(f"{source}: the data set is empty; it needs one example a row")


def _split_of(source: str, part: str) -> str:
    """train_sft -> train, dev -> validation; UserError for a part whose use is not plain from its name."""
    first = part.replace("-", "_").split("_")[0]
    first = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}.get(first, first)
    if first not in SPLITS:
        raise UserError(f"{source}: part {part!r} is neither train, validation nor test; add a column 'split'")
    return first
