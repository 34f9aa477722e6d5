"""Texts as HTML that runs nothing, and the pages around them, without a browser (tests/browser has the rest)."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.label.web.shared.render import HEADERS, PAGES, STATIC, page_html, reply_html
from plaudit.label.web.text.code import CLASSES
from plaudit.label.web.text.markdown import LONGEST_MARKDOWN, markdown_html
from plaudit.label.web.text.wording import ENGLISH, texts

ROOT = Path(__file__).resolve().parents[4]
ALLOWED = set(
    "p br hr strong em s code pre blockquote ul ol li h4 h5 h6 table thead tbody tr th td a span".split()  # noqa: SIM905
)


OWN = {"ol": {"start"}, "li": {"dir", "value"}, "span": {"data-say"}} | {
    tag: {"dir"} for tag in ("p", "h4", "h5", "h6", "blockquote", "th", "td")
}


class Parsed(HTMLParser):
    """What a browser would make of a fragment: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


UNLOADED = r'<em>\[<span data-say="text.picture">picture, not loaded</span>: .*?\]</em>'


def assert_harmless(html: str) -> None:
    for tag, attributes in Parsed(html).elements:
        assert tag in ALLOWED
        if tag == "a":
            assert set(attributes) <= {"href", "rel", "target"}
            assert attributes["rel"] == "noopener noreferrer nofollow" and attributes["target"] == "_blank"
            href = attributes.get("href")
            assert href is None or re.match(r"(https?|mailto):", href, flags=re.IGNORECASE)
        else:
            assert set(attributes) <= {"class", *OWN.get(tag, ())} and attributes.get("dir", "auto") == "auto"
            assert attributes.get("data-say", "text.picture") == "text.picture"
            assert set((attributes.get("class") or "").split()) <= {"maths", "display", "plain", "bracket", *CLASSES}


ATTACKS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<svg/onload=alert(1)>",
    "</div></pre></section><style>*{display:none}</style>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](vbscript:x) [x](data:text/html;base64,PHN2Zz4=) [x](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[x](https://a.example/"onmouseover="alert(1))',
    '[x](https://a.example "t\\" onclick=alert(1) x=\\"")',
    "![x](http://evil.example/p.png)",
    "![x](http://evil.example/p.png 'title')",
    "[x][r]\n\n[r]: javascript:alert(1)",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "`</code><script>alert(1)</script>`",
    "<a href=x onclick=alert(1)>x</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "| a |\n|---|\n| <iframe src=x> |",
    "[x](/logout) [x](//evil.example/x) [x](#id)",
    "\x00<script\x00>alert(1)</script>",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_an_attack_is_text(text: str) -> None:
    html = markdown_html(text)
    assert_harmless(html)
    assert "evil.example" not in re.sub(UNLOADED, "", html) or "[x](//evil" in text


@given(st.text(alphabet="<>\"'()[]!&;:/\\#*_`~|-= \nabjsx1\x00\u202e", max_size=120))
def test_no_text_becomes_more_than_the_allowed_elements(text: str) -> None:
    assert_harmless(markdown_html(text))


def test_markdown_is_shown_as_markdown() -> None:
    html = markdown_html("# Title\n\na *b* **c** `d`\ne\n\n- x\n\n3. y\n\n```py\nf(1 < 2)\n```\n\n|h|\n|-|\n|c|\n\n> q")
    for part in (
        '<h4 dir="auto">Title</h4>',
        "<em>b</em>",
        "<strong>c</strong>",
        "<code>d</code><br>",
        '<li dir="auto">x</li>',
        '<ol start="3">',
        '<pre><code>f(<span class="number">1</span> &lt; <span class="number">2</span>)\n</code></pre>',
        '<th dir="auto">h</th>',
        '<td dir="auto">c</td>',
        '<blockquote dir="auto">',
    ):
        assert part in html
    assert '<a href="https://a.example/x?y=1&amp;z" ' in markdown_html("[l](https://a.example/x?y=1&z)")
    assert (
        '<em>[<span data-say="text.picture">picture, not loaded</span>: a cat http://a.example/cat.png]</em>'
        in markdown_html("![a cat](http://a.example/cat.png)")
    )


@given(st.text(alphabet="<>&\"' \nab`#\u202e", min_size=1, max_size=60).filter(lambda text: text.strip()))
def test_a_replys_plain_view_is_its_characters(text: str) -> None:
    found = re.fullmatch(
        r'<div class="rendered">.*</div><pre class="plain" dir="auto" hidden>([^<]*)</pre>', reply_html(text), re.S
    )
    assert found is not None
    assert Parsed(found[1]).text == text


def test_cut_and_empty_replies_say_so() -> None:
    assert "cut by the length limit" in reply_html("Once upon", ended=False)
    assert "cut by" not in reply_html("The end.")
    assert "(empty reply)" in reply_html(" \n")


