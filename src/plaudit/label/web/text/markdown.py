"""A text as HTML: read as Markdown, but nothing of it gets lost, and nothing of it runs.

Who judges replies must see what the model wrote. So where CommonMark drops characters, or takes them for marks that
they are not, this reader differs from it:

- maths (`\\(x\\)`, `\\[x\\]`, `$x$`, `$$x$$`, `\\begin{..}`) is kept as its source, which maths.js typesets;
- `*` and `_` inside words and formulas (2*3*4, a[i]*b[j], __init__) are those characters;
- a backslash, an entity (&lt;) and a link's definition stay, unless what follows the backslash would be a mark;
- indentation and runs of blanks stay; a list keeps its numbers, and `5)` its bracket.

A text is hostile input. Raw HTML in it is text, and what comes out goes through an allow-list sanitiser: no attribute
but a link's address and what is named here, no picture, no style, no id.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

from plaudit.label.web.text.code import CLASSES, coloured
from plaudit.label.web.text.wording import note

LONGEST_MARKDOWN = 50_000
"""Characters: a longer text is shown as it is. Markdown's worst cases grow faster than the text does."""

TAGS = frozenset(
    {
        *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    }
)
SCHEMES = frozenset({"http", "https", "mailto"})
HEADING_SHIFT = 3  # a reply's own "# Title" stands below the page's headings, or it would upset their order
_BLOCKS = ("p", "h2", "h3", "h4", "h5", "h6", "li", "blockquote", "th", "td")
_ATTRIBUTES = {"*": set[str](), "a": {"href"}, "ol": {"start"}, "li": {"value"}}
_MATHS = re.compile(
    r"\\\((?P<a>.{1,2000}?)\\\)|\\\[(?P<b>.{1,2000}?)\\\]|\$\$(?P<c>[^$]{1,2000})\$\$"
    r"|\\begin\{(?P<name>[a-z]+\*?)\}.{1,2000}?\\end\{(?P=name)\}"
    r"|\$(?P<d>(?!\s)[^$\n]{1,500}?(?<![\s\\]))\$(?!\d)",
    flags=re.DOTALL,
)
_MATHS_BLOCK = {r"\[": r"\]", "$$": "$$"}
_ENVIRONMENT = re.compile(r"\\begin(\{[a-z]+\*?\})")
_MOST_LINES = 100  # of a formula, so that many beginnings without an end stay cheap
_NAME = re.compile(r"__\w+?__(?!\w)")
_MARKS = frozenset("*_`~#>|-+.!")
"""What a backslash takes the meaning from; before anything else it is a backslash."""
_BLANK = "\u00a0"


def markdown_html(text: str, shift: int = HEADING_SHIFT) -> str:
    """`text` as HTML: raw HTML in it stays text, pictures become words, links are http(s) or mail. `shift`: how far its
    headings stand below the page's."""
    if len(text) > LONGEST_MARKDOWN:
        return f'<pre class="plain">{escape(text)}</pre>'
    tokens = _reader().parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + shift)}"
        if token.nesting == 1 and token.tag in _BLOCKS:
            token.attrSet("dir", "auto")  # a Persian paragraph in an English reply runs its own way
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", token.info)  # the number that was written, not the next one
        if token.type == "ordered_list_open" and token.markup == ")":
            token.attrSet("class", "bracket")
    html = _reader().renderer.render(tokens, _reader().options, {})
    return nh3.clean(
        html,
        tags=set(TAGS),
        attributes=_ATTRIBUTES,  # "*" is empty: lang and title would be let through
        tag_attribute_values={tag: {"dir": {"auto"}} for tag in _BLOCKS} | {"span": {"data-say": {"text.picture"}}},
        allowed_classes={
            "code": {"maths", "display"},
            "pre": {"plain"},
            "ol": {"bracket"},
            "span": set(CLASSES),
        },
        url_schemes=set(SCHEMES),
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@cache
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True})
    reader.enable(["table", "strikethrough"]).disable(["reference", "entity"])
    reader.add_render_rule("image", _picture_in_words)
    reader.add_render_rule("maths", _maths_as_source)
    reader.add_render_rule("fence", _code)
    reader.block.ruler.before("code", "maths", _maths_block, {"alt": ["paragraph", "list", "blockquote"]})
    reader.inline.ruler.before("escape", "maths", _maths_inline)
    reader.inline.ruler.at("escape", _backslash)
    reader.inline.ruler.at("newline", _line_break)
    reader.inline.ruler.at("emphasis", _emphasis)
    reader.core.ruler.before("inline", "indents", _indents)
    reader.core.ruler.push("empty links", _empty_links)
    reader.core.ruler.push("blanks", _blanks)
    return reader


# --- maths ---


