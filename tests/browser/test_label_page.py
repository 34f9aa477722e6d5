"""The annotator's page in a real browser: ranking by mouse, finger and keyboard, undo, drafts, history, other tasks."""

from collections.abc import Iterator
from typing import Any

import pytest
from label_fake import PASSWORD, Fake, rank_item, serving
from label_page import DESKTOP, PHONE, drag, order, pressed, visitor, watched

FOUR = ("First reply.", "Second reply, which is **longer**.", "Third.", "Fourth:\n\n- a\n- b")


@pytest.fixture
def fake() -> Iterator[Fake]:
    items = [
        rank_item("How do I boil an egg?", *FOUR),
        rank_item("What is rain?", "Water.", "Dunno."),
        rank_item("And now?", "x", "y"),
    ]
    with serving(Fake(items)) as one:
        yield one


def sent(fake: Fake) -> dict[str, Any]:
    """What the newest label says, without what was not touched."""
    return {key: value for key, value in fake.labels[-1]["positions"].items() if value not in (None, "")}


def wait_for(page: Any, text: str) -> None:
    page.get_by_text(text).first.wait_for()


# --- ranking ---


def test_rank_by_mouse_with_a_tie_and_between(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        assert order(page) == ["", "", "", "", "ABCD"]
        drag(page, "C", 1)
        drag(page, "A", 2)
        drag(page, "D", 2)  # into the middle of a place that is taken: a tie
        assert order(page) == ["C", "AD", "", "", "B"]
        drag(page, "B", 2, at=0.1)  # at its upper edge: between the first and the second
        assert order(page) == ["C", "B", "AD", "", ""]
        drag(page, "A", 4, source=".replies")  # by the letter on the card
        assert order(page) == ["C", "B", "D", "A", ""]
        page.get_by_role("button", name="Submit").click()
        wait_for(page, "What is rain?")
    assert sent(fake)["ranks"] == [4, 2, 1, 3]


def test_escape_and_a_drop_outside_change_nothing(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        drag(page, "A", 1)
        page.locator(".board [data-letter=A]").hover()
        page.mouse.down()
        box = page.locator(".slot[data-place='3']").bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20, steps=3)
        assert page.locator(".ghost").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".ghost").count() == 0
        page.mouse.up()
        assert order(page)[:3] == ["A", "", ""]
        page.locator(".board [data-letter=A]").hover()
        page.mouse.down()
        page.mouse.move(300, 300, steps=3)
        page.mouse.up()
        assert order(page)[:3] == ["A", "", ""]
        assert page.locator(".ghost, .held, .over").count() == 0


def test_rank_by_finger_on_a_phone(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, **PHONE) as page:
        touch = page.context.new_cdp_session(page)

        def move(kind: str, x: float, y: float) -> None:
            points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        def slide(letter: str, place: int) -> None:
            start = page.locator(f".board [data-letter={letter}]").bounding_box()
            end = page.locator(f".slot[data-place='{place}']").bounding_box()
            x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
            to_x, to_y = end["x"] + end["width"] / 2, end["y"] + end["height"] / 2
            move("touchStart", x, y)
            for part in range(1, 16):  # in one leap it is no drag to Chromium, but half of a double tap
                move("touchMove", x + part / 15 * (to_x - x), y + part / 15 * (to_y - y))
            move("touchEnd", 0, 0)

        before = page.evaluate("scrollY")
        slide("B", 1)
        slide("A", 3)
        slide("D", 3)
        assert page.evaluate("scrollY") == before  # the finger dragged, it did not scroll
        assert order(page) == ["B", "", "AD", "", "C"]
        page.locator(".reply").nth(2).get_by_role("button", name="Place 2 for reply C").tap()
        page.get_by_role("button", name="Submit").tap()
        wait_for(page, "What is rain?")
    assert sent(fake)["ranks"] == [3, 1, 2, 3]


