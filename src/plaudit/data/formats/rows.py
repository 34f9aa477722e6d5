"""Containers: a file, a folder or a Hub data set becomes a stream of rows, each with its place. Nothing is held.

JSON lines, a JSON array, CSV or TSV (each also as .gz), Parquet, a folder or `hub:OWNER/NAME[:CONFIG][#SPLIT]` through
`datasets`. A row that cannot be read comes with its problem and its bytes, so that the caller can stop at it or set it
aside; it is never left out. What the rows mean is data/formats.py.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from plaudit.errors import UserError

MAX_LINE = 16 << 20
"""Longest row in bytes; a longer line is a damaged file (or a JSON array that is named .jsonl), not an example."""
_MAX_HELD = 512 << 20
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
SPLITS = ("train", "validation", "test")
HUB = "hub:"
# In CSV these columns hold JSON, because a cell cannot hold a list.
_JSON_COLUMNS = ("messages", "conversations", "responses")
_NUMBER_COLUMNS = ("preference_strength",)
# In a table a cell that was left out is empty or null; in these columns that means "not given".
_OPTIONAL = ("id", "kind", "split", "system", "input")
# A whole JSON string, the start of one that the buffer cuts, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[\[\]{}]', re.DOTALL)


class Row(NamedTuple):
    """One row as it stands: `value`, or the `problem` that made it unreadable; `raw` gives it back."""

    place: str
    number: int
    value: dict[str, Any] | None
    problem: str | None
    raw: bytes


class BadRow(NamedTuple):
    """A row that was set aside: where it stood, what is wrong with it, and its bytes."""

    place: str
    problem: str
    raw: bytes

    def as_json(self) -> dict[str, str]:
        """A line of a quarantine file; bytes that are no UTF-8 are kept in hex."""
        try:
            return {"place": self.place, "problem": self.problem, "raw": self.raw.decode("utf-8")}
        except UnicodeDecodeError:
            return {"place": self.place, "problem": self.problem, "raw_hex": self.raw.hex()}


def shown(value: object, most: int = 80) -> str:
    """A value for an error message: its repr, cut."""
    # Cut before repr as well as after it: the value may be a reply of megabytes.
    text = repr(value[: 2 * most]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= most else text[:most] + "…"


def is_hub(source: str | Path) -> bool:
    return str(source).startswith(HUB)


def rows(source: str | Path) -> Iterator[Row]:
    """Every row of a source, in order. UserError where there is nothing that could be read row by row."""
    if is_hub(source):
        yield from _dataset_rows(str(source))
        return
    path = Path(source)
    if path.is_dir():
        yield from _dataset_rows(str(path))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a data file, a folder, or {HUB}OWNER/NAME")
    suffix = path.with_suffix("").suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    elif suffix not in (".jsonl", ".ndjson") and _begins_with_bracket(path):
        yield from _array_rows(path)
    else:
        yield from json_lines(path)


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


_DAMAGE = (OSError, EOFError, zlib.error)


def _begins_with_bracket(path: Path) -> bool:
    try:
        with _open(path) as handle:
            return handle.read(4096).removeprefix(_BOM).lstrip()[:1] == b"["
    except _DAMAGE:
        return False


def _lines(path: Path) -> Iterator[bytes | Row]:
    """Lines with their ends; where the stream breaks, one last Row that says so."""
    number = 0
    with _open(path) as handle:
        try:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                pieces = [line]
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    pieces.append(line := handle.readline(MAX_LINE + 1))
                    if sum(map(len, pieces)) > _MAX_HELD:
                        raise UserError(f"{path}:{number}: one line of more than {_MAX_HELD >> 20} MiB; split it")
                yield b"".join(pieces)
        except _DAMAGE as error:
            problem = f"{path}: cannot be read beyond line {number}: {error}; fetch the file again"
            yield Row(f"{path}:{number + 1}", number + 1, None, problem, b"")
            return
    if number == 0:
        raise UserError(f"{path}: the file is empty; it needs one JSON object a line")


def json_lines(path: Path) -> Iterator[Row]:
    """JSON lines. Every line is a row; an empty one is a bad row."""
    for number, line in enumerate(_lines(path), start=1):
        if isinstance(line, Row):
            yield line
            continue
        place = f"{path}:{number}"
        ended = line.endswith(b"\n")
        yield _json_row(place, number, line[:-1] if ended else line, ended=ended)


def _json_row(place: str, number: int, raw: bytes, *, ended: bool = True) -> Row:
    try:
        return Row(place, number, _object(place, raw, ended), None, raw)
    except UserError as error:
        return Row(place, number, None, str(error), raw)


class _NotStrict(ValueError):
    """JSON that Python's reader takes and we do not."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise _NotStrict(f"key {shown(twice)} stands twice in one object; keep one")
    return made


