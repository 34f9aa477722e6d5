"""What annotators see is what the model wrote: nothing of a text gets lost on the way to the page."""

import html
import re
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from plaudit.label.web.text.code import coloured
from plaudit.label.web.text.markdown import markdown_html


def shown(text: str) -> str:
    """The characters that a browser would show, its blanks as blanks; paragraphs are apart without an empty line."""
    characters = html.unescape(re.sub(r"<[^>]+>", "", markdown_html(text))).replace("\u00a0", " ")
    return re.sub("\n+", "\n", characters).strip("\n")


@pytest.mark.parametrize(
    "text",
    [
        r"the area \(x^2\) and \[y \\ z\]",
        r"costs $5 or $6, and $a_1*b_2*c$",
        "$$\nx\n= y\n- 3\n$$",
        "\\[\nx\n= y\n\n> z\n\\]",
        "\\begin{align*}\na &= b \\\\\n\nc\n\\end{align*}",
        "2*3*4 and a[i]*b[j]*c[k] and (a)*b*(c)",
        "call __init__ and __main__.py",
        "def f():\n    if x:\n        return 1\n  y",
        "  indented\n\n   more",
        "a    b     c",
        r"C:\new\table, \alpha, \\server\share",
        "&lt;b&gt; and &amp;",
        "[note]: http://example.org/x",
    ],
)
def test_no_character_is_lost(text: str) -> None:
    assert shown(text) == re.sub("\n+", "\n", text)


def test_maths_is_marked_for_the_script_that_typesets_it() -> None:
    assert '<code class="maths">\\(x&lt;y\\)</code>' in markdown_html(r"so \(x<y\).")
    assert '<code class="maths display">$$x$$</code>' in markdown_html("so $$x$$")
    assert "maths" not in markdown_html("`$x$` costs $5 and $6")


def test_a_list_keeps_its_numbers_and_brackets() -> None:
    found = markdown_html("5) five\n7) seven")
    assert 'class="bracket"' in found and 'value="5">five' in found and 'value="7">seven' in found
    assert "bracket" not in markdown_html("5. five")


def test_marks_that_are_marks_are_still_formatted() -> None:
    for text, wanted in {
        "an *apt* word": "<em>apt</em>",
        "(**so**), *then*.": "<strong>so</strong>), <em>then</em>.",
        "这是**重点**内容": "<strong>重点</strong>",
        "__two words__ and _x_": "<strong>two words</strong> and <em>x</em>",
        r"\*no\*": ">*no*<",
    }.items():
        assert wanted in markdown_html(text)


@given(st.text(alphabet="ab1*_ \\([{)]}$", max_size=60))
@example("1*2*3")
@example("1) a")
def test_letters_and_brackets_stay_whatever_the_marks(text: str) -> None:
    """Stars, underscores and a backslash before a mark may become formatting; nothing else may vanish."""
    assume("](" not in text)  # a link shows its words, and where it leads when it is pointed at
    kept = re.sub(r"[*_\\\s]", "", text)
    numbered = re.sub(r'<li [^>]*value="(\d+)"[^>]*>', r"\1)", markdown_html(text))  # a list shows its numbers itself
    characters = html.unescape(re.sub(r"<[^>]+>", "", numbered)).replace("\u00a0", " ")
    assert re.sub(r"[*_\\\s]", "", characters) == kept


def test_a_link_around_nothing_stays_as_it_was_written() -> None:
    for text in ("[]()", "[](https://example.org)", "a [ ](x) b"):
        assert text in markdown_html(text) and "<a" not in markdown_html(text)
    assert 'href="https://example.org"' in markdown_html("[here](https://example.org) and <https://example.org>")


def test_every_block_has_its_own_direction_and_code_has_none() -> None:
    found = markdown_html("سلام\n\nHello\n\n- سلام\n\n```\nx = 1\n```")
    assert found.count('dir="auto"') == 3 and "<pre><code>" in found


def test_code_has_colours_and_all_its_characters() -> None:
    code = "def f(x):\n    return 'a' < 3  # why\n"
    found = coloured(code, "python")
    assert html.unescape(re.sub("<[^>]+>", "", found)) == code
    assert '<span class="keyword">def</span>' in found and '<span class="comment"># why</span>' in found
    assert coloured("<b>", "no-such-language") == coloured("<b>") == "&lt;b&gt;"


@pytest.mark.parametrize("text", [r"\(" * 24_000, "\\[\n" * 12_000, "$" * 49_000, r"\begin{a}" * 5_000])
def test_hostile_maths_is_read_in_time(text: str) -> None:
    began = time.process_time()
    markdown_html(text)
    assert time.process_time() - began < 8