def test_everything_by_keyboard_alone(browser: Any, fake: Fake) -> None:
    """From the login to the second item, without a click."""
    context = browser.new_context(**DESKTOP)
    page = watched(context.new_page())
    press = page.keyboard.press
    page.goto(fake.url + "/login")
    page.keyboard.type("ann")
    press("Tab")
    page.keyboard.type(PASSWORD)
    press("Enter")
    page.wait_for_selector(".reply")
    for key in ("2", "1", "4"):  # A second, B first, C fourth; each digit goes on to the next reply
        press(key)
    press("Enter")  # one is missing: nothing is sent, and the focus is there
    wait_for(page, "D has no place yet.")
    assert fake.labels == []
    press("3")
    assert order(page) == ["B", "A", "D", "C", ""]
    press("ArrowUp")  # D joins A
    assert order(page) == ["B", "AD", "", "C", ""]
    press("ArrowUp")  # and passes it
    assert order(page) == ["B", "D", "A", "C", ""]
    press("ArrowDown")
    press("ArrowDown")
    press("ArrowLeft")  # to C
    press("ArrowUp")
    assert order(page) == ["B", "A", "CD", "", ""]
    press("0")
    assert order(page) == ["B", "A", "D", "", "C"]
    press("u")
    press("Control+z")
    assert order(page) == ["B", "A", "D", "C", ""]
    press("?")
    assert page.locator("dialog[open]").count() == 1
    press("b")  # the list of keys is open: no key does anything below it
    press("Escape")
    assert pressed(page) == []
    press("Enter")
    wait_for(page, "What is rain?")
    assert page.complaints == []
    context.close()
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1, 4, 3]]


