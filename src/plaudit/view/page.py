"""Pages: the templates in pages/, rendered with autoescape on; replies, prompts and names are hostile input."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from plaudit.view.text import interval, number, percent, temperature


def render_page(template: str, **values: Any) -> str:
    """The page `template` (report.html.j2, card.html.j2) as HTML."""
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    page.filters |= {"number": number, "percent": percent, "interval": interval, "temperature": temperature}
    return page.get_template(template).render(**values)


def _source(name: str) -> str:
    return files("plaudit.view").joinpath("pages", name).read_text(encoding="utf-8")
