"""The studio in Chromium: every view on a desk and a phone, live rows, hostile texts, keys, and the way to a token."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from label_page import DESKTOP, PHONE, watched
from studio_kit import many_updates, served

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
VIEWS = ("", "/replies", "/replies?source=validation", "/token")


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty updates, in a folder whose name and whose validation replies are hostile."""
    folder = many_updates(trained, tmp_path_factory.mktemp("studio") / "<b>run", 30)
    for file in (folder / "ppo/validation").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[0] |= {"text": HOSTILE, "prompt": [{"role": "user", "content": HOSTILE}]}
        file.unlink()
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def visitor(browser: Any, run: Path, **options: Any) -> Iterator[tuple[Any, str]]:
    """A page that the link has let in; what goes wrong in it unseen fails the test."""
    with served(run) as (url, studio):
        context = browser.new_context(**options)
        context.set_default_timeout(60000)
        page = watched(context.new_page())
        page.goto(f"{url}/open/{studio.token}")
        page.wait_for_selector(".run")
        yield page, url
        context.close()
        assert page.complaints == []


@pytest.mark.parametrize(("device", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_every_view_fits_and_runs_no_text(browser: Any, run: Path, device: dict[str, Any], scheme: str) -> None:
    with visitor(browser, run, **device, color_scheme=scheme) as (page, url):
        for view in VIEWS:
            page.goto(f"{url}/#/run/%3Cb%3Erun{view}")
            page.wait_for_selector(".chart canvas, .replies td, .micro td")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            assert "owned" not in page.title()
            assert "<b>run" in page.inner_text("h1")
        page.goto(f"{url}/#/run/%3Cb%3Erun/replies?source=validation&search=onerror")
        page.wait_for_selector(".replies td")
        assert HOSTILE in page.inner_text(".replies")
        page.click(".replies button")
        page.wait_for_selector(".replies dl dt")
        assert page.locator("main img, main script, main b").count() == page.locator(".numbers b, .state b").count()


def test_a_row_that_is_written_is_on_the_page_within_two_seconds(browser: Any, run: Path) -> None:
    with visitor(browser, run, **DESKTOP) as (page, url):
        page.goto(f"{url}/#/run/%3Cb%3Erun")
        chart = page.locator("h2:text-is('ppo') + .charts figure").first
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        log = run / "ppo/metrics.jsonl"
        first = json.loads(log.read_text().split("\n")[0])
        with log.open("a") as handle:
            handle.write(json.dumps({**first, "update": 31, "score": 4.25}) + "\n")
        began = time.monotonic()
        chart.locator("output", has_text="4.250").wait_for(timeout=5000)
        assert time.monotonic() - began < 2


def test_from_a_curve_to_the_token_with_the_largest_error_in_two_clicks(browser: Any, run: Path) -> None:
    with visitor(browser, run, **DESKTOP) as (page, url):
        page.goto(f"{url}/#/run/%3Cb%3Erun")
        chart = page.locator("h2:text-is('ppo') + .charts figure").first
        chart.scroll_into_view_if_needed()
        chart.locator(".u-over").click(position={"x": 150, "y": 60})
        page.wait_for_selector(".replies td")
        assert "sort=critic_error" in page.url
        page.locator(".replies a").first.click()
        page.wait_for_selector(".micro td")
        shown = page.locator(".micro td[data-token]").all_inner_texts()
        tokens = page.locator(".micro thead th[data-token]").count()
        names = page.locator(".micro >> nth=0").locator("tbody th").all_inner_texts()
        errors = [
            abs(float(text.replace("−", "-"))) for text in shown[names.index("return − value") * tokens :][:tokens]
        ]
        at = int(page.locator("thead th[aria-current]").get_attribute("data-token"))
        assert errors[at - 1] == max(errors)


def test_curves_are_read_by_keys(browser: Any, run: Path) -> None:
    with visitor(browser, run, **DESKTOP) as (page, url):
        page.goto(f"{url}/#/run/%3Cb%3Erun")
        chart = page.locator("h2:text-is('ppo') + .charts figure").first
        chart.focus()
        chart.locator("canvas").wait_for()
        page.keyboard.press("ArrowLeft")
        chart.locator("output", has_text="update").wait_for()
        page.keyboard.press("Enter")
        page.wait_for_selector(".replies td")
