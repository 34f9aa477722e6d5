"""The words of the pages that annotators see, in every language that wording/LANGUAGE.json is there for.

A new language is a new file with the same keys. A text's {names} are filled in, and one with several forms has them by
the plural categories of its language ("one", "other"), which the browser knows. The admin's page is English, and so
are the answers of the HTTP interface, which is for programs.
"""

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plaudit.errors import UserError

FOLDER = Path(__file__).parents[1] / "pages" / "wording"
ENGLISH = "en"
BROWSER = "browser"
"""The language of a project that leaves it to each browser."""


def languages() -> dict[str, str]:
    """Language tag -> what the language calls itself."""
    return {tag: texts(tag)["language"] for tag in sorted(path.stem for path in FOLDER.glob("*.json"))}


@cache
def texts(language: str) -> dict[str, Any]:
    """Key -> text, or its forms."""
    read = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    assert isinstance(read, dict)
    return read


def say(language: str, key: str, **values: object) -> Markup:
    """The text under a key as HTML, its {names} filled in; values that are no markup are escaped."""
    return Markup(escape(texts(language)[key], quote=False)).format(**values)


def note(key: str) -> str:
    """A word of the pages inside the HTML of somebody's text, which is kept for readers of every language: the page
    puts its own in this place."""
    return f'<span data-say="{key}">{say(ENGLISH, key)}</span>'


def known_language(name: str) -> str:
    """What a project may say of its language; UserError for anything else."""
    if name not in (BROWSER, *languages()):
        raise UserError(f"language {name[:40]!r}: write {BROWSER}, {', '.join(languages())}")
    return name


def language_of(project: str, accepted: str) -> str:
    """The language of a page: the project's, or of those that the browser accepts (RFC 9110, 12.5.4) the one that it
    likes best and there is."""
    if project != BROWSER:
        return project
    there = languages()
    liked: list[tuple[float, str]] = []
    for part in accepted.split(","):
        tag, _, weight = part.partition(";")
        try:
            liked.append((float(weight.strip().removeprefix("q=") or 1), tag.strip().lower().partition("-")[0]))
        except ValueError:
            continue  # no weight that there can be: as if it were not said
    best = sorted((row for row in liked if row[0] > 0 and row[1] in there), key=lambda row: -row[0])
    return best[0][1] if best else ENGLISH
