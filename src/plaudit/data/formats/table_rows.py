"""Rows of tables: CSV and TSV, Parquet, and what `datasets` reads (a folder, a data set of the Hub)."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from plaudit.data.formats.columns import Columns
from plaudit.data.formats.json_rows import json_object
from plaudit.data.formats.rows import HUB, MAX_LINE, SPLITS, Row, is_hub, lines, row_of, shown, text_of
from plaudit.errors import UserError

# In CSV these columns hold JSON, because a cell cannot hold a list.
_JSON_COLUMNS = ("messages", "conversations", "responses")
_NUMBER_COLUMNS = ("preference_strength", "strength")
# In a table a cell that was left out is empty or null; in these columns that means "not given".
_OPTIONAL = ("id", "kind", "split", "system", "input", "annotator", "strength")
_EXCELS_MOST = 32_767
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d{1,2}\s*")  # a comma before three digits may part thousands

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_NOT_CSV = {
    "new-line character seen": "its lines end in CR alone, as on old Macs; save it once more, as CSV UTF-8",
    "unexpected end of data": "a quotation mark is opened here and never closed; close it, or double one that is text",
}
"""What Python's reader says, and what a person can do about it."""
Line = tuple[str, list[str], bytes, str | None]
"""Place, cells, how it stands in the file, and what is wrong with it."""


def delimiter_of(path: Path, usual: str) -> str:
    """What separates the columns of the header: `usual`, unless another one gives more of them, or Excel's own first
    line `sep=;` names it."""
    first = next((line for line in lines(path) if isinstance(line, bytes)), b"").decode("utf-8", "replace")
    if named := re.match(r"sep=([,;\t|])\s*\Z", first):
        return named[1]
    outside = re.sub('"[^"]*"', "", first)
    return max((usual, *_DELIMITERS), key=outside.count)  # the first of equals


def csv_rows(path: Path, delimiter: str, columns: Columns) -> Iterator[Row]:
    """CSV as RFC 4180 has it: a header, quotes doubled inside quotes, line breaks allowed inside quotes."""
    if path.suffix == ".txt" or delimiter != ("\t" if ".tsv" in path.suffixes else ","):
        columns.said.append(f"{_DELIMITERS[delimiter]}-separated")
    broken: list[Row] = []
    found = 0
    for row in table_rows(path, _csv_lines(path, delimiter, broken), columns):
        found += 1
        yield row
    yield from broken
    if not found and not broken:
        raise UserError(f"{path}: there is a header but no row; it needs one example a row")