def _maths_inline(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "\\$":
        return False
    found = _MATHS.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        token = state.push("maths", "code", 0)
        token.content, token.markup = found[0], "" if found["a"] or found["d"] else "display"
    state.pos = found.end()
    return True


def _maths_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula of its own lines: what stands in it (=, -, >) is no mark of Markdown's."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    environment = _ENVIRONMENT.match(first)
    close = f"\\end{environment[1]}" if environment else _MATHS_BLOCK.get(first[:2])
    if close is None:
        return False
    for line in range(start, min(end, start + _MOST_LINES)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        if not text.endswith(close) or (line == start and len(text) < 5):
            continue
        if not silent:
            token = state.push("maths", "code", 0)
            token.content = state.getLines(start, line + 1, state.blkIndent, False).strip()
            token.markup, token.block, token.map = "display", True, [start, line + 1]
            state.line = line + 1
        return True
    return False


def _maths_as_source(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    token = tokens[index]
    code = f'<code class="{f"maths {token.markup}".strip()}">{escape(token.content)}</code>'
    return f"<p>{code}</p>\n" if token.block else code


def _code(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    language = tokens[index].info.strip().split(maxsplit=1)[:1]
    return f"<pre><code>{coloured(tokens[index].content, *language)}</code></pre>\n"


# --- marks that are none ---


def _backslash(state: StateInline, silent: bool) -> bool:
    """Drop a backslash only where Markdown would have read the next character as a mark."""
    if state.src[state.pos] != "\\" or state.pos + 1 >= state.posMax:
        return False
    follows = state.src[state.pos + 1]
    if not silent:
        state.pending += follows if follows in _MARKS else "\\" + (follows if follows == "\\" else "")
    state.pos += 2 if follows in _MARKS or follows == "\\" else 1
    return True


def _wordlike(character: str) -> bool:
    """Whether a mark beside it stands in a word or a formula; scripts without blanks between words are no sign."""
    return character.isalnum() and unicodedata.east_asian_width(character) not in "WF"


def _emphasis(state: StateInline, silent: bool) -> bool:
    """As markdown-it's, which pairs the marks, but for marks inside words and formulas, and names like __init__."""
    start, marker = state.pos, state.src[state.pos]
    if silent or marker not in "*_":
        return False
    name = _NAME.match(state.src, start, state.posMax) if marker == "_" else None
    if name is not None:
        state.pending += name[0]
        state.pos = name.end()
        return True
    scanned = state.scanDelims(start, marker == "*")
    before = state.src[start - 1] if start > 0 else " "
    after = state.src[start + scanned.length] if start + scanned.length < state.posMax else " "
    opens = scanned.can_open and not (_wordlike(before) or before in ")]}")
    closes = scanned.can_close and not (_wordlike(after) or after in "([{")
    for _ in range(scanned.length):
        token = state.push("text", "", 0)
        token.content = marker
        mark = Delimiter(
            marker=ord(marker),
            length=scanned.length,
            token=len(state.tokens) - 1,
            end=-1,
            open=opens,
            close=closes,
        )
        state.delimiters.append(mark)
    state.pos += scanned.length
    return True


# --- blanks ---


def _line_break(state: StateInline, silent: bool) -> bool:
    """A line of the text is a line on the page, as far indented."""
    if state.src[state.pos] != "\n":
        return False
    rest = state.src[state.pos + 1 : state.posMax].expandtabs(4)
    indent = len(rest) - len(rest.lstrip(" "))
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("softbreak", "br", 0)
        state.pending += _BLANK * indent
    state.pos += 1
    while state.pos < state.posMax and state.src[state.pos] in " \t":
        state.pos += 1
    return True


def _indents(state: StateCore) -> None:
    """A paragraph's first line keeps its blanks too."""
    lines = state.src.split("\n")
    for before, token in zip(state.tokens, state.tokens[1:], strict=False):
        if token.type == "inline" and before.type == "paragraph_open" and before.level == 0 and before.map:
            first = lines[before.map[0]].expandtabs(4)
            token.content = _BLANK * (len(first) - len(first.lstrip(" "))) + token.content


def _blanks(state: StateCore) -> None:
    """Runs of blanks, which a browser would draw as one."""
    for token in (child for inline in state.tokens for child in inline.children or ()):
        if token.type == "text":
            token.content = re.sub("  +", lambda run: " " + _BLANK * (len(run[0]) - 1), token.content)


def _empty_links(state: StateCore) -> None:
    """A link around nothing would be nothing on the page: it stays as it was written."""
    for inline in state.tokens:
        children = inline.children or []
        for at, token in enumerate(children):
            if token.type != "link_open" or token.markup == "autolink":
                continue
            end = next(k for k in range(at + 1, len(children)) if children[k].type == "link_close")
            inside = children[at + 1 : end]
            if not any(one.type != "text" or one.content.strip() for one in inside):
                written = Token("text", "", 0)
                written.content = f"[{''.join(one.content for one in inside)}]({token.attrs.get('href', '')})"
                children[at : end + 1] = [written, *(Token("text", "", 0) for _ in range(end - at))]


def _picture_in_words(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    """A picture is never fetched: its address would tell another server who is reading, and when."""
    token = tokens[index]
    said = f"{note('text.picture')}: {escape(token.content)} {escape(str(token.attrs.get('src', '')))}"
    return f"<em>[{said}]</em>"
