"""The annotators' pages in a language that nobody speaks: every word that is to be seen comes from the file."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from label_fake import Fake, rank_item, serving
from label_page import visitor

from plaudit.label.web.text import wording

# What people, models and the project said, and keys of the keyboard.
DATA = re.compile(r"Plaudit|Kind replies|\bann\b|Name and password do not match\.")
SEEN = """() => {
  const found = [];
  const walk = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let node = walk.currentNode; node; node = walk.nextNode()) {
    const hidden = node.parentElement?.closest("time, script, style, noscript");
    if (node.nodeType === Node.TEXT_NODE) found.push(hidden ? "" : node.data);
    else {
      for (const name of ["aria-label", "title", "placeholder", "alt"]) found.push(node.getAttribute(name) ?? "");
      const drawn = ["::before", "::after"].map((part) => getComputedStyle(node, part).content);
      found.push(...drawn.filter((content) => !["none", "normal"].includes(content)));
    }
  }
  return found;
}"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A server whose pages have every text in brackets."""

    def bracketed(text: Any) -> Any:
        return {form: bracketed(own) for form, own in text.items()} if isinstance(text, dict) else f"⟦{text}⟧"

    strange = {key: bracketed(text) for key, text in wording.texts("en").items()}
    (tmp_path / "en-XA.json").write_text(json.dumps(strange), encoding="utf-8")
    monkeypatch.setattr(wording, "FOLDER", tmp_path)
    items = [
        rank_item("11", "21", "22", ""),
        rank_item("12", "31", "![4](https://5.example)", task="compare"),
        rank_item("13", task="write", write_text="41"),
        rank_item("14", "51", "52"),
    ]
    with serving(Fake(items, flags=["61"], guidelines="**71**", language="en-XA")) as fake:
        yield fake
    wording.texts.cache_clear()


def bare(page: Any) -> list[str]:
    """The words on the page that are in no brackets; a text may be around an element of its own."""
    text, before = "\n".join(page.evaluate(SEEN)), None
    while before != text:
        before, text = text, re.sub(r"⟦[^⟦⟧]*⟧", "", text)
    return re.findall(r"[^\W\d_]{2,}", DATA.sub("", text.replace("https://5.example", "")))


def test_every_word_of_the_annotators_pages_comes_from_the_file(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:

        def whole(*steps: Any) -> None:
            for step in steps:
                step()
                assert bare(page) == []

        key = page.keyboard.press
        assert page.evaluate("document.documentElement.lang") == "en-XA"
        assert "⟦" in page.locator("#progress-text").inner_text() and page.locator(".tie").count() == 0
        for pressed in ("Enter", "9", "1", "1", "0", "b", "b", "c", "u", "1", "1", "?", "Escape"):
            whole(partial(key, pressed))
        assert page.locator(".slot.tie").count() == 1
        page.locator(".strength button").first.click()
        whole(lambda: page.locator(".strength button").first.click())
        whole(lambda: page.locator(".item .actions button").nth(1).click(), page.locator("#notices .notice").wait_for)
        page.locator("form.task-compare").wait_for()
        whole(lambda: key("Enter"), lambda: key("1"))
        fake.down = "503"
        whole(lambda: key("Enter"), page.locator("#notices .seconds").wait_for)
        fake.down = None
        page.locator("#notices button").click()
        page.locator("form.task-write").wait_for()
        whole(lambda: page.fill("#text", ""), lambda: page.locator(".item .actions button.main").click())
        page.fill("#text", "42")
        page.locator(".item .actions button.main").click()
        page.locator("form.task-rank").wait_for()
        for pressed in ("1", "2", "Enter"):
            key(pressed)
        whole(page.locator(".done").wait_for)
        page.goto(fake.url + "/history")
        page.locator(".entry").first.wait_for()
        for entry in page.locator(".entry summary").all():
            whole(entry.click)
        page.locator(".entry-body > .actions button").last.click()
        whole(page.locator(".entry form").wait_for)
        whole(lambda: page.locator(".own summary").click())
        for path in ("/invite/token", "/login"):
            page.context.clear_cookies()
            whole(partial(page.goto, fake.url + path))
        page.fill("#name", "ann")
        page.fill("#password", "not the password")
        whole(lambda: page.click("button.main"), page.locator("#error").wait_for)
