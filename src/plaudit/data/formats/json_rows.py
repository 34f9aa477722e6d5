"""Rows of JSON: lines, or the elements of one array. Strict: no key twice, no NaN, no bytes that are not text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plaudit.data.formats.rows import BOM, DAMAGE, MAX_HELD, Row, lines, open_bytes, row_of, shown, text_of
from plaudit.errors import UserError

_CHUNK = 1 << 20
# A whole JSON string, the start of one that the buffer cuts, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[\[\]{}]', re.DOTALL)


def json_lines(path: Path) -> Iterator[Row]:
    """JSON lines. Every line is a row; an empty one is a bad row."""
    for number, line in enumerate(lines(path), start=1):
        if isinstance(line, Row):
            yield line
            continue
        yield json_row(f"{path}:{number}", number, line.removesuffix(b"\n"), ended=line.endswith(b"\n"))


def json_row(place: str, number: int, raw: bytes, *, ended: bool = True) -> Row:
    """The row that `raw` spells; `ended` is False where the file ends without ending the line."""
    return row_of(place, number, raw, lambda: json_object(place, raw, ended))


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


def json_object(place: str, raw: bytes, ended: bool = True) -> dict[str, Any]:
    """The JSON object that `raw` spells; UserError with the place for anything else."""
    if raw.startswith(BOM):
        raise UserError(f"{place}: a byte order mark (BOM) stands inside the file, where two were joined; delete it")
    text = text_of(place, raw.removesuffix(b"\r"))
    if not text.strip():
        raise UserError(f"{place}: the line is empty; delete it or put one JSON object there")
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = "" if ended else "; the file ends in the middle of this line, so it was cut: fetch it again"
        if error.msg == "Extra data" and text[error.pos] == "{":
            cut = "; two objects stand on one line: begin a line for each"
        elif text.startswith("{'"):
            cut = "; so Python prints a dict: write it with json.dumps"
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


def array_rows(path: Path) -> Iterator[Row]:
    """The elements of one JSON array, by their brackets, so that a bad element is one bad row."""
    with open_bytes(path) as handle:
        buffer, damage = _block(handle, _CHUNK)
        start = buffer.index(b"[") + 1
        line, number, closed, buffer = 1 + buffer.count(b"\n", 0, start), 0, False, buffer[start:]
        last_line = line  # of the bracket, then of the element before
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
                    # Elements that share a line with what stands before them are told apart by their number.
                    place = f"{path}:{first_line}" + (f", element {number}" if first_line == last_line else "")
                    yield json_row(place, number, piece.strip())
                    last_line = first_line
            buffer = buffer[at:]
            if len(buffer) > MAX_HELD:
                raise UserError(f"{path}:{line}: more than {MAX_HELD >> 20} MiB without the end of a row; split it")
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


_HOLDERS = ("data", "rows", "examples", "instances", "records", "feedback_data")
_PARTS = ("train", "validation", "valid", "dev", "test")


def object_rows(path: Path) -> tuple[str, Iterator[Row]] | None:
    """What a file is, and its rows: one object that holds them under one of `_HOLDERS`, or objects that are each spread
    over lines; None where it is neither. Such a file is held as a whole."""
    values: list[tuple[int, Any, bytes]] = []
    with open_bytes(path) as handle:
        try:
            text = handle.read(MAX_HELD).decode("utf-8")
            at = _after_space(text, 0)
            while at < len(text):
                value, end = _DECODER.raw_decode(text, at)
                values.append((1 + text.count("\n", 0, at), value, text[at:end].encode()))
                at = _after_space(text, end)
        except (ValueError, RecursionError, *DAMAGE):
            return None
    if len(values) == 1 and isinstance(values[0][1], dict) and (found := _held_rows(path, values[0][1])):
        return found
    if any(b"\n" in raw for _, _, raw in values):
        return "objects over several lines", (
            json_row(f"{path}:{line}", number, raw) for number, (line, _, raw) in enumerate(values, start=1)
        )
    return None


def _held_rows(path: Path, whole: dict[str, Any]) -> tuple[str, Iterator[Row]] | None:
    """The rows under the one key of `_HOLDERS` that has some; UserError where others have rows, too."""
    lists = [key for key, value in whole.items() if _are_rows(value)]
    held = [key for key in lists if key in _HOLDERS]
    if not held and not {*lists} & {*_PARTS}:
        return _column_rows(path, whole)
    if len(lists) > 1 or not held:
        raise UserError(
            f"{path}: rows stand under {', '.join(map(repr, lists))}; put each list into a file of its own, or "
            "all rows into one list with a key 'split'"
        )
    spelt = (json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") for value in whole[held[0]])
    beside = ", ".join(shown(key) for key in whole if key != held[0])
    return f"rows under the key {held[0]!r}" + (f"; not read beside them: {beside}" if beside else ""), (
        json_row(f"{path}:{held[0]}, element {number}", number, raw) for number, raw in enumerate(spelt, start=1)
    )


def _column_rows(path: Path, whole: dict[str, Any]) -> tuple[str, Iterator[Row]] | None:
    """The rows of an object of columns, each a list of values, or an object of them by row number, as pandas writes it
    unless it is told otherwise; None for any other object, as one row with messages."""
    numbers = [_numbers(column) for column in whole.values()]
    if not numbers or numbers[0] is None or any(found != numbers[0] for found in numbers):
        return None
    columns = [column.values() if isinstance(column, dict) else column for column in whole.values()]
    rows = [dict(zip(whole, values, strict=True)) for values in zip(*columns, strict=True)]
    spelt = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows]
    return "an object of columns", (
        json_row(f"{path}:row {number}", number, raw) for number, raw in enumerate(spelt, start=1)
    )


def _numbers(column: Any) -> list[str] | None:
    """The row numbers of a column; None for what is none, such as a list of messages."""
    if isinstance(column, dict):
        return [*column] if column and all(key.isdigit() for key in column) else None
    if not isinstance(column, list) or not column or any(isinstance(value, dict) for value in column):
        return None
    return [str(at) for at in range(len(column))]


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _block(handle: Any, size: int) -> tuple[bytes, str]:
    """(up to `size` bytes, what broke the stream after them). read1 gives what a damaged gzip still holds."""
    pieces: list[bytes] = []
    while size > 0:
        try:
            piece = handle.read1(size)
        except DAMAGE as error:
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
        match = _TOKEN.search(buffer, at)
        if depth == 0:
            # Between tokens of depth 0 a comma ends the element.
            comma = buffer.find(b",", at, match.start() if match else len(buffer))
            if comma >= 0:
                return comma, False
        if match is None or match.group() == b'"':
            return None, False
        token, at = match.group(), match.end()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            if depth == 0 and token == b"]":
                return match.start(), True
            depth = max(0, depth - 1)
