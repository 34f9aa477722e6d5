"""One reply, token by token, as a page of its own."""

from plaudit.view.inspect.tokens import Inspection, TokenRow
from plaudit.view.page import render_page


def inspection_page(found: Inspection) -> str:
    """One reply, token by token, as a page of its own; a token's colour is the stronger, the larger its advantage."""
    largest = max(abs(row.advantage) for row in found.rows) or 1.0

    def strength(row: TokenRow) -> int:
        return round(8 + 52 * abs(row.advantage) / largest)

    return render_page("inspect.html.j2", found=found, strength=strength)
