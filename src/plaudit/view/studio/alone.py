"""The microscope as one file: `plaudit inspect --html` writes what the studio shows of a reply, by the same scripts.

Nothing is fetched, and the page's policy lets no script run but the one whose hash it names.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plaudit.label.web.shared.render import STATIC as SHARED
from plaudit.view.page import embedded, render_page

STATIC = Path(__file__).parent / "static"
SCRIPTS = (SHARED / "dom.js", SHARED / "numbers.js", STATIC / "microscope.js")
STYLES = (SHARED / "base.css", STATIC / "studio.css")
START = """
const found = JSON.parse(document.getElementById("data").textContent);
magnify(document.getElementById("view"), found, { by: "advantage", token: found.telling });
"""


def reply_page(found: Mapping[str, Any]) -> str:
    """A reply as `as_json` (view/inspect/whole.py) gives it, as HTML."""
    script = "\n".join(_in_one(file) for file in SCRIPTS) + START
    return render_page(
        "microscope.html.j2",
        found=found,
        style=Markup("\n".join(file.read_text(encoding="utf-8") for file in STYLES)),
        data=Markup(embedded(found)),
        script=Markup(script),
        hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _in_one(file: Path) -> str:
    """A module's text for a script that holds them all: a file that is opened from a disk cannot import another."""
    text = re.sub(r"^import .*;\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)
