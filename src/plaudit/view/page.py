"""Pages and words: the templates in pages/. Autoescape is on for all but plain text; replies, prompts and names are
hostile input."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plaudit.view.text import interval, number, percent, plain_interval, plain_percent, plain_points, temperature


def render_page(template: str, **values: Any) -> str:
    """The page `template` (report/report.html.j2, card/card.html.j2, microscope.html.j2) as HTML."""
    return _pages().get_template(template).render(**values)


def words(template: str, macro: str, *values: Any) -> str:
    """What one macro of a template says of the values."""
    return str(getattr(_pages().get_template(template).module, macro)(*values)).rstrip()


def embedded(data: Any) -> str:
    """JSON inside a script element: no text can end the element, or begin a comment or another one."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _pages() -> Environment:
    """All templates, with the filters that write numbers."""
    page = Environment(loader=FileSystemLoader(Path(__file__).parent / "pages"), undefined=StrictUndefined)
    page.autoescape = lambda name: not str(name).endswith(".txt.j2")
    page.trim_blocks = page.lstrip_blocks = True
    numbers = (number, percent, interval, temperature, plain_percent, plain_interval, plain_points)
    page.filters |= {write.__name__: write for write in numbers}
    return page