def test_a_text_that_is_too_long_for_markdown_is_shown_as_it_is() -> None:
    long = "<b>" + "*a* " * (LONGEST_MARKDOWN // 4)
    assert markdown_html(long).startswith('<pre class="plain">&lt;b&gt;*a* *a*')
    assert_harmless(markdown_html(long))


# --- the pages ---


def pages() -> Iterator[tuple[str, str]]:
    nasty = '"><script>alert(1)</script>'
    yield "login", page_html("login", project=nasty, csrf=nasty, name=nasty, error=nasty)
    yield "invite", page_html("invite", project=nasty, csrf=nasty, token=nasty, name=nasty, error=nasty)
    for name in ("label", "history", "admin"):
        yield name, page_html(name)


@pytest.mark.parametrize(("name", "html"), list(pages()), ids=[name for name, _ in pages()])
def test_a_page_keeps_its_own_policy(name: str, html: str) -> None:
    """No inline script or style, nothing from elsewhere, and names of people and projects escaped."""
    for tag, attributes in Parsed(html).elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
        for key in ("src", "href", "action"):
            address = attributes.get(key)
            assert address is None or re.match(r"(\.{1,2}/(?!/)|#)", address)
        if tag == "script":
            assert attributes["type"] == "module" and attributes["src"]
        assert tag != "style"
    assert len(re.findall(r"<script", html)) == 1


def test_every_file_that_a_page_or_script_names_is_there() -> None:
    for file in PAGES.rglob("*.*"):
        if file.suffix in {".j2", ".js"}:
            text = file.read_text(encoding="utf-8")
            for name in re.findall(r'"\{\{ up \}\}static/([\w./-]+)"', text):
                assert (STATIC / name).is_file(), f"{file.name}: {name}"
            for name in re.findall(r'from "(\.{1,2}/[\w./-]+)"', text):
                assert (file.parent / name).is_file(), f"{file.name}: {name}"


def test_scripts_use_nothing_that_the_policy_forbids() -> None:
    """innerHTML is there twice: what render.py made, and an inert template for an excerpt."""
    used: dict[str, int] = {}
    for file in (file for file in STATIC.rglob("*.js") if file.parent.name != "katex"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"\beval\(|new Function|document\.write|insertAdjacentHTML|outerHTML|https?://(?!www\.w3)", text
        )
        used[file.name] = text.count("innerHTML")
        assert text.count("\n") < 400
    assert {name: count for name, count in used.items() if count} == {"dom.js": 1, "summary.js": 1}
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of #rrggbb."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    """4.5 for text, 3 for the borders of fields and the ring of focus."""
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "base.css").read_text(encoding="utf-8"), flags=re.S)
    colours: dict[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme == "dark"]))
    assert contrast("#000000", "#ffffff") == 21
    for text, grounds in {
        "ink": ("page", "card", "wash", "warn-wash", "accent-wash"),
        "muted": ("page", "card", "wash", "warn-wash"),
        "accent": ("page", "card", "warn-wash"),
        "on-accent": ("accent",),
        "warn": ("page", "card", "warn-wash"),
    }.items():
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("line", "accent", "blue"):
        for ground in ("page", "card"):
            assert contrast(colours[line], colours[ground]) >= 3, (line, ground)


def test_no_style_says_left_or_right_where_a_text_may_run_the_other_way() -> None:
    for file in STATIC.glob("*.css"):
        # What is dragged hangs at a pointer, which has no direction.
        code = re.sub(r"/\*.*?\*/|\.ghost \{.*?\}", "", file.read_text(encoding="utf-8"), flags=re.S)
        sided = r"-(?:left|right) *:|(?<![\w-])(?:left|right) *:|(?:text-align|float) *: *(?:left|right)"
        assert re.findall(sided, code) == [], file.name


# --- docs/labelling.md ---


def doc() -> str:
    return (ROOT / "docs/labelling.md").read_text(encoding="utf-8")


def rows_under(heading: str) -> list[list[str]]:
    section = doc().split(heading, 1)[1].split("\n#", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_keys_of_the_docs_are_those_of_the_page() -> None:
    listed = {key for row in rows_under("### Keys") for key in re.findall(r"`([^`]+)`", row[0])}
    assert listed == set(re.findall(r"<kbd[^>]*>([^<]+)</kbd>", page_html("label"))) - {"2"}


def test_what_the_docs_say_is_on_the_page_is_there() -> None:
    names: list[Any] = [row[0] for row in rows_under("## Ranking replies") if row[0] != "boxes under a reply"]
    assert len(names) == 7
    for name in names:
        assert any(name in str(text) for text in texts(ENGLISH).values()), name


def test_the_limits_of_the_docs_are_those_of_the_code() -> None:
    assert f"{LONGEST_MARKDOWN:,} characters" in doc()
    days = re.search(r"KEPT_MS = (\d+) \* 24 \* 3600 \* 1000", (STATIC / "draft.js").read_text(encoding="utf-8"))
    assert days is not None and f"{days[1]} days" in doc()