def _csv_lines(path: Path, delimiter: str, broken: list[Row]) -> Iterator[Line]:
    csv.field_size_limit(MAX_LINE)
    taken: list[bytes] = []

    def text() -> Iterator[str]:
        for line in lines(path):
            if isinstance(line, Row):
                broken.append(line)
                return
            taken.append(line)
            # Bytes that are no UTF-8 become half surrogates, which the row's check below finds.
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(text(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        place, cells, problem = f"{path}:{reader.line_num + 1}", [], None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            known = next((text for said, text in _NOT_CSV.items() if str(error).startswith(said)), None)
            problem = f"{place}: not valid CSV: {known or f'{error}; quote the field and double the quotes inside it'}"
        raw = b"".join(taken)
        problem = problem or _loose_quote(place, cells, raw) or cut_by_excel(place, cells)
        if problem is not None or reader.line_num != 1 or not re.match(rb"sep=[,;\t|]\s*\Z", raw):
            yield place, cells, raw, problem


def _loose_quote(place: str, cells: list[str], raw: bytes) -> str | None:
    """The problem of a line with a blank before a quotation mark that was to open a cell: read by the rules, the mark
    is text, and a comma inside parts the cell."""
    text = raw.decode("utf-8", "surrogateescape")
    marked = (cell for cell in cells if re.match(r'[ \t]+"', cell))
    loose = next((cell for cell in marked if '"' + cell.replace('"', '""') + '"' not in text), None)
    if loose is None:
        return None
    return f"{place}: a blank stands before the quotation mark that opens a cell, {shown(loose)}; take it out"


def cut_by_excel(place: str, cells: Sequence[str]) -> str | None:
    """The problem of a line with a cell that has just as many characters as Excel keeps of one."""
    if all(len(cell) != _EXCELS_MOST for cell in cells):
        return None
    return (
        f"{place}: a cell has {_EXCELS_MOST:,} characters, which is where Excel cuts: put the whole text there, or "
        "delete the row"
    )


def table_rows(path: Path, table: Iterator[Line], columns: Columns) -> Iterator[Row]:
    """A header, then a row a line. What a spreadsheet leaves empty at its right and at its end is no part of it."""
    header: tuple[str, ...] | None = None
    names, number, empty = list[str](), 0, list[Row]()
    for place, cells, raw, problem in table:
        if header is None:
            names, header = cells, _header(place, cells, raw, problem, columns)
            continue
        number += 1
        if problem is None and not any(cell.strip() for cell in cells):
            what = "row" if len(cells) > 1 else "line"
            empty.append(Row(place, number, None, f"{place}: the {what} is empty; delete it", raw))
            continue
        yield from empty
        empty.clear()
        if problem is None and len(cells) > 1 and cells == names:
            problem = f"{place}: the header stands here again, where two tables were joined; delete the line"
        read = partial(_typed_cells, place, header, cells, raw)
        yield row_of(place, number, raw, read) if problem is None else Row(place, number, None, problem, raw)
    if empty:
        columns.said.append(f"{len(empty)} empty rows at the end left out")


def _header(place: str, cells: list[str], raw: bytes, problem: str | None, columns: Columns) -> tuple[str, ...]:
    if problem is not None:
        raise UserError(problem)
    names = _trimmed(cells, 0)
    _check_cells(place, names, names, raw)
    if len(set(names)) != len(names) or not names or not all(name.strip() for name in names[1:]):
        raise UserError(
            f"{place}: the header has an empty name or one that stands twice: {shown(cells)}; name each column once "
            "(answer_a and answer_b, say), and delete what stands above the header"
        )
    if not names[0].strip():  # what pandas writes unless it is told not to
        columns.said.append("the first column, which has no name and numbers the rows, left out")
    return columns.names(place, tuple(names))


def _trimmed(cells: Sequence[str], least: int) -> Sequence[str]:
    """The cells without the empty ones after the first `least`."""
    used = len(cells)
    while used > least and not cells[used - 1].strip():
        used -= 1
    return cells[:used]


def _check_cells(place: str, header: Sequence[str], cells: Sequence[str], raw: bytes) -> None:
    if not text_of(place, raw).strip():
        raise UserError(f"{place}: the line is empty; delete it or put one row there")
    if len(cells) != len(header):
        more = "put a text with a comma into quotation marks" if len(cells) > len(header) else "fill in what is missing"
        more = "delete what stands above the header" if len(header) == 1 < len(cells) else more
        raise UserError(f"{place}: {len(cells)} fields where the header names {len(header)}: {shown(cells)}; {more}")


def _typed_cells(place: str, header: Sequence[str], cells: Sequence[str], raw: bytes) -> dict[str, Any]:
    cells = _trimmed(cells, len(header))
    _check_cells(place, header, cells, raw)
    value: dict[str, Any] = dict(zip(header, cells, strict=True))
    if not header[0].strip() and (found := value.pop(header[0]).strip()) and not found.isdigit():
        raise UserError(f"{place}: the first column has no name and holds {shown(found)}; name it, or delete it")
    for name in (name for name in _JSON_COLUMNS if name in value):
        try:
            value[name] = json_object(place, b'{"cell": ' + value[name].encode() + b"}")["cell"]
        except UserError as error:
            raise UserError(f"{place}: column {name!r} must hold JSON: {error}") from error
    value = _given(value)
    for name in (name for name in _NUMBER_COLUMNS if name in value):
        cell = value[name].replace(",", ".") if _DECIMAL_COMMA.fullmatch(value[name]) else value[name]
        try:
            value[name] = float(cell)
        except ValueError as error:
            if name not in _OPTIONAL:  # any format may have that one, and only rankings read it
                raise UserError(f"{place}: column {name!r} must hold a number: {shown(cell)}") from error
    return value


def prompt_lines(path: Path) -> Iterator[Row]:
    """Plain text: every line that is not empty is a prompt."""
    number = 0
    for at, line in enumerate(lines(path), start=1):
        if isinstance(line, Row):
            yield line
        elif line.strip():
            number += 1
            place = f"{path}:{at}"
            yield row_of(place, number, line, partial(_prompt_line, place, line))
    if number == 0:
        raise UserError(f"{path}: the file is empty; it needs a prompt a line")


def _prompt_line(place: str, line: bytes) -> dict[str, Any]:
    text = text_of(place, line).strip()
    if place.endswith(":1") and text.lower() in ("prompt", "prompts"):
        raise UserError(f"{place}: {shown(text)} looks like the header of a table of one column; delete it")
    return {"prompt": text}


def _given(value: dict[str, Any]) -> dict[str, Any]:
    """A table's row without the optional cells that are empty or null."""
    return {
        key: cell for key, cell in value.items() if key not in _OPTIONAL or (cell is not None and str(cell).strip())
    }


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
