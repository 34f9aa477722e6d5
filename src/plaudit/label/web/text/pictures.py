"""Pictures in guidelines: kept in the database, shown to whoever is signed in, as `![words](picture:ID)`."""

import re
import time
from html import escape
from pathlib import Path

from sqlalchemy import Connection, insert, select

from plaudit.data.hashes import sha256_bytes
from plaudit.errors import UserError, no_file
from plaudit.label.db.schema import picture
from plaudit.label.web.text.markdown import markdown_html

MOST_BYTES = 1 << 20
_BEGINNINGS = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF.{4}WEBP",
}
"""By its bytes and not by its name. No SVG: that is a page with scripts."""
_KEPT = re.compile(r"!\[([^\]\n]{0,500})\]\(picture:([0-9a-f]{24})\)")
_IN_A_FILE = re.compile(r"!\[([^\]\n]{0,500})\]\((?![a-z]+:)([^)\s]+)\)")
_HOLD, _RELEASE = "\ue000", "\ue001"  # of no language: they stand for a picture while the text is read as Markdown


def keep(connection: Connection, data: bytes, place: str = "the picture") -> str:
    """Its id. UserError for one that is too large, or none."""
    if len(data) > MOST_BYTES:
        raise UserError(f"{place}: {len(data):,} bytes, more than {MOST_BYTES:,}; make it smaller")
    kind = next((kind for kind, begin in _BEGINNINGS.items() if re.match(begin, data, re.DOTALL)), None)
    if kind is None:
        raise UserError(f"{place}: no PNG, JPEG, GIF or WebP; save it as one of these")
    identity = sha256_bytes(data)[:24]
    if connection.execute(select(picture.c.id).where(picture.c.id == identity)).first() is None:
        connection.execute(insert(picture).values(id=identity, type=kind, data=data, created=time.time()))
    return identity


def stored(connection: Connection, identity: str) -> tuple[str, bytes] | None:
    """(type, bytes) of a picture; None where there is none."""
    row = connection.execute(select(picture.c.type, picture.c.data).where(picture.c.id == identity)).first()
    return None if row is None else (row.type, bytes(row.data))


def with_pictures(connection: Connection, text: str, folder: Path) -> str:
    """Guidelines of a file, with the pictures that stand beside it in `folder` kept."""

    def kept(found: re.Match[str]) -> str:
        path = folder / found[2]
        if why := no_file(path):
            raise UserError(f"{path}: {why}; the guidelines show it")
        return f"![{found[1]}](picture:{keep(connection, path.read_bytes(), str(path))})"

    return _IN_A_FILE.sub(kept, text)


def guidelines_html(text: str) -> str:
    """Guidelines as HTML: as every text, but with their own pictures."""
    shown: list[str] = []

    def hold(found: re.Match[str]) -> str:
        shown.append(f'<img src="./picture/{found[2]}" alt="{escape(found[1])}">')
        return f"{_HOLD}{len(shown) - 1}{_RELEASE}"

    html = markdown_html(_KEPT.sub(hold, text.replace(_HOLD, "").replace(_RELEASE, "")), shift=1)
    return re.sub(f"{_HOLD}([0-9]+){_RELEASE}", lambda found: shown[int(found[1])], html)