def _no_constant(name: str) -> float:
    raise _NotStrict(f"{name} is not a JSON value; write a number or leave the key out")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _object(place: str, raw: bytes, ended: bool) -> dict[str, Any]:
    """The JSON object that `raw` spells; UserError with the place for anything else."""
    if len(raw) > MAX_LINE:
        raise UserError(f"{place}: the line has {len(raw):,} bytes, more than {MAX_LINE:,}; split or shorten it")
    if raw.startswith(_BOM):
        raise UserError(f"{place}: the file begins with a byte order mark (BOM); save it as UTF-8 without BOM")
    if raw.endswith(b"\r") and raw.strip():
        raise UserError(f"{place}: the line ends in CRLF (\\r\\n); convert the file to Unix line ends, \\n")
    if b"\0" in raw:
        raise UserError(f"{place}: NUL byte at column {raw.index(0) + 1}; the file is damaged or not UTF-8 text")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: cannot be read as UTF-8: {error}; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{place}: the line is empty; delete it or put one JSON object there")
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = "" if ended else "; the file ends in the middle of this line, so it was cut: fetch it again"
        raise UserError(
            f"{place}: not valid JSON at column {error.colno}: {error.msg} in {shown(text[:60])}{cut}"
        ) from error
    except _NotStrict as error:
        raise UserError(f"{place}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: JSON that cannot be held: {error}; shorten it: {shown(text[:60])}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, found {type(row).__name__} {shown(text[:60])}")
    return row


def _array_rows(path: Path) -> Iterator[Row]:
    """The elements of one JSON array, by their brackets, so that a bad element is one bad row."""
    with _open(path) as handle:
        buffer, damage = _block(handle, _CHUNK)
        if buffer.startswith(_BOM):
            raise UserError(f"{path}:1: the file begins with a byte order mark (BOM); save it as UTF-8 without BOM")
        start = buffer.index(b"[") + 1
        line, number, closed, buffer = 1 + buffer.count(b"\n", 0, start), 0, False, buffer[start:]
        while True:
            at = 0
            while not closed:
                end, at_close = _element(buffer, at)
                if end is None:
                    break
                piece = buffer[at:end]
                first_line = line + _leading_lines(piece)
                line += piece.count(b"\n")
                at, closed = end + 1, at_close
                if piece.strip() or not (at_close and number == 0):
                    number += 1
                    yield _json_row(f"{path}:{first_line}", number, piece.strip())
            buffer = buffer[at:]
            if len(buffer) > _MAX_HELD:
                raise UserError(f"{path}:{line}: more than {_MAX_HELD >> 20} MiB without the end of a row; split it")
            # Reading doubles what is held, so that a long element is not searched again for every block.
            block, damage = (b"", damage) if damage else _block(handle, max(_CHUNK, len(buffer)))
            if not block:
                break
            buffer += block
    if not closed or buffer.strip() or damage:
        said = "text after the closing bracket" if closed and not damage else f"the JSON array is cut{damage}"
        place = f"{path}:{line + _leading_lines(buffer)}"
        yield Row(
            place, number + 1, None, f"{place}: {said}; fetch the file again: {shown(buffer.strip()[:60])}", buffer
        )
    elif number == 0:
        raise UserError(f"{path}: the array is empty; it needs one JSON object a row")


def _block(handle: Any, size: int) -> tuple[bytes, str]:
    """(up to `size` bytes, what broke the stream after them). read1 gives what a damaged gzip still holds."""
    pieces: list[bytes] = []
    while size > 0:
        try:
            piece = handle.read1(size)
        except _DAMAGE as error:
            return b"".join(pieces), f": {error}"
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces), ""


def _leading_lines(piece: bytes) -> int:
    return piece.count(b"\n", 0, len(piece) - len(piece.lstrip()))


