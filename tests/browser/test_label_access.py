"""Every page of the labelling service in both schemes and on a phone: it fits, and axe-core finds nothing wrong.

axe-core is no part of Plaudit: `npm install --no-save axe-core@4.14.1` puts it where this test finds it, or AXE_CORE
names its axe.min.js.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from label_page import DESKTOP, PHONE, watched
from sqlalchemy import Engine, insert

from plaudit.label import people
from plaudit.label.db.database import open_project, writing
from plaudit.label.db.schema import person
from plaudit.label.queue import leases
from plaudit.label.queue.items import Draft, add_items
from plaudit.label.queue.settings import settle
from plaudit.label.web.app import create_app
from plaudit.records import Completion, Message, Prompt

AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
ROOMS = ("progress", "people", "quality", "items", "sources", "settings", "export")
TEXTS = (
    "**Short** and to the point: $x^2 + 1$.",
    "سلام، این پاسخ از راست به چپ است.\n\n```python\ndef f(x):\n    return x + 1\n```",
    "A long word: " + "a" * 200 + "\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
    "1. first\n2. second\n\n> quoted, with [a link](https://example.org)",
)


def item(number: int, count: int, task: str = "rank", gold: tuple[int, ...] | None = None) -> Draft:
    asked = (Message("user", f"Question {number}: what is to be done about it?"),)
    replies = tuple(Completion(f"{TEXTS[k % 4]} {k}") for k in range(count))
    sources = tuple(("sft", "ppo")[k % 2] for k in range(count))
    return Draft(
        task, Prompt(f"p{number}", asked, "how", "train"), replies, sources, gold=gold, source_file="file.jsonl"
    )


def labelled(engine: Engine, names: list[str]) -> None:
    """Everybody answers what they get: some tie, some flag, one skips."""
    for number, name in enumerate(names):
        with writing(engine) as connection:
            row = {"name": name, "role": "annotator", "active": True, "created": time.time()}
            who = connection.execute(insert(person).values(row).returning(person.c.id)).scalar_one()
        for turn in range(8):
            with writing(engine) as connection:
                claimed = leases.claim(connection, who, "rank")
                if claimed is None:
                    break
                if turn == 5:
                    leases.release(connection, who, claimed.lease)
                    continue
                ranks = [1 + (own + number) % 3 for own in range(len(claimed.order))]
                flags = [["unsafe"] if own == turn else [] for own in range(len(claimed.order))]
                sent = {"ranks": ranks, "flags": flags, "reason": "the others say less"}
                leases.submit(connection, who, claimed.lease, f"client-{name}-{turn}", sent)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A project that has been under way for a while, on a port of this machine."""
    engine = open_project(tmp_path_factory.mktemp("access") / "labels.sqlite", "Kind replies")
    with writing(engine) as connection:
        settle(connection, {"guidelines": "# Be fair\n\nTrue before *short*.", "overlap": 2, "gold_rate": 0.2})
    add_items(engine, [item(number, 4) for number in range(8)])
    add_items(engine, [item(20, 3, gold=(1, 2, 3)), item(22, 2, "compare"), item(23, 1, "write")])
    labelled(engine, [f"annotator {number:02}" for number in range(14)])
    add_items(engine, [item(30, 12), item(31, 4)])
    with writing(engine) as connection:
        settle(connection, {"gold_rate": 0.0})
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(create_app(engine, url=url), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def signed_in(context: Any, name: str, role: str) -> None:
        with writing(engine) as connection:
            people.make_invite(connection, name, role)
            who = connection.execute(person.select().where(person.c.name == name)).one().id
            token = people.begin_session(connection, who)
        cookie = create_cookie(engine)
        context.add_cookies([{"name": cookie, "value": token, "url": url}])

    def invited(name: str) -> str:
        with writing(engine) as connection:
            return f"{url}/invite/{people.make_invite(connection, name, 'annotator')}"

    yield SimpleNamespace(url=url, signed_in=signed_in, invited=invited)
    server.should_exit = True
    thread.join()
    engine.dispose()


def create_cookie(engine: Engine) -> str:
    from plaudit.label.db.schema import project
    from plaudit.label.web.shared.service import session_cookie

    with engine.connect() as connection:
        return session_cookie(connection.execute(project.select()).one().secret)


def every_page(page: Any, service: Any, name: str) -> Iterator[str]:
    """The page goes from one to the next; each is named when it is there to be looked at."""
    page.goto(service.url + "/login")
    yield "login"
    page.goto(service.invited(f"{name} guest"))
    yield "invite"
    service.signed_in(page.context, f"{name} ann", "annotator")
    page.goto(service.url + "/")
    for _ in range(4):  # one to compare, one to write, twelve and four to rank, in whatever order they come
        page.wait_for_selector(".item")
        shown, replies = page.query_selector(".item"), page.locator(".reply").count()
        yield f"label {replies} replies"
        if replies == 4:
            page.get_by_role("button", name="Cannot judge").click()
            page.get_by_role("button", name="Submit").click()
        else:
            page.get_by_role("button", name="Skip").click()
            page.get_by_text("You skipped an item").wait_for()
        shown.wait_for_element_state("hidden")  # gone from the page
    yield "label with a notice"
    page.goto(service.url + "/history")
    page.locator(".entry summary").first.click()
    yield "history"
    page.get_by_role("button", name="Correct this answer").click()
    page.locator(".entry .item").wait_for()
    yield "history with a correction"
    service.signed_in(page.context, f"{name} mira", "admin")
    page.goto(service.url + "/admin")
    page.locator(".tiles").wait_for()
    for room in ROOMS:
        page.locator(f".rooms a[href='#{room}']").click()
        if room == "items":
            page.locator(".found .entry").first.wait_for()
            yield "items"
            page.locator(".found summary").first.click()
            page.get_by_role("table", name="Answers").wait_for()
        yield f"room {room}"
        if room == "people":
            page.get_by_role("button", name="Change annotator 00").click()
            yield "a person"
            page.get_by_role("button", name="Close").click()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["1280", "375"])
def test_axe_finds_nothing_and_every_page_fits(browser: Any, service: Any, options: Any, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip(f"axe-core is not at {AXE}: npm install --no-save axe-core@4.14.1")
    context = browser.new_context(**options, color_scheme=scheme)
    context.set_default_timeout(120_000)
    page = watched(context.new_page())
    width, axe, found = options["viewport"]["width"], AXE.read_text(encoding="utf-8"), []
    for name in every_page(page, service, f"{width} {scheme}"):
        page.evaluate(axe)
        for rule in page.evaluate("axe.run().then((found) => found.violations)"):
            found.append((name, rule["id"], [node["html"][:120] for node in rule["nodes"][:3]]))
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append((name, "wider than the page", []))
        plain = page.locator(".conversation .turn .plain:visible")
        if plain.count() and plain.first.evaluate("(text) => text.clientWidth") < width / 2:
            found.append((name, "a prompt that the switch beside it squeezes", []))
    assert found == []
    assert [told for told in page.complaints if not re.search("axe", told)] == []
    context.close()