def test_moves_are_announced(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("1")
        page.keyboard.press("1")
        live = page.locator("#live")
        live.filter(has_text="Reply B: place 1, tied with A.").wait_for(state="attached")
        page.keyboard.press("u")
        live.filter(has_text="Undone.").wait_for(state="attached")
        assert page.locator(".reply").nth(0).get_attribute("aria-label") == "Reply A, place 1 of 4"
        assert page.locator(".reply").nth(1).get_attribute("aria-label") == "Reply B, no place yet"


def test_single_keys_can_be_switched_off(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("?")
        page.locator("#keys-on").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        assert order(page) == ["", "", "", "", "ABCD"]
        page.reload()
        page.wait_for_selector(".reply")
        page.keyboard.press("1")
        assert order(page) == ["", "", "", "", "ABCD"]


def test_verdict_strength_flags_and_reason(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("1")
        page.keyboard.press("c")  # cannot judge: places go
        assert (order(page)[-1], pressed(page)) == ("ABCD", ["Cannot judge"])
        page.keyboard.press("u")
        page.get_by_role("button", name="All bad").click()
        for key in ("4", "3", "2"):
            page.keyboard.press(key)
        page.get_by_role("button", name="very clearly").click()
        page.get_by_role("checkbox", name="unsafe").nth(1).check()
        page.get_by_role("checkbox", name="too long").nth(1).check()
        page.get_by_label("Why? (optional)").fill("B tells how to burn oneself")
        page.keyboard.press("Control+Enter")
        wait_for(page, "What is rain?")
    assert fake.labels[0]["positions"] == {
        "ranks": [1, 4, 3, 2],
        "verdict": "all_bad",
        "strength": 3,
        "reason": "B tells how to burn oneself",
        "flags": [[], ["unsafe", "too long"], [], []],
        "text": None,
    }


def test_keys_in_the_reason_are_text_and_enter_after_a_click_submits(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.get_by_label("Why? (optional)").press_sequentially("1 b c u 0")
        assert (order(page)[-1], pressed(page)) == ("ABCD", [])
        for index, place in enumerate((1, 2, 3, 4)):
            page.locator(".reply").nth(index).get_by_role("button", name=f"Place {place} for").click()
        page.keyboard.press("Enter")  # not: the button just clicked, once more
        wait_for(page, "What is rain?")
    assert sent(fake)["ranks"] == [1, 2, 3, 4] and sent(fake)["reason"] == "1 b c u 0"


def test_skip_gives_the_item_back(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.get_by_role("button", name="Skip").click()
        wait_for(page, "What is rain?")
    assert fake.released == ["lease-0"] and fake.labels == []


# --- drafts ---


def test_a_reload_in_the_middle_loses_nothing(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("2")
        page.keyboard.press("1")
        page.get_by_role("checkbox", name="untrue").first.check()
        page.get_by_label("Why? (optional)").fill("because")
        page.reload()
        page.wait_for_selector(".reply")
        assert order(page) == ["B", "A", "", "", "CD"]
        assert page.get_by_label("Why? (optional)").input_value() == "because"
        assert page.get_by_role("checkbox", name="untrue").first.is_checked()
        page.get_by_role("button", name="Undo").click()  # the past is kept too
        page.get_by_role("button", name="Undo").click()
        assert order(page) == ["", "A", "", "", "BCD"]


def test_the_back_button_is_safe(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("1")
        page.get_by_role("link", name="My history").click()
        wait_for(page, "You have not answered anything yet.")
        page.go_back()
        page.wait_for_selector(".reply")
        assert order(page)[0] == "A"
        for key in ("ArrowRight", "2", "3", "4", "Enter"):
            page.keyboard.press(key)
        wait_for(page, "What is rain?")
        page.get_by_role("link", name="My history").click()
        page.wait_for_selector(".entry")
        page.go_back()
        wait_for(page, "What is rain?")  # not the item that was sent
        assert order(page) == ["", "", "AB"]
    assert len(fake.labels) == 1


# --- other tasks, history ---


def test_compare_two_replies(browser: Any, fake: Fake) -> None:
    fake.items = [rank_item("Which?", "one", "two", task="compare"), rank_item("Next?", "one", "two", task="compare")]
    with visitor(browser, fake) as page:
        page.keyboard.press("Enter")
        wait_for(page, "Choose A, B or “about the same” first.")
        page.keyboard.press("2")
        assert pressed(page) == ["B is better"]
        page.keyboard.press("Enter")
        wait_for(page, "Next?")
        page.get_by_role("button", name="About the same").click()
        page.get_by_role("button", name="slightly").click()
        page.keyboard.press("Enter")
        wait_for(page, "Nothing is left for you to label.")
    assert [label["positions"]["ranks"] for label in fake.labels] == [[2, 1], [1, 1]]
    assert fake.labels[1]["positions"]["strength"] == 1


def test_write_and_edit_the_ideal_reply(browser: Any, fake: Fake) -> None:
    fake.items = [
        rank_item("Explain rain.", task="write", write_text="Rain is watr."),
        rank_item("And snow?", task="write"),
    ]
    with visitor(browser, fake) as page:
        field = page.get_by_label("Edit this reply until it is the ideal one")
        assert field.input_value() == "Rain is watr."
        field.fill("Rain is water 💧.\nIt falls.")
        page.reload()
        page.wait_for_selector("#text")
        assert field.input_value() == "Rain is water 💧.\nIt falls."
        page.get_by_role("button", name="Submit").click()
        wait_for(page, "And snow?")
        page.get_by_label("Write the ideal reply").focus()
        page.keyboard.press("Control+Enter")
        wait_for(page, "The reply is still empty.")
    assert [label["positions"]["text"] for label in fake.labels] == ["Rain is water 💧.\nIt falls."]


def test_history_shows_own_answers_and_corrects_them(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        for key in ("1", "2", "2", "3", "Enter"):
            page.keyboard.press(key)
        wait_for(page, "What is rain?")
        page.goto(fake.url + "/history")
        entry = page.locator(".entry").first
        assert "A > B = C > D" in entry.inner_text() and "corrected" not in entry.inner_text()
        assert entry.get_by_text("Read or correct").is_visible()
        entry.locator("summary").click()
        entry.get_by_role("button", name="Correct this answer").click()
        assert order(page) == ["A", "BC", "D", "", ""]
        page.keyboard.press("2")  # A joins B and C
        page.get_by_role("button", name="Correct", exact=True).click()
        wait_for(page, "Your correction is kept.")
        assert page.locator(".notice").inner_text() == "Your correction is kept."
        assert "A = B = C > D" in page.locator(".entry").first.inner_text()
        assert page.locator(".entry").first.locator(".badge").inner_text() == "corrected"
    first, second = fake.labels
    assert (first["positions"]["ranks"], second["positions"]["ranks"]) == ([1, 2, 2, 3], [1, 1, 1, 2])
    assert second["supersedes"] == first["seq"] and second["client_id"] != first["client_id"]


def test_what_is_chosen_looks_chosen_under_the_pointer_too(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, viewport=DESKTOP["viewport"], reduced_motion="reduce") as page:
        page.keyboard.press("1")
        page.get_by_role("button", name="clearly", exact=True).click()  # the pointer stays on it
        colours = page.locator("button[aria-pressed=true]").evaluate_all(
            "all => all.map((one) => getComputedStyle(one).backgroundColor)"
        )
    assert colours == ["rgb(11, 118, 109)"] * 2


def test_a_key_without_a_place_says_so(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake) as page:
        page.keyboard.press("9")
        wait_for(page, "There is no place 9: there are 4.")
        page.keyboard.press("?")
        assert page.locator("#last-place").inner_text() == "4"


def test_who_is_no_admin_hears_why_this_is_another_page(browser: Any, fake: Fake) -> None:
    with visitor(browser, fake, "/?for=admins") as page:
        wait_for(page, "The dashboard is for admins only.")
        assert page.url == f"{fake.url}/"
        page.reload()
        page.wait_for_selector(".item")
        assert page.get_by_text("for admins only").count() == 0


def test_long_history_comes_in_pieces(browser: Any, fake: Fake) -> None:
    fake.items = [rank_item(f"Prompt {n}?", "a", "b") for n in range(25)]
    ranks = {"ranks": [1, 2], "verdict": None, "strength": None, "reason": "", "flags": [[], []], "text": None}
    for number in range(25):
        fake.keep(f"id-{number}", number, ranks, None)
    with visitor(browser, fake, "/history") as page:
        page.wait_for_selector(".entry")
        assert page.locator(".entry").count() == 20
        page.get_by_role("button", name="Show older answers").dblclick()  # comes once all the same
        wait_for(page, "Prompt 0?")
        page.wait_for_load_state("networkidle")
        assert page.locator(".entry").count() == 25
        assert page.get_by_role("button", name="Show older answers").count() == 0


def test_an_answer_that_comes_late_does_not_replace_what_was_found_meanwhile(browser: Any, fake: Fake) -> None:
    fake.keep("id", 0, {"ranks": [1, 2, 3, 4]}, None)
    late: list[Any] = []
    with visitor(browser, fake) as page:
        page.route("**/api/history?", lambda route: route.continue_() if late else late.append(route))
        page.get_by_role("link", name="My history").first.click()
        page.get_by_label("Search in texts").fill("x")
        page.keyboard.press("Enter")
        page.wait_for_selector(".entry")
        with page.expect_response("**/api/history?") as answered:
            late[0].fulfill(json={"labels": [], "next": None})
        answered.value.finished()
        page.wait_for_timeout(50)  # for what the page makes of it
        assert page.locator(".entry").count() == 1 and page.get_by_text("not answered anything").count() == 0


def test_maths_is_typeset_and_one_switch_shows_every_text_as_it_is(browser: Any, fake: Fake) -> None:
    """The switch holds for the conversation and all replies, for the next item, and after a reload."""
    fake.items = [
        rank_item(r"What is \(x^2\)?", r"It is $x \cdot x$.", r"\(\nosuchmacro\) 2*3*4"),
        rank_item("B", "*b*", "c"),
    ]
    with visitor(browser, fake) as page:
        page.locator(".reply math").first.wait_for()
        assert page.locator(".conversation math, .reply math").count() == 2
        assert page.locator(".reply code.maths").inner_text() == r"\(\nosuchmacro\)"  # what KaTeX cannot read
        switch = page.get_by_role("button", name="Plain text")
        switch.click()
        assert page.locator(".said .plain:visible").all_inner_texts()[:2] == [
            r"What is \(x^2\)?",
            r"It is $x \cdot x$.",
        ]
        page.reload()
        switch.wait_for()
        assert switch.get_attribute("aria-pressed") == "true"
        for key in ("1", "2", "Enter"):
            page.keyboard.press(key)
        page.get_by_text("*b*").wait_for()
        switch.click()
        assert page.locator(".said em").inner_text() == "b"


def test_keys_of_other_keyboards_mean_the_same(browser: Any, fake: Fake) -> None:
    """AZERTY's upper row, Arabic digits, Cyrillic letters, Caps Lock; not Shift with a digit, and no input method."""
    fake.items = [rank_item("A?", "one", "two", "three")]
    with visitor(browser, fake) as page:
        page.locator(".reply").first.wait_for()

        def press(key: str, code: str, **more: Any) -> None:
            event = {"key": key, "code": code, "bubbles": True, "cancelable": True} | more
            page.evaluate("event => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', event))", event)

        press("!", "Digit1", shiftKey=True)
        press("1", "Digit1", isComposing=True)
        assert order(page) == ["", "", "", "ABC"]
        press("é", "Digit2")
        assert order(page) == ["", "A", "", "BC"]
        press("١", "Digit1")
        assert order(page) == ["B", "A", "", "C"]
        press("г", "KeyU")
        assert order(page) == ["", "A", "", "BC"]
        press("B", "KeyB")
        assert pressed(page) == ["All bad"]
        press("я", "KeyZ", ctrlKey=True)
        assert pressed(page) == []
