"""The studio in Chromium: every view on a desk and a phone, live rows, hostile texts, keys, and the way to a token."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from label_page import DESKTOP, PHONE, watched
from studio_kit import HOSTILE, Answers, many_updates, served

from plaudit.label.db import ledger
from plaudit.label.db.database import connect, open_project, snapshot
from plaudit.view.inspect.whole import whole_reply
from plaudit.view.studio.alone import reply_page
from plaudit.view.studio.session import Labels

DRAWN = {
    "": ".chart canvas",
    "/replies": ".replies td",
    "/replies?source=validation": ".replies td",
    "/token": ".micro td",
    "/arena": ".ask",
}
"""The views of a run, and what is there when one is drawn."""
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
"""axe-core is no part of Plaudit: `npm install --no-save axe-core@4.14.1` puts it there."""


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
def visitor(browser: Any, run: Path, labels: Path | None = None, **options: Any) -> Iterator[tuple[Any, str]]:
    """A page that the link has let in; what goes wrong in it unseen fails the test. Its models say hostile things."""
    with served(run) as (url, studio):
        studio.models = Answers()  # type: ignore[assignment]
        studio.labels = Labels(open_project(labels), "ann") if labels else None
        context = browser.new_context(**options)
        context.set_default_timeout(60000)
        page = watched(context.new_page())
        page.goto(f"{url}/open/{studio.token}")
        page.wait_for_selector(".run")
        yield page, url
        context.close()
        assert page.complaints == []


def show(page: Any, url: str, view: str) -> None:
    """A view of the run, drawn. The page leaves the one before first: what is waited for may be on that one too, and
    questions that it asked may still be answered."""
    page.goto("about:blank")
    page.goto(f"{url}/#/run/%3Cb%3Erun{view}")
    page.locator(DRAWN[view]).first.wait_for()


def first_curve(page: Any, url: str) -> Any:
    """PPO's first, drawn, when all that stands above it is there: what the doctor says comes late."""
    show(page, url, "")
    page.locator(".finding").first.wait_for()
    chart = page.locator("h2:text-is('ppo') + .charts figure").first
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").wait_for()
    return chart


