"""Pages: the templates beside this file, rendered with autoescape on; replies, prompts and names are hostile input."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from plaudit.run.card_table import PARTS, temperature
from plaudit.stages.card_plots import card_plots
from plaudit.stages.inspect import Inspection, TokenRow
from plaudit.stages.plots import number, percent


def render_page(template: str, **values: Any) -> str:
    """The page `template` (report.html.j2, card.html.j2) as HTML."""
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    page.filters |= {"number": number, "percent": percent, "interval": interval, "temperature": temperature}
    return page.get_template(template).render(parts=PARTS, **values)


def _source(name: str) -> str:
    return files("plaudit.stages").joinpath(name).read_text(encoding="utf-8")


def card_page(card: Mapping[str, Any]) -> str:
    """A report card, with its model and data, as a page of its own: one file without scripts or anything fetched."""
    return render_page("card.html.j2", card=card, plots=card_plots(card), open_mistakes=True)


def inspection_page(found: Inspection) -> str:
    """One reply, token by token, as a page of its own; a token's colour is the stronger, the larger its advantage."""
    largest = max(abs(row.advantage) for row in found.rows) or 1.0

    def strength(row: TokenRow) -> int:
        return round(8 + 52 * abs(row.advantage) / largest)

    return render_page("inspect.html.j2", found=found, strength=strength)


def interval(ends: Sequence[float] | None, digits: int = 2, *, share: bool = False) -> str:
    """'0.31 to 0.52', ready to stand after a number."""
    if ends is None:
        return "–"
    low, high = ends
    return f"{number(100 * low, 1)} to {percent(high)}" if share else f"{number(low, digits)} to {number(high, digits)}"
