"""The report in a real browser: nothing is fetched, nothing runs, nothing sticks out at phone width."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_report_stands_alone_and_fits(browser: Any, trained: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    address = (trained / "report.html").as_uri()
    page.goto(address)
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert complaints == []
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator("figure svg, figure img")
    assert plots.count() >= 12
    assert all(plots.nth(i).bounding_box()["width"] <= width for i in range(plots.count()))
    page.close()


def test_a_hostile_reply_stays_text(browser: Any, trained: Path, tmp_path: Path) -> None:
    """The escaping itself is tested in tests/view/test_report.py; here: were it lost, the policy still blocks."""
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "</h1>" in text
    hostile = tmp_path / "report.html"
    hostile.write_text(text.replace("</h1>", "</h1><script>document.title = 'taken'</script>", 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(hostile.as_uri())
    assert page.title() != "taken"
    page.close()
