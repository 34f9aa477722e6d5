"""The annotator's page when things go wrong: no answer is lost, none is sent twice, and the page says what happens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from label_fake import Fake, rank_item, serving
from label_page import DESKTOP, EXPECTED, order, sign_in, visitor, watched


@pytest.fixture
def fake() -> Iterator[Fake]:
    items = [rank_item("First?", "one", "two"), rank_item("Second?", "one", "two"), rank_item("Third?", "one", "two")]
    with serving(Fake(items)) as one:
        yield one


def answer(page: Any, *keys: str) -> None:
    for key in keys or ("2", "1"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")


def wait_for(page: Any, text: str) -> None:
    page.get_by_text(text).first.wait_for()


def draft(page: Any, key: str = "draft-0") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.evaluate(f"localStorage.getItem('plaudit:1:ann:draft:{key}')"))
    return found


def submits(fake: Fake) -> list[Any]:
    return [body for path, body in fake.posts if path == "/api/submit"]


# --- the server is away ---


@pytest.mark.parametrize("way", ["503", "drop", "lost"])
def test_a_server_that_goes_away_during_a_submit(browser: Any, fake: Fake, way: str) -> None:
    """503; the connection breaks before anything is kept; the label is kept and its answer lost on the way."""
    with visitor(browser, fake) as page:
        fake.down = way
        answer(page)
        wait_for(page, "The server cannot be reached. Your answer is kept in this browser")
        assert page.locator("form.locked").count() == 1  # what may have arrived cannot be changed
        kept = draft(page)
        assert kept["pending"]["body"]["positions"]["ranks"] == [2, 1]
        fake.down = None
        wait_for(page, "Second?")
        assert page.evaluate("localStorage.getItem('plaudit:1:ann:draft:draft-0')") is None
    assert [label["client_id"] for label in fake.labels] == [kept["client_id"]]
    assert {json.dumps(body) for body in submits(fake)} == {json.dumps(kept["pending"]["body"])}
    assert fake.conflicts == []


@pytest.mark.parametrize("way", ["503", "lost"])
def test_a_reload_while_sending_sends_the_same_submit(browser: Any, fake: Fake, way: str) -> None:
    with visitor(browser, fake) as page:
        fake.down = way
        answer(page)
        wait_for(page, "The server cannot be reached.")
        fake.down = None
        page.reload()
        wait_for(page, "Second?")
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1]]
    assert len({body["client_id"] for body in submits(fake)}) <= 1 and fake.conflicts == []


def test_a_page_that_opens_while_the_server_is_away_waits_for_it(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.route("**/api/claim", lambda route: route.fulfill(status=503, json={"error": "busy"}))
        answer(page)
        wait_for(page, "The server cannot be reached.")
        page.unroute("**/api/claim")
        wait_for(page, "Second?")
    assert len(fake.labels) == 1


def test_waiting_ends_when_somebody_presses_the_button(browser: Any, fake: Fake) -> None:
    busy = {"status": 503, "json": {"error": "busy"}, "headers": {"Retry-After": "600"}}
    with visitor(browser, fake) as page:
        page.route("**/api/submit", lambda route: route.fulfill(**busy))
        answer(page)
        wait_for(page, "Trying again in 600 s.")
        page.unroute("**/api/submit")
        page.get_by_role("button", name="Try now").click()
        wait_for(page, "Second?")
        assert page.locator(".notice").count() == 0
    assert len(fake.labels) == 1


def test_an_answer_that_the_server_refuses_is_explained_and_can_be_mended(browser: Any, fake: Fake) -> None:
    refusal = {"error": "unknown flag 'x'", "field": "flags", "fix": "the flags are unsafe"}
    with visitor(browser, fake) as page:
        page.route("**/api/submit", lambda route: route.fulfill(status=422, json=refusal))
        answer(page)
        wait_for(page, "unknown flag 'x' the flags are unsafe")
        page.unroute("**/api/submit")
        assert page.locator("form.locked").count() == 0
        page.locator(".reply").first.focus()
        answer(page, "1", "ArrowRight", "2")
        wait_for(page, "Second?")
    assert [label["positions"]["ranks"] for label in fake.labels] == [[1, 2]]


# --- who is who, and when ---


def test_a_session_that_ends_keeps_the_answer_for_after_the_login(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        fake.sessions.clear()
        answer(page)
        wait_for(page, "You are signed out.")
        page.get_by_role("link", name="Sign in").click()
        sign_in(page, fake)
        wait_for(page, "Your answer from before has arrived.")
        wait_for(page, "Second?")
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1]]


def test_a_token_from_another_tabs_login_is_fetched_anew(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        other = watched(page.context.new_page())
        sign_in(other, fake)  # the cookie, and with it the token, is another one now
        other.close()
        page.bring_to_front()
        answer(page)
        wait_for(page, "Second?")
    assert len(fake.labels) == 1


def test_somebody_elses_login_does_not_send_in_their_name(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("2")
        sign_in(page, fake, "bo")
        assert order(page) == ["", "", "AB"]  # ann's draft is not bo's
        sign_in(page, fake, "ann")
        assert order(page) == ["", "A", "B"]


def test_an_item_whose_time_has_run_out_is_still_sent(browser: Any, fake: Fake) -> None:
    fake.lease_seconds = -5
    with visitor(browser, fake) as page:
        wait_for(page, "The time for this item has run out. You can still send it")
        answer(page)
        wait_for(page, "your answer is kept and marked as late")
    assert fake.labels[0]["late"]


# --- two tabs ---


def second_tab(first: Any, fake: Fake) -> Any:
    """Another tab on the same item, which has heard that reply A was put second in the first one."""
    second = watched(first.context.new_page())
    second.goto(fake.url)
    second.wait_for_selector(".reply")
    first.keyboard.press("2")
    second.locator(".slot[data-place='2'] [data-letter=A]").wait_for()
    return second


def test_two_tabs_show_one_answer_and_the_second_submit_is_explained(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as first:
        second = second_tab(first, fake)
        second.bring_to_front()
        second.locator(".reply").nth(1).focus()
        second.keyboard.press("1")
        first.locator(".slot[data-place='1'] [data-letter=B]").wait_for()
        first.bring_to_front()
        first.keyboard.press("Enter")
        wait_for(first, "Second?")
        wait_for(second, "You have sent this answer from another tab.")
        assert second.locator("form.locked").count() == 1
        second.get_by_role("button", name="Next item").click()
        wait_for(second, "Second?")
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1]]


def test_two_tabs_that_submit_at_once_make_one_label(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as first:
        second = second_tab(first, fake)
        fake.lock.acquire()  # both are on their way before either is answered
        click = """(() => {
          document.querySelectorAll(".reply")[1].querySelector(".pick button").click();
          document.querySelector(".side .main").click();
        })()"""
        first.evaluate(click)
        second.evaluate(click)
        fake.lock.release()
        wait_for(first, "Second?")
        second.get_by_text("Second?").or_(second.get_by_text("You have sent this answer")).first.wait_for()
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1]] and fake.conflicts == []


@pytest.mark.parametrize("choice", ["Use the one on this page instead", "Keep the first and go on"])
def test_a_conflict_loses_neither_answer(browser: Any, fake: Fake, choice: str) -> None:
    """The same id has arrived with another body: the person decides which of the two counts."""
    with visitor(browser, fake) as page:
        page.keyboard.press("2")
        other = {"ranks": [1, 1], "verdict": None, "strength": None, "reason": "", "flags": [[], []], "text": None}
        fake.keep(draft(page)["client_id"], 0, other, None)
        answer(page, "1")
        wait_for(page, "You have already answered this item")
        assert [kept["positions"]["ranks"] for kept in fake.conflicts] == [[2, 1]]
        page.get_by_role("button", name=choice).click()
        wait_for(page, "Second?")
    ranks = [label["positions"]["ranks"] for label in fake.labels]
    assert ranks == ([[1, 1], [2, 1]] if choice.startswith("Use") else [[1, 1]])
    assert [label["supersedes"] for label in fake.labels][1:] == [1] * (len(ranks) - 1)


# --- hostile replies ---

HOSTILE = """<script>window.taken = 1</script><img src="http://evil.example/x.png" onerror="window.taken = 2">
<style>body { display: none } * { position: fixed }</style></div></section></pre></body>
<a href="javascript:window.taken=3">raw</a> [click](javascript:window.taken=4) [data](data:text/html,<script>1</script>)
![picture](http://evil.example/y.png) <iframe src="http://evil.example"></iframe> <svg onload="window.taken=5">
[link](https://example.org/page) <form action="/logout"><button id="logout" name="cookie">x</button></form>
<http://evil.example/auto> <div style="position:fixed;inset:0" id="work" class="notice">over everything</div>

| a | b |
|:-:|---|
| <b onclick="window.taken=6">x</b> | y |

```html
</code></pre><script>window.taken = 7</script>
```
"""


def test_a_hostile_reply_runs_nothing_fetches_nothing_and_stays_in_its_box(browser: Any, fake: Fake) -> None:
    wide = "W" * 5000 + " " + "<b>" * 200
    fake.items = [rank_item(HOSTILE, HOSTILE, wide, "# Big\n" + "\u202e" + "é̂" * 400, "")]
    fake.guidelines = HOSTILE
    for options in (DESKTOP, {"viewport": {"width": 375, "height": 740}}):
        context = browser.new_context(**options)
        page = watched(context.new_page())
        requested: list[str] = []
        page.on("request", lambda request, seen=requested: seen.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        sign_in(page, fake)
        said = page.locator(".said")
        said.first.wait_for()
        assert (
            page.locator(".said :is(script, style, img, svg, iframe, form, button, input), .rendered div").count() == 0
        )
        ours = ".rendered, .plain, .aside, .keyword, .string, .number, .name, .comment"
        assert page.locator(f".said *[style], .said *[class]:not({ours}), .said *[id]").count() == 0
        hrefs = page.locator(".said a[href], .prose a[href]").evaluate_all("all => all.map((a) => a.href)")
        assert set(hrefs) == {"https://example.org/page", "http://evil.example/auto"}
        rels = page.locator(".said a, .prose a").evaluate_all("all => all.map((a) => [a.rel, a.target])")
        assert set(map(tuple, rels)) == {("noopener noreferrer nofollow", "_blank")}
        for link in page.locator(".said a:not([href])").all():
            link.click()
        assert page.evaluate("window.taken") is None
        assert {url.split("/")[2] for url in requested} == {fake.url.split("/")[2]}
        assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]
        page.get_by_role("button", name="Plain text").click()
        assert page.locator(".reply .plain").first.text_content() == HOSTILE
        page.keyboard.press("2")  # and the page still works
        assert page.locator(".slot").nth(1).inner_text().endswith("A")
        assert page.complaints == []
        context.close()


def test_were_the_sanitiser_broken_the_policy_still_blocks(browser: Any, fake: Fake) -> None:
    context = browser.new_context()
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: EXPECTED.search(message.text) or told.append(message.text))
    sign_in(page, fake)
    page.evaluate(
        """document.querySelector('.said').innerHTML = '<img src="http://evil.example/x" onerror="window.taken = 1">'
           + '<p style="position: fixed" onclick="window.taken = 2" id="probe">x</p><iframe src="http://evil.example"></iframe>'"""
    )
    page.locator("#probe").click()
    assert page.evaluate("[window.taken, getComputedStyle(document.getElementById('probe')).position]") == [
        None,
        "static",
    ]
    assert sum("Content Security Policy" in text for text in told) >= 4
    context.close()


def test_a_phone_held_sideways_leaves_the_page_to_the_replies(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, viewport={"width": 740, "height": 360}, has_touch=True, is_mobile=True) as page:
        page.locator(".reply").first.wait_for()
        assert page.locator(".side").evaluate("node => getComputedStyle(node).position") == "static"
        assert page.evaluate("document.documentElement.scrollWidth") <= 740