def _element(buffer: bytes, start: int) -> tuple[int | None, bool]:
    """(index of the comma or bracket that ends the element, whether it is the array's end); None: not in the buffer."""
    depth, at = 0, start
    while True:
        if depth == 0:
            # Between tokens of depth 0 a comma ends the element.
            match = _TOKEN.search(buffer, at)
            comma = buffer.find(b",", at, match.start() if match else len(buffer))
            if comma >= 0:
                return comma, False
        else:
            match = _TOKEN.search(buffer, at)
        if match is None or match.group() == b'"':
            return None, False
        token, at = match.group(), match.end()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            if depth == 0 and token == b"]":
                return match.start(), True
            depth = max(0, depth - 1)


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """CSV as RFC 4180 has it: a header, quotes doubled inside quotes, line breaks allowed inside quotes."""
    csv.field_size_limit(MAX_LINE)
    taken: list[bytes] = []
    broken: list[Row] = []

    def text() -> Iterator[str]:
        for line in _lines(path):
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
        place = f"{path}:{reader.line_num + 1}"
        problem, record = None, []
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem = f"{place}: not valid CSV: {error}; quote the field and double the quotes inside it"
        raw = b"".join(taken)
        if header is None:
            header = _header(place, record, raw, problem)
            continue
        number += 1
        if problem is None:
            problem = _csv_problem(place, header, record, raw)
        value = None if problem else dict(zip(header, record, strict=True))
        yield _typed_cells(place, number, value, raw) if value is not None else Row(place, number, None, problem, raw)
    yield from broken
    if number == 0 and not broken:
        raise UserError(f"{path}: there is a header but no row; it needs one example a row")


def _header(place: str, record: list[str], raw: bytes, problem: str | None) -> list[str]:
    if raw.startswith(_BOM):
        raise UserError(f"{place}: the file begins with a byte order mark (BOM); save it as UTF-8 without BOM")
    problem = problem or _csv_problem(place, record, record, raw)
    if problem is None and (len(set(record)) != len(record) or not all(name.strip() for name in record)):
        problem = f"{place}: the header has an empty name or one that stands twice: {shown(record)}"
    if problem:
        raise UserError(problem)
    return record


def _csv_problem(place: str, header: Sequence[str], record: Sequence[str], raw: bytes) -> str | None:
    if len(raw) > MAX_LINE:
        return f"{place}: the row has {len(raw):,} bytes, more than {MAX_LINE:,}; split or shorten it"
    if not raw.strip():
        return f"{place}: the line is empty; delete it or put one row there"
    if b"\0" in raw:
        return f"{place}: NUL byte; the file is damaged or not UTF-8 text"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{place}: cannot be read as UTF-8: {error}; save the file as UTF-8"
    if len(record) != len(header):
        return f"{place}: {len(record)} fields where the header names {len(header)}: {shown(record)}"
    return None


def _typed_cells(place: str, number: int, value: dict[str, Any], raw: bytes) -> Row:
    for name in _JSON_COLUMNS:
        if name in value:
            cell = _json_row(place, number, b'{"cell": ' + value[name].encode() + b"}")
            if cell.value is None:
                return Row(place, number, None, f"{place}: column {name!r} must hold JSON: {cell.problem}", raw)
            value[name] = cell.value["cell"]
    for name in _NUMBER_COLUMNS:
        try:
            value |= {name: float(value[name])} if name in value else {}
        except ValueError:
            return Row(place, number, None, f"{place}: column {name!r} must hold a number: {shown(value[name])}", raw)
    return Row(place, number, _given(value), None, raw)


def _given(value: dict[str, Any]) -> dict[str, Any]:
    """A table's row without the optional cells that are empty or null."""
    return {key: cell for key, cell in value.items() if key not in _OPTIONAL or (cell is not None and cell != "")}


def _table_row(place: str, number: int, value: dict[str, Any]) -> Row:
    raw = json.dumps(value, default=str).encode()
    if len(raw) > MAX_LINE:
        return Row(place, number, None, f"{place}: the row has {len(raw):,} bytes, more than {MAX_LINE:,}", raw)
    return Row(place, number, _given(value), None, raw)


def _parquet_rows(path: Path) -> Iterator[Row]:
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


def _dataset_rows(source: str) -> Iterator[Row]:
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
