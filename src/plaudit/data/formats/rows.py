"""A row as it stands in a file, with its place; how bytes become lines, and lines text. Nothing is held.

A byte order mark at the start of a file tells its encoding and is no part of its first row. UTF-16, which Excel writes
as "Unicode text", becomes UTF-8; such a file is held as a whole. A row that cannot be read comes with its problem and
its bytes, so that the caller can stop at it or set it aside; it is never left out.
"""

import gzip
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from plaudit.errors import UserError

MAX_LINE = 16 << 20
"""Longest row in bytes; a longer line is a damaged file (or a JSON array that is named .jsonl), not an example."""
MAX_HELD = 512 << 20
BOM = b"\xef\xbb\xbf"
DAMAGE = (OSError, EOFError, zlib.error)
"""What a file that is damaged, or gone while it is read, raises."""
SPLITS = ("train", "validation", "test")
HUB = "hub:"


class Row(NamedTuple):
    """One row as it stands: `value`, or the `problem` that made it unreadable; `raw` gives it back."""

    place: str
    number: int
    value: dict[str, Any] | None
    problem: str | None
    raw: bytes

    def as_json(self) -> dict[str, str | None]:
        """A line of a quarantine file, of a row that was set aside; bytes that are no UTF-8 are kept in hex."""
        try:
            return {"place": self.place, "problem": self.problem, "raw": self.raw.decode("utf-8")}
        except UnicodeDecodeError:
            return {"place": self.place, "problem": self.problem, "raw_hex": self.raw.hex()}


def row_of(place: str, number: int, raw: bytes, read: Callable[[], dict[str, Any]]) -> Row:
    """The row that `read` gives, or the UserError that stops it."""
    try:
        return Row(place, number, read(), None, raw)
    except UserError as error:
        return Row(place, number, None, str(error), raw)


def shown(value: object, most: int = 80) -> str:
    """A value for an error message: its repr, cut."""
    # Cut before repr as well as after it: the value may be a reply of megabytes.
    text = repr(value[: 2 * most]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= most else text[:most] + "…"


def is_hub(source: str | Path) -> bool:
    return str(source).startswith(HUB)


def open_bytes(path: Path) -> Any:
    """A file's bytes as UTF-8 without byte order mark, unpacked where it is a .gz."""
    start, handle = first_bytes(path, 3), _open(path)
    if start == BOM:
        handle.read(len(BOM))
    elif is_utf16(start):
        with handle:
            try:
                return BytesIO(handle.read(MAX_HELD).decode("utf-16").encode())
            except (UnicodeError, *DAMAGE) as error:
                raise UserError(
                    f"{path}: cannot be read as UTF-16, which its first bytes announce: {error}; save it as UTF-8"
                ) from error
    return handle


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def first_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file as they stand there; none of a damaged one, which whoever reads it will find."""
    try:
        with _open(path) as handle:
            start: bytes = handle.read(most)
            return start
    except DAMAGE:
        return b""


def is_utf16(start: bytes) -> bool:
    return start.startswith((BOM_UTF16_LE, BOM_UTF16_BE))


def lines(path: Path) -> Iterator[bytes | Row]:
    """Lines with their ends; where the stream breaks, one last Row that says so."""
    number = 0
    with open_bytes(path) as handle:
        try:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                pieces = [line]
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    pieces.append(line := handle.readline(MAX_LINE + 1))
                    if sum(map(len, pieces)) > MAX_HELD:
                        raise UserError(f"{path}:{number}: one line of more than {MAX_HELD >> 20} MiB; split it")
                yield b"".join(pieces)
        except DAMAGE as error:
            problem = f"{path}: cannot be read beyond line {number}: {error}; fetch the file again"
            yield Row(f"{path}:{number + 1}", number + 1, None, problem, b"")
            return
    if number == 0:
        raise UserError(f"{path}: the file is empty; it needs a row an example, and in a table a header above them")


def text_of(place: str, raw: bytes) -> str:
    """The text of a row; UserError where it is too long or its bytes are none."""
    if len(raw) > MAX_LINE:
        raise UserError(f"{place}: the row has {len(raw):,} bytes, more than {MAX_LINE:,}; split or shorten it")
    if b"\0" in raw:
        raise UserError(f"{place}: NUL byte at column {raw.index(0) + 1}; the file is damaged or not UTF-8 text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: cannot be read as UTF-8: {error}; save the file as UTF-8 (in Excel: Save as, CSV UTF-8)"
        ) from error
