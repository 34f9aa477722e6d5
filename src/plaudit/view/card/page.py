"""A report card as a page of its own."""

from collections.abc import Mapping
from typing import Any

from plaudit.view.card.plots import card_plots
from plaudit.view.card.table import PARTS
from plaudit.view.page import render_page


def card_page(card: Mapping[str, Any]) -> str:
    """A report card, with its model and data, as a page of its own: one file without scripts or anything fetched."""
    return render_page("card.html.j2", parts=PARTS, card=card, plots=card_plots(card), open_mistakes=True)
