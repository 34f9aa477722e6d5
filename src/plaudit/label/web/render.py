"""What reaches a browser: replies, prompts and guidelines as HTML that runs nothing, and the pages around them.

A text is hostile input. It is read as Markdown in which raw HTML is text, and what comes out goes through an
allow-list sanitiser: no attribute but a link's address, no picture, no style, no class, no id. The pages' own policy
(`HEADERS`) forbids inline scripts and styles and every address but the server's, so that one mistake here is not
enough. Nothing here knows of requests: the server's routes call these functions and send what they return.
"""

from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nh3
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token

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

LONGEST_MARKDOWN = 50_000
"""Characters: a longer text is shown as it is. Markdown's worst cases grow faster than the text does."""

TAGS = frozenset(
    {
        *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    }
)
SCHEMES = frozenset({"http", "https", "mailto"})
HEADING_SHIFT = 3  # a reply's own "# Title" stands below the page's headings, or it would upset their order


def markdown_html(text: str) -> str:
    """`text` as HTML: raw HTML in it stays text, pictures become words, links are http(s) or mail."""
    if len(text) > LONGEST_MARKDOWN:
        return f"<pre>{escape(text)}</pre>"
    tokens = _markdown().parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + HEADING_SHIFT)}"
    html = _markdown().renderer.render(tokens, _markdown().options, {})
    return nh3.clean(
        html,
        tags=set(TAGS),
        attributes={"*": set(), "a": {"href"}, "ol": {"start"}},  # "*": lang and title would be let through
        url_schemes=set(SCHEMES),
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def reply_html(text: str, ended: bool = True) -> str:
    """A reply twice: rendered, and as the characters it is made of (hidden until the page is asked for them).

    `ended` is False when the length limit cut the reply; the page says so, because people judge a cut reply
    differently when they know.
    """
    if not text.strip():
        return '<div class="rendered"><p class="aside">(empty reply)</p></div>'
    cut = "" if ended else '<p class="aside">(cut by the length limit)</p>'
    return f'<div class="rendered">{markdown_html(text)}{cut}</div><pre class="plain" hidden>{escape(text)}</pre>'


def page_html(page: str, /, **values: Any) -> str:
    """The page `page`: login (project, csrf, name, error), invite (project, csrf, token, name, error), label, history,
    or admin. Whatever is not in brackets the page's script asks the server for."""
    return _environment().get_template(f"{page}.html.j2").render(page=page, **values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(PAGES)
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)


@cache
def _markdown() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    reader.add_render_rule("image", _picture_in_words)
    return reader


def _picture_in_words(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    """A picture is never fetched: its address would tell another server who is reading, and when."""
    token = tokens[index]
    return f"<em>[picture, not loaded: {escape(token.content)} {escape(str(token.attrs.get('src', '')))}]</em>"
