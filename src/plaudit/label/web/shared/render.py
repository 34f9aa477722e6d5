"""What reaches a browser: replies, prompts and guidelines as HTML that runs nothing, and the pages around them.

text/markdown.py makes the HTML of a text. The pages' own policy (`HEADERS`) forbids inline scripts and styles and every
address but the server's, so that one mistake there is not enough. Nothing here knows of requests: the server's routes
call these functions and send what they return.
"""

import json
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plaudit.label.web.text.markdown import markdown_html
from plaudit.label.web.text.wording import ENGLISH, note, say, texts

PAGES = Path(__file__).parents[1] / "pages"
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
        return f'<p class="aside">{note("text.empty")}</p>'
    return text_html(text) + ("" if ended else f'<p class="aside">{note("text.cut")}</p>')


def page_html(page: str, /, *, up: str = "./", language: str = ENGLISH, **values: Any) -> str:
    """The page `page`: login, invite and join (see entrance/front.py), entered (to), start (projects), or label,
    history and admin (several: are there other projects). What is not in brackets the page's script asks the server
    for. Its addresses are relative, since a proxy may have put the service below a path: `up` leads from the page's own
    address to where the service begins. `language` is that of the page's own words."""
    values = {"several": False, "sign_in": None} | values
    words = {"language": language, "say": partial(say, language)}
    wording = json.dumps({"language": language, "texts": texts(language)}, ensure_ascii=False, separators=(",", ":"))
    template = _environment().get_template(f"{page}.html.j2")
    return template.render(page=page, up=up, wording=wording, **words, **values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(PAGES)
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)