@pytest.mark.parametrize(("device", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_every_view_fits_and_runs_no_text(browser: Any, run: Path, device: dict[str, Any], scheme: str) -> None:
    with visitor(browser, run, **device, color_scheme=scheme) as (page, url):
        for view in DRAWN:
            show(page, url, view)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            numbers = page.locator(".replies .num").evaluate_all(
                "all => all.map((n) => n.getBoundingClientRect().right)"
            )
            assert max(numbers, default=0) <= device["viewport"]["width"], view  # none has to be scrolled to
            assert "owned" not in page.title()
            assert "<b>run" in page.inner_text("h1")
        page.goto(f"{url}/#/run/%3Cb%3Erun/replies?source=validation&search=onerror")
        page.locator(".replies", has_text=HOSTILE).wait_for()
        page.click(".replies button")
        page.wait_for_selector(".replies dl dt")
        assert page.locator("main img, main script, main b").count() == page.locator(".numbers b, .state b").count()


def test_a_row_that_is_written_is_on_the_page_within_two_seconds(browser: Any, run: Path) -> None:
    """The best of some: a machine that is busy with other things may be late."""
    with visitor(browser, run, **DESKTOP) as (page, url):
        chart = first_curve(page, url)
        log, took = run / "ppo/metrics.jsonl", []
        before = log.read_text()
        first = json.loads(before.split("\n")[0])
        for update in range(31, 37):
            with log.open("a") as handle:
                handle.write(json.dumps({**first, "update": update, "score": update + 0.25}) + "\n")
            began = time.monotonic()
            chart.locator("output", has_text=f"{update}.250").wait_for()
            took.append(time.monotonic() - began)
            if took[-1] < 2:
                break
    log.write_text(before)  # the replies of these updates are nowhere, and other tests ask for those of the last
    assert min(took) < 2, took


def test_from_a_curve_to_the_token_with_the_largest_error_in_two_clicks(browser: Any, run: Path) -> None:
    with visitor(browser, run, **DESKTOP) as (page, url):
        chart = first_curve(page, url)
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
        chart = first_curve(page, url)
        chart.focus()
        page.keyboard.press("ArrowLeft")
        chart.locator("output", has_text="update").wait_for()
        page.keyboard.press("Enter")
        page.wait_for_selector(".replies td")


def test_the_hand_over_a_point_shows_the_replies_of_its_update(browser: Any, run: Path) -> None:
    with visitor(browser, run, **DESKTOP) as (page, url):
        chart = first_curve(page, url)
        chart.locator(".u-over").hover(position={"x": 150, "y": 60})
        update = re.match(r"update (\d+):", chart.locator("output", has_text="update").inner_text())
        assert update is not None
        page.locator(".peek", has_text=f"Update {update[1]};").locator("b", has_text="best").wait_for()
        page.locator("figcaption", has_text="calibration").wait_for()


@pytest.mark.parametrize("height", [2000, 500])
def test_what_the_doctor_says_late_does_not_move_the_curve_under_the_hand(browser: Any, run: Path, height: int) -> None:
    """On a page that stands at its beginning, and on one that was scrolled, which a browser holds by itself."""
    one = {"level": "warning", "name": "late", "says": "It is late", "evidence": "score is 1", "change": "Wait"}
    said = [{**one, "update": None, "column": "score"}] * 3
    with visitor(browser, run, viewport={"width": 1280, "height": height}) as (page, url):
        asked: list[Any] = []
        page.goto("about:blank")  # the overview asks, too
        page.route("**/findings", lambda route: asked.append(route))
        page.goto(f"{url}/#/run/%3Cb%3Erun")
        over = page.locator("h2:text-is('ppo') + .charts figure").first.locator(".u-over")
        over.hover(position={"x": 150, "y": 60})
        before = over.bounding_box()
        page.route("**/findings", lambda route: route.fulfill(json=said))
        for route in asked:
            route.fulfill(json=said)
        page.locator(".finding >> nth=2").wait_for()
        assert over.bounding_box() == pytest.approx(before, abs=1)
        page.wait_for_selector(".peek b")


def test_the_arena_is_blind_until_somebody_chooses_and_keeps_the_choice(
    browser: Any, run: Path, tmp_path: Path
) -> None:
    database = tmp_path / "labels.sqlite"
    with visitor(browser, run, database, **PHONE) as (page, url):
        page.goto(f"{url}/#/run/%3Cb%3Erun/arena")
        page.fill("textarea", "Tell me about a train.")
        page.click("button.main")
        page.locator(".board .reply >> nth=1").wait_for()
        assert HOSTILE in page.inner_text(".board") and "SFT" not in page.inner_text(".board")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="B is best").click()
        page.locator(".reply.best >> nth=0").wait_for()
        heads = page.locator(".board h2").all_inner_texts()
        assert sorted(head[3:] for head in heads) == ["PPO", "SFT"] and "Stored as a label." in page.inner_text("main")
        assert "score 1.00 · KL 0.50" in page.inner_text(".reply.best") and "owned" not in page.title()
        page.goto(f"{url}/#/run/%3Cb%3Erun/replies?source=validation&update=0")
        page.locator(".replies tbody input").nth(1).check()
        page.get_by_role("button", name="Send to labelling").click()
        page.locator(".actions [role=status]", has_text="1 new to label").wait_for()
    with snapshot(connect(database)) as connection:
        data = ledger.read(connection)
    assert sorted(item.task for item in data.items) == ["rank", "write"] and len(data.labels) == 1


@pytest.mark.parametrize(("device", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_axe_finds_no_serious_fault(browser: Any, run: Path, device: dict[str, Any], scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip(f"axe-core is not at {AXE}: npm install --no-save axe-core@4.14.1")
    found = []
    with visitor(browser, run, **device, color_scheme=scheme) as (page, url):
        for view in ("overview", *DRAWN):
            if view != "overview":  # where the link has led to
                show(page, url, view)
            page.evaluate(AXE.read_text(encoding="utf-8"))
            told = page.evaluate("axe.run().then((result) => result.violations)")
            grave = [one for one in told if one["impact"] in ("serious", "critical")]
            found += [(view, one["id"], [node["html"][:160] for node in one["nodes"][:3]]) for one in grave]
    assert found == []


@pytest.mark.slow
def test_a_thousand_updates_of_64_replies_are_there_within_a_second(
    browser: Any, trained: Path, tmp_path: Path
) -> None:
    """By the clock from the address to the first curve, and to the last update's replies; the best of three."""
    many = many_updates(trained, tmp_path / "run", 1000)
    took: dict[str, list[float]] = {"": [], "/replies": []}
    with visitor(browser, many, **DESKTOP) as (page, url):
        for view in [*took] * 3:
            page.goto("about:blank")
            began = time.monotonic()
            page.goto(f"{url}/#/run/run{view}")
            page.wait_for_selector(".chart canvas, .replies td")
            took[view].append(time.monotonic() - began)
        page.mouse.wheel(0, 5000)
        assert page.evaluate("new Promise((done) => requestAnimationFrame(() => done(scrollY)))") > 0
    assert {view: min(times) < 1 for view, times in took.items()} == {"": True, "/replies": True}, took


def test_inspect_writes_the_same_microscope_as_one_file(browser: Any, run: Path, tmp_path: Path) -> None:
    """From a disk and without a network: every number of the table, and the token that is chosen worked by hand."""
    found = whole_reply(run, 2, 3)
    file = tmp_path / "reply.html"
    file.write_text(reply_page(found), encoding="utf-8")
    context = browser.new_context(**PHONE, offline=True, color_scheme="dark")
    page = watched(context.new_page())
    page.goto(file.as_uri())
    names = page.locator(".micro >> nth=0").locator("tbody th").all_inner_texts()
    shown = page.locator(".micro td[data-token]").all_inner_texts()
    ratios = shown[names.index("ratio r") * len(found["rows"]) :][: len(found["rows"])]
    assert [float(text) for text in ratios] == pytest.approx([row["ratio"] for row in found["rows"]], abs=6e-4)
    assert page.locator(".sums .same").count() == len(found["sums"])
    page.select_option("select", "critic_error")
    page.locator(".tok >> nth=1").click()
    assert "Token 2 by hand" in page.inner_text(".hand h2")
    assert f"{found['rows'][1]['l_clip']:.4f}".replace("-", "−") in page.inner_text(".hand tr:last-child")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []
    context.close()
