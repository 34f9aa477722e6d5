"""What reaches a browser: replies, prompts and guidelines as HTML that runs nothing, and the pages around them.

text/markdown.py makes the HTML of a text. The pages' own policy (`HEADERS`) forbids inline scripts and styles and every
address but the server's, so that one mistake there is not enough. Nothing here knows of requests: the server's routes
call these functions and send what they return.
"""

from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plaudit.label.web.text.markdown import markdown_html

PAGES = Path(__file__).parent / "pages"
STATIC = PAGES / "static"
"""Scripts and style sheets: served under /static/ as they are."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": browsers would send "Origin: null" with a form, as a stranger's page does.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""For every page and answer of the server; static files may be kept by the browser instead."""


def text_html(text: str) -> str:
    """A text twice: rendered, and as the characters it is made of. The page shows one of them."""
    return f'<div class="rendered">{markdown_html(text)}</div><pre class="plain" dir="auto" hidden>{escape(text)}</pre>'


def reply_html(text: str, ended: bool = True) -> str:
    """A reply, both ways. `ended` is False when the length limit cut it; the page says so, because people judge a cut
    reply differently when they know."""
    if not text.strip():
        return '<p class="aside">(empty reply)</p>'
    return text_html(text) + ("" if ended else '<p class="aside">(cut by the length limit)</p>')


def page_html(page: str, /, **values: Any) -> str:
    """The page `page`: login (project, csrf, name, error), invite (project, csrf, token, name, error), label, history,
    or admin. Whatever is not in brackets the page's script asks the server for."""
    return _environment().get_template(f"{page}.html.j2").render(page=page, **values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(PAGES)
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)
