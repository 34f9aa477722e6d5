"""Pages: the templates in pages/, rendered with autoescape on; replies, prompts and names are hostile input."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plaudit.view.text import interval, number, percent, temperature


def render_page(template: str, **values: Any) -> str:
    """The page `template` (report.html.j2, card.html.j2, inspect.html.j2) as HTML."""
    return pages().get_template(template).render(**values)


@cache
def pages() -> Environment:
    """All templates, with the filters that write numbers."""
    folder = FileSystemLoader(Path(__file__).parent / "pages")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=folder)
    page.filters |= {"number": number, "percent": percent, "interval": interval, "temperature": temperature}
    return page
