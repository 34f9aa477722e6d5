"""What the tests of the labelling page share: signing in, and watching that nothing goes wrong unseen."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from label_fake import COOKIE, PASSWORD, Fake

SHOWN = ".item, .done, .entry, .notice, .tiles"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
# What Chromium writes about an answer that is not 200, about a server that was told to be away, and where the test
# types before the page has put the focus into its field.
EXPECTED = re.compile(r"Failed to load resource|ERR_EMPTY_RESPONSE|Autofocus processing was blocked")


@contextmanager
def visitor(browser: Any, fake: Fake, path: str = "/", **options: Any) -> Iterator[Any]:
    """A page, signed in, of a browser without memory. Errors of scripts and breaches of the policy fail the test. It
    comes with the cookie of a login: the form itself is `sign_in`, in the tests that are about who is who."""
    context = browser.new_context(**(options or DESKTOP))
    context.set_default_timeout(60000)
    context.add_cookies([{"name": COOKIE, "value": fake.session_of("ann"), "url": fake.url}])
    page = watched(context.new_page())
    page.goto(fake.url + path)
    if path == "/":
        page.wait_for_selector(SHOWN)
    yield page
    complaints = [text for one in context.pages for text in getattr(one, "complaints", [])]
    context.close()
    assert complaints == []


def watched(page: Any) -> Any:
    page.complaints = []
    page.on("console", lambda told: EXPECTED.search(told.text) or page.complaints.append(told.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    return page


def sign_in(page: Any, fake: Fake, name: str = "ann") -> None:
    page.goto(fake.url + "/login")
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.click("button.main")
    page.wait_for_selector(SHOWN)


def order(page: Any) -> list[str]:
    """The letters in each place of the board, and those without a place last: ["B", "AC", "", "D"]."""
    slots = page.locator(".slot .chips, .tray .chips").all()
    return ["".join(slot.locator(".chip").all_inner_texts()) for slot in slots]


def pressed(page: Any) -> list[str]:
    """The names of the buttons that are down, but for those of places."""
    return page.locator(".decide button[aria-pressed=true]").all_inner_texts()


def drag(page: Any, letter: str, place: int, at: float = 0.5, source: str = ".board") -> None:
    """Drag a letter with the mouse into a place; `at` is how far down in it, 0 to 1."""
    page.locator(f"{source} [data-letter={letter}]").hover()
    page.mouse.down()
    box = page.locator(f".slot[data-place='{place}']").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * at, steps=4)
    page.mouse.up()
