"""The pages and the real server together, as people use them: invitation, labels of each task, history, dashboard."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from label_page import DESKTOP, PHONE, order, watched
from sqlalchemy import select

from plaudit.label.db.database import open_project, snapshot, writing
from plaudit.label.db.schema import label, lease, person
from plaudit.label.people import make_invite
from plaudit.label.queue import leases
from plaudit.label.queue.items import Draft, add_items
from plaudit.label.queue.settings import log, settle
from plaudit.label.web.app import create_app
from plaudit.records import Completion, Message, Prompt

PASSWORD = "a long password"


def draft(number: int, task: str, *replies: str) -> Draft:
    """The sources must never be seen by an annotator's browser."""
    sources = tuple(f"secret-{k}" for k in range(len(replies)))
    return Draft(
        task=task,
        prompt=Prompt(f"secret-{number}", (Message("user", f"Question {number}?"),), "secret-kind", "train"),
        replies=tuple(map(Completion, replies)),
        sources=sources,
        source_file="secret.jsonl",
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The real application on SQLite, on a port of this machine, with one item of each task."""
    engine = open_project(tmp_path / "labels.sqlite", "Kind replies")
    with writing(engine) as connection:
        settle(connection, {"guidelines": "Be **fair**."})
    add_items(
        engine, [draft(1, "rank", "one", "two", "three"), draft(2, "compare", "left", "right"), draft(3, "write", "x")]
    )
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(create_app(engine, url=url), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def invited(name: str, role: str = "annotator") -> str:
        with writing(engine) as connection:
            return f"{url}/invite/{make_invite(connection, name, role)}"

    def labels() -> list[dict[str, Any]]:
        with snapshot(engine) as connection:
            rows = connection.execute(select(label, lease.c.task).join(lease, lease.c.id == label.c.lease)).all()
        return [{**row._mapping, "body": json.loads(row.body)} for row in rows]

    yield SimpleNamespace(url=url, engine=engine, invited=invited, labels=labels)
    server.should_exit = True
    thread.join()
    engine.dispose()


def join(page: Any, link: str) -> None:
    page.goto(link)
    page.get_by_label("Choose a password").fill(PASSWORD)
    page.get_by_role("button", name="Join").click()


def wait_for(page: Any, text: str) -> None:
    page.get_by_text(text).first.wait_for()


def texts(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".reply .rendered").all_inner_texts()]


def test_an_annotator_from_the_invitation_to_a_correction(browser: Any, service: Any) -> None:
    context = browser.new_context(**DESKTOP)
    context.set_default_timeout(60000)
    page = watched(context.new_page())
    seen: list[str] = []
    page.on("response", lambda answer: answer.url.endswith((".js", ".css", ".svg")) or seen.append(_text(answer)))
    join(page, service.invited("ann"))
    page.wait_for_selector(".reply")
    assert page.locator("#guidelines strong").inner_text() == "fair"
    assert page.locator("#progress-text").inner_text() == "0 done, 3 left"
    shown = texts(page)
    page.keyboard.press("1")
    page.reload()  # the same item, in the same order, with the draft
    page.wait_for_selector(".reply")
    assert texts(page) == shown and order(page)[0] == "A"
    for key in ("ArrowRight", "2", "2", "Enter"):
        page.keyboard.press(key)
    wait_for(page, "Question 2?")
    page.keyboard.press("2")
    better = texts(page)[1]
    page.keyboard.press("Enter")
    wait_for(page, "Question 3?")
    page.get_by_label("Edit this reply until it is the ideal one").fill("y")
    page.get_by_role("button", name="Submit").click()
    wait_for(page, "Nothing is left for you to label.")

    ranked, compared, written = service.labels()
    ranks = dict(zip(("one", "two", "three"), ranked["body"]["ranks"], strict=True))
    assert ranks == {shown[0]: 1, shown[1]: 2, shown[2]: 2}
    assert dict(zip(("left", "right"), compared["body"]["ranks"], strict=True))[better] == 1
    assert written["body"]["text"] == "y"

    page.get_by_role("link", name="My history").first.click()
    entries = page.locator(".entry")
    page.get_by_label("Search in texts").fill("question 1?")
    page.keyboard.press("Enter")
    page.get_by_text("Question 2?").wait_for(state="detached")
    entries.nth(1).wait_for(state="detached")
    entries.nth(0).wait_for()  # found by the server
    assert entries.count() == 1
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Question 2?").first.wait_for()
    entry = entries.nth(2)
    entry.locator("summary").click()
    entry.get_by_role("button", name="Correct this answer").click()
    page.keyboard.press("3")
    page.get_by_role("button", name="Correct", exact=True).click()
    wait_for(page, "Your correction is kept.")
    corrected = service.labels()[-1]
    assert corrected["supersedes"] == ranked["seq"]
    assert dict(zip(("one", "two", "three"), corrected["body"]["ranks"], strict=True))[shown[0]] == 2
    assert "secret" not in "".join(seen)

    page.get_by_role("button", name=re.compile("Sign out")).click()
    page.wait_for_url(service.url + "/login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("button", name="Sign in").click()
    assert "wrong" in page.get_by_role("alert").inner_text()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    wait_for(page, "Nothing is left for you to label.")
    page.go_back()  # not to a form that would be sent again
    wait_for(page, "Nothing is left for you to label.")
    assert page.complaints == []
    context.close()


def _text(answer: Any) -> str:
    return "" if answer.status in (204, 303) else str(answer.text())


def test_the_same_item_on_two_devices(browser: Any, service: Any) -> None:
    """Two browsers that know nothing of each other: one lease, one order, and the later answer is asked about."""
    pages = []
    for options in (DESKTOP, PHONE):
        context = browser.new_context(**options)
        context.set_default_timeout(60000)
        pages.append(watched(context.new_page()))
    first, second = pages
    join(first, service.invited("ann"))
    first.wait_for_selector(".reply")
    second.goto(service.url + "/login")
    second.get_by_label("Name").fill("ann")
    second.get_by_label("Password").fill(PASSWORD)
    second.get_by_role("button", name="Sign in").click()
    second.wait_for_selector(".reply")
    assert texts(first) == texts(second)
    for page, keys in ((first, "123"), (second, "321")):
        for key in (*keys, "Enter"):
            page.keyboard.press(key)
        if page is second:
            wait_for(page, "You have already answered this item")
            assert len(service.labels()) == 1  # the first answer counts until somebody says otherwise
            page.get_by_role("button", name="Use the one on this page instead").click()
        wait_for(page, "Question 2?")
    one, two = service.labels()
    assert two["supersedes"] == one["seq"] and one["order"] == two["order"]
    assert one["body"]["ranks"] == [4 - rank for rank in two["body"]["ranks"]]
    for page in pages:
        assert page.complaints == []
        page.context.close()


def test_an_admin_invites_somebody_and_changes_the_project(browser: Any, service: Any) -> None:
    context = browser.new_context(**DESKTOP)
    context.set_default_timeout(60000)
    page = watched(context.new_page())
    join(page, service.invited("mira", "admin"))
    page.get_by_text("labels given").first.wait_for()  # computed by a process of its own
    rooms = page.locator(".rooms")
    rooms.get_by_role("link", name="People").click()
    page.get_by_label("Name", exact=True).fill("bo")
    page.get_by_role("button", name="Make an invitation link").click()
    page.locator("#invite-link").wait_for()
    link = page.locator("#invite-link").input_value()
    rooms.get_by_role("link", name="Settings").click()
    page.get_by_label("Guidelines (Markdown)").fill("Be **kind**.")
    page.get_by_label("People for each item").fill("2")
    page.get_by_role("button", name="Save").click()
    wait_for(page, "The settings are saved.")

    rooms.get_by_role("link", name="Export").click()
    page.get_by_label("Format").select_option("ledger")
    page.get_by_role("button", name="Export").click()
    page.get_by_text("There is nothing to export: 0 rows").wait_for()

    other = browser.new_context(**DESKTOP)
    bo = watched(other.new_page())
    join(bo, link)
    bo.wait_for_selector(".reply")
    assert bo.locator("#guidelines strong").inner_text() == "kind"
    assert bo.get_by_role("link", name="Dashboard").count() == 0
    rooms.get_by_role("link", name="People").click()
    page.get_by_role("button", name="Refresh").click()
    page.get_by_role("button", name="Disable bo").click()
    wait_for(page, "bo can no longer sign in.")
    bo.get_by_role("button", name="Skip").click()
    wait_for(bo, "You are signed out.")
    assert page.complaints == [] and bo.complaints == []
    context.close()
    other.close()


def test_an_admins_list_comes_once_however_often_it_is_asked_for(browser: Any, service: Any) -> None:
    add_items(service.engine, [draft(number, "write") for number in range(4, 25)])
    context = browser.new_context(**DESKTOP)
    context.set_default_timeout(60000)
    page = watched(context.new_page())
    join(page, service.invited("mira", "admin"))
    page.locator(".rooms").get_by_role("link", name="Items").click()
    entries = page.locator("details.entry")
    entries.nth(19).wait_for()
    late: list[Any] = []
    page.route("**/api/admin/items?after=*", lambda route: late.append(route))
    page.get_by_role("button", name="Show more items").dblclick()
    page.get_by_label("Search in texts").fill("question 2?")
    page.keyboard.press("Enter")
    entries.nth(19).wait_for(state="detached")
    page.get_by_label("Search in texts").fill("")
    page.keyboard.press("Enter")
    entries.nth(19).wait_for()
    assert len(late) == 1
    late[0].continue_()  # for a list that was left, and came back
    page.wait_for_load_state("networkidle")
    assert entries.count() == 20
    page.unroute("**/api/admin/items?after=*")
    page.get_by_role("button", name="Show more items").click()
    entries.nth(23).wait_for()
    assert entries.count() == 24 and page.complaints == []
    context.close()


def test_an_admin_reads_what_everybody_said_of_an_item_and_acts_on_it(browser: Any, service: Any) -> None:
    for name, ranks in (("ann", (1, 2, 3)), ("bo", (3, 2, 1))):
        with writing(service.engine) as connection:
            settle(connection, {"overlap": 2})
            make_invite(connection, name, "annotator")
            who = connection.execute(select(person.c.id).where(person.c.name == name)).scalar_one()
            claimed = leases.claim(connection, who, "rank")
            assert claimed is not None
            sent = {"ranks": [ranks[reply] for reply in claimed.order], "reason": f"as {name} sees it"}
            leases.submit(connection, who, claimed.lease, f"client-{name}", sent)
    context = browser.new_context(**DESKTOP)
    context.set_default_timeout(60000)
    page = watched(context.new_page())
    page.on("dialog", lambda dialog: dialog.accept())
    join(page, service.invited("mira", "admin"))
    page.locator(".rooms").get_by_role("link", name="Items").click()
    page.locator("details.entry").nth(2).wait_for()
    other = page.get_by_text("Question 2?")
    page.get_by_label("Which").select_option("disagree")
    page.wait_for_url(re.compile("#items\\?only=disagree$"))
    other.wait_for(state="detached")
    page.locator(".entry summary").click()
    assert page.locator(".entry .said-by").inner_text() == "ann: A > B > C; bo: C > B > A"
    page.locator(".entry tbody tr").nth(1).wait_for()  # they are fetched once the entry is open
    rows = [row.inner_text().split("\t") for row in page.locator(".entry tbody tr").all()]
    assert [[row[0], *row[2:5]] for row in rows] == [["ann", "1", "2", "3"], ["bo", "3", "2", "1"]]
    assert "as bo sees it" in rows[1] and page.locator(".reply header").first.inner_text() == "A\nsecret-0"
    page.get_by_role("button", name="Ask one more person").click()
    wait_for(page, "One person more is asked")
    page.get_by_role("button", name="Ask somebody else instead of bo").click()
    page.get_by_text("no: others are asked").wait_for()
    page.get_by_role("button", name="Withdraw this item").click()
    page.get_by_role("button", name="Put back").wait_for()
    page.get_by_label("Search in texts").fill("question 2?")
    page.get_by_label("Which").select_option("")
    other.wait_for()
    assert page.locator("details.entry").count() == 1
    page.go_back()  # the filters are in the address
    wait_for(page, "There is no such item.")  # what counts no more contradicts nobody
    with snapshot(service.engine) as connection:
        done = [(row["what"], row["detail"].get("item") is not None) for row in log(connection)]
    assert done[:3] == [("withdraw", True), ("ask others", False), ("another opinion", True)]
    assert page.complaints == []
    context.close()
