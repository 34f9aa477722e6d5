"""What a file is that its name does not say: known by its first bytes, and refused with what to do about it."""

from pathlib import Path

from plaudit.data.formats.rows import first_bytes
from plaudit.errors import UserError

_SAVE = "open it with the program that made it, save it as CSV UTF-8, and give that file"
_STARTS = (
    (b"\x1f\x8b", "is packed by gzip", "add .gz to its name"),
    (b"PK\x03\x04", "is a workbook or a ZIP archive", f"unpack it, or {_SAVE}"),
    (b"\xd0\xcf\x11\xe0", "is a file of an old Office program (.xls, .doc)", _SAVE),
    (b"%PDF", "is a PDF", "it holds pages, not rows; ask for the table that it was made from"),
    (b"{\\rtf", "is a text with formatting (RTF)", _SAVE),
    (b"PAR1", "is a Parquet file", "give its name the end .parquet"),
    (b"SQLite format 3", "is a database (SQLite)", "export the table as CSV"),
    (b"BZh", "is packed by bzip2", "unpack it"),
    (b"\xfd7zXZ", "is packed by xz", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd", "unpack it"),
    (b"\xff\xfe\0\0", "is text in UTF-32", "save it as UTF-8"),
    (b"\0\0\xfe\xff", "is text in UTF-32", "save it as UTF-8"),
    (b"version https://git-lfs", "is only the pointer of Git LFS to the data", "fetch the data with git lfs pull"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def refuse_other_kinds(path: Path) -> None:
    """UserError where the first bytes are those of something that has no rows of text."""
    start = first_bytes(path, 64)
    for signature, what, fix in _STARTS:
        if start.startswith(signature):
            raise UserError(f"{path}: the file {what}, whatever its name says: {fix}")
    if start.lstrip().lower().startswith(_PAGES):
        page = "often the log-in page of the site that it was downloaded from"
        raise UserError(f"{path}: the file is a web page or XML, {page}; download the data itself, as CSV or JSON")
