"""The dashboard and the forms before the login, drawn from made-up numbers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_fake import Fake, rank_item, serving
from label_page import DESKTOP, PHONE, visitor, watched

NASTY = "bo <img src=x onerror='window.taken=1'>"


def share(value: float, spread: float, count: int) -> dict[str, float]:
    return {"share": value, "low": value - spread, "high": value + spread, "n": count}


def person(identity: int, name: str, labels: int, **more: Any) -> dict[str, Any]:
    nothing = (
        "seconds",
        "ties",
        "all_bad",
        "cannot_judge",
        "reliability",
        "too_fast",
        "earlier_wins",
        "first_is_best",
        "longer_wins",
        "gold",
        "self",
        "others",
        "others_but_one",
        "last",
    )
    return (
        {
            "id": identity,
            "name": name,
            "role": "annotator",
            "active": True,
            "labels": labels,
            "week": 0,
            "late": 0,
            "corrected": 0,
            "skipped": 0,
        }
        | dict.fromkeys(nothing)
        | more
    )


DASHBOARD: dict[str, Any] = {
    "name": "Kind replies",
    "generated": 1764000000.0,
    "progress": {
        "items": 1200,
        "wanted": 3600,
        "given": 1800,
        "done": 510,
        "share": 0.5,
        "open": 3,
        "skipped": 4,
        "days_left": 2.53,
        "tasks": [{"task": "rank", "items": 1200, "wanted": 3600, "given": 1800, "done": 510}],
    },
    "days": [{"day": f"2026-10-{day:02}", "labels": 10 * (day % 4), "people": 1} for day in range(1, 31)],
    "people": [
        person(
            2,
            NASTY,
            90,
            seconds={"p10": 8.0, "median": 21.0, "p90": 60.0},
            last=1763999000.0,
            ties=0.1,
            gold=share(0.9, 0.06, 20),
            earlier_wins=share(0.7, 0.05, 300),
            longer_wins=share(0.5, 0.1, 30),
        ),
        person(3, "cleo", 0, active=False),
        person(1, "ann", 0, role="admin"),
    ],
    "agreement": {
        "people": 2,
        "items": 80,
        "pairs": share(0.68, 0.05, 300),
        "best_accuracy": 0.82,
        "alpha": 0.374,
        "alpha_ranks": -0.05,
        "between": [{"first": "ann", "second": NASTY, "pairs": 300, "agreement": 0.68, "kappa": 0.35}],
    },
    "verdicts": {"ranked": 1790, "all_bad": 2, "cannot_judge": 4, "written": 4},
    "flags": [{"flag": "unsafe", "replies": 3}],
    "alarms": [{"level": "bad", "who": NASTY, "what": "too fast", "do": "talk to them"}],
    "sources": [
        {
            "source": "<script>ppo</script>",
            "strength": 0.4,
            "low": 0.2,
            "high": 0.6,
            "win_rate": 0.6,
            "win_low": 0.55,
            "win_high": 0.65,
            "verdicts": 400,
        },
        {
            "source": "sft",
            "strength": -0.4,
            "low": -0.6,
            "high": -0.2,
            "win_rate": 0.4,
            "win_low": 0.35,
            "win_high": 0.45,
            "verdicts": 400,
        },
    ],
    "compare": {
        "first": "ppo",
        "second": "sft",
        "win_rate": 0.62,
        "low": 0.52,
        "high": 0.7,
        "ties": 0.1,
        "labels": 100,
        "prompts": 60,
        "complete": 58,
        "enough": "ppo",
        "more": None,
        "at_equal_length": {"win_rate": 0.55, "low": 0.45, "high": 0.65},
    },
}
NOTHING = DASHBOARD | {
    "progress": dict.fromkeys(("items", "wanted", "given", "done", "open", "skipped"), 0)
    | {"share": 0.0, "days_left": None, "tasks": []},
    "people": [person(1, "ann", 0, role="admin")],
    "agreement": dict.fromkeys(("pairs", "best_accuracy", "alpha", "alpha_ranks"))
    | {"people": 0, "items": 0, "between": []},
    "verdicts": dict.fromkeys(("ranked", "all_bad", "cannot_judge", "written"), 0),
    "flags": [],
    "alarms": [],
    "sources": [],
    "compare": None,
}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake([rank_item("First?", "one", "two")], role="admin", dashboard=DASHBOARD)) as one:
        yield one


def enter(page: Any, room: str) -> None:
    """The room is there: an address that has changed says only that it will be."""
    page.locator(".rooms").get_by_role("link", name=room, exact=True).click()
    page.locator(".rooms a[aria-current=page]", has_text=room).wait_for()


def all_rooms(page: Any) -> str:
    """What the dashboard says, room after room; each has an address."""
    words = []
    for room in ("Progress", "People", "Quality", "Sources", "Settings", "Export"):
        enter(page, room)
        page.wait_for_url(f"**#{room.lower()}")
        words.append(page.locator("#dashboard").inner_text())
    return "\n".join(words)


def test_the_dashboard_says_and_draws_its_numbers(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, "/admin") as page:
        page.wait_for_selector(".tiles")
        tiles = page.locator(".tile .big").all_inner_texts()
        assert tiles == ["1,800 of 3,600", "510 of 1,200", "2.5", "0.37", "68 %"]
        words = all_rooms(page)
        for text in (
            f"{NASTY}: too fast.",
            "To do: talk to them.",
            "Krippendorff's alpha is 0.37 on pairs and −0.05 on ranks",
            "People prefer ppo to sft in 62 % of the comparisons (95 % interval 52 to 70 %",
            "Enough labels: ppo is preferred.",
            "If both had written as much: 55 % (45 to 65 %).",
            "unsafe (3)",
            "21 s",
            "<script>ppo</script>",
            "0.40 (0.20 to 0.60)",
            "no reward model can expect more than 82 %",
        ):
            assert text in words
        enter(page, "People")
        assert "not here yet" in page.get_by_role("row", name="eve").inner_text()  # newer than the numbers
        names = page.locator("[aria-label=People] tbody th")
        assert names.first.inner_text() == NASTY  # most labels first
        page.get_by_role("button", name="Name", exact=True).click()
        assert names.first.inner_text().split() == ["ann", "admin,", "you"]
        page.get_by_role("button", name="Labels", exact=True).click()
        assert names.first.inner_text() == NASTY
        assert page.locator(".bars rect.bar").count() == 30
        heights = page.locator(".bars rect.bar").evaluate_all(
            "all => all.slice(0, 4).map((bar) => +bar.getAttribute('height'))"
        )
        assert heights == [40, 80, 120, 0]  # 10, 20, 30 and no labels
        # gold, position and length of one person, and two plots for each of two sources
        assert page.locator("svg.range").count() == 7
        assert (
            page.locator("svg.range.off").get_attribute("aria-label") == "Earlier reply wins: 70 % (65 to 75, n = 300)"
        )
        dot = page.locator("svg.range").first.locator(".estimate")
        assert dot.get_attribute("cx") == "90.00%"
        assert page.evaluate("window.taken") is None


def test_an_empty_project_has_a_dashboard_too(browser: Any, fake: Fake) -> None:
    fake.dashboard = NOTHING
    with visitor(browser, fake, "/admin") as page:
        page.wait_for_selector(".tiles")
        words = all_rooms(page)
        for text in ("Nothing stands out.", "No two sources have been compared yet.", "No pair of replies was ordered"):
            assert text in words
        assert "NaN" not in words and "null" not in words and "undefined" not in words


def test_what_an_admin_can_do(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, "/admin#people") as page:
        page.get_by_label("Name", exact=True).fill("dora")
        page.get_by_role("button", name="Make an invitation link").click()
        page.locator("#invite-link").wait_for()
        assert page.locator("#invite-link").input_value() == f"{fake.url}/invite/token"
        assert page.get_by_role("button", name="Disable ann").count() == 0  # nobody shuts themselves out
        page.get_by_role("button", name=f"Disable {NASTY}").click()
        page.get_by_text("can no longer sign in. Their labels are kept.").wait_for()
        page.get_by_role("button", name="Enable cleo").click()
        page.get_by_text("cleo can sign in again.").wait_for()
        enter(page, "Settings")
        page.get_by_label("Guidelines (Markdown)").fill("Be kind.")
        page.get_by_label("Flags for a reply").fill("unsafe, too long ,")
        page.get_by_label("People for each item").fill("3")
        page.get_by_role("button", name="Save").click()
        page.get_by_text("The settings are saved.").wait_for()
        enter(page, "Export")
        page.get_by_label("Format").select_option("pairs")
        page.get_by_label("From day").fill("2026-11-01")
        page.get_by_role("checkbox", name="unsafe").check()
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="Export").click()
        page.get_by_text("The export is in your downloads: pairs.jsonl. 3 rows").wait_for()
        assert downloaded.value.suggested_filename == "pairs.jsonl"
        assert Path(downloaded.value.path()).read_text() == "?format=pairs&since=2026-11-01&without_flag=unsafe&wait=10"
        page.get_by_label("Format").select_option("hh")
        page.get_by_role("button", name="Export").click()
        page.get_by_text("there is nothing to export; wait for labels.").wait_for()
        page.get_by_label("Format").select_option("pairs")
        page.get_by_label("To day").fill("2026-10-31")
        page.get_by_role("button", name="Export").click()
        page.get_by_text("“From day” is after “To day”: exchange them.").wait_for()
        page.get_by_label("To day").fill("2026-12-31")
        page.get_by_role("button", name="Export").click()
        page.get_by_text("There is nothing to export: 0 rows; left out: 8 of other dates").wait_for()
    posts = [(path, body) for path, body in fake.posts if path.startswith("/api/admin")]
    assert posts == [
        ("/api/admin/invite", {"name": "dora", "role": "annotator"}),
        ("/api/admin/person/2", {"active": False}),
        ("/api/admin/person/3", {"active": True}),
        ("/api/admin/project", {"guidelines": "Be kind.", "flags": ["unsafe", "too long"], "overlap": 3, "version": 1}),
    ]


def test_a_link_is_copied_where_the_browser_has_no_clipboard_of_its_own(browser: Any, fake: Fake) -> None:
    """As on plain http: `navigator.clipboard` is for secure contexts, and 127.0.0.1 is one."""
    with visitor(browser, fake, "/admin#people") as page:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        name = page.get_by_label("Name", exact=True)
        name.fill("dora")
        page.get_by_role("button", name="Make an invitation link").click()
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("The link is copied.").wait_for()
        name.fill("")
        name.press("Control+V")
        assert name.input_value() == f"{fake.url}/invite/token"


NAMELESS = """all => all.filter((node) => {
  const labelled = node.labels?.length || node.getAttribute("aria-label") || node.getAttribute("aria-labelledby");
  return !labelled && !node.innerText?.trim() && node.type !== "hidden" && node.getAttribute("aria-hidden") !== "true";
}).map((node) => node.outerHTML)"""


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_fits_and_names_its_controls(browser: Any, fake: Fake, options: dict[str, Any]) -> None:
    fake.items += [rank_item("Compare?", "one", "two", task="compare"), rank_item("Write?", task="write")]
    fake.items[0]["replies"] = [f"reply {n}" for n in range(9)]
    fake.keep(
        "before", 1, {"ranks": [1, 2], "verdict": None, "strength": 1, "reason": "r", "flags": [["unsafe"], []]}, None
    )
    width = options["viewport"]["width"]

    def check(page: Any) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
        assert page.locator("button, input, textarea, select, a, summary, progress").evaluate_all(NAMELESS) == []
        assert page.locator("html").get_attribute("lang") == "en" and page.locator("main").count() == 1
        assert page.locator("h1").count() == 1

    with visitor(browser, fake, **options) as page:
        check(page)  # nine replies to rank
        rooms = [(f"/admin#{room}", ".rooms") for room in ("progress", "people", "quality", "settings", "export")]
        for path, ready in (("/history", ".entry"), *rooms, ("/invite/token", "form")):
            page.goto(fake.url + path)
            page.wait_for_selector(ready)
            if path == "/history":
                page.locator("summary").first.click()
                page.get_by_role("button", name="Correct this answer").click()
            check(page)
        for done in ({0, 2}, {0, 1}):  # what is left: two to compare, one to write
            fake.done = done
            page.goto(fake.url)
            page.wait_for_selector(".item")
            check(page)
        login = watched(page.context.new_page())
        login.context.clear_cookies()
        login.goto(fake.url + "/login")
        check(login)


def test_focus_is_always_to_be_seen_and_motion_can_be_off(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, viewport=DESKTOP["viewport"], reduced_motion="reduce") as page:
        unseen = []
        for _ in range(30):
            page.keyboard.press("Tab")
            found = page.evaluate(
                "(() => { const n = document.activeElement, s = getComputedStyle(n);"
                " return [n.tagName, s.outlineStyle, parseFloat(s.outlineWidth), s.transitionDuration]; })()"
            )
            if found[0] != "BODY" and not (found[1] == "solid" and found[2] >= 3 and found[3] == "0s"):
                unseen.append(found)
        assert unseen == []


def test_the_login_says_what_is_wrong_and_keeps_the_name(browser: Any, fake: Fake) -> None:
    context = browser.new_context(**PHONE)
    page = watched(context.new_page())
    page.goto(fake.url + "/login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    assert page.get_by_role("alert").inner_text() == "Name and password do not match."
    assert page.get_by_label("Name").input_value() == "ann"
    page.locator("#password:focus").wait_for()  # a browser gives it with the first drawing
    assert json.dumps(page.complaints) == "[]"
    context.close()
