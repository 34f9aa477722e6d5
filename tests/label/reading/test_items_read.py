"""The page of items: what is found by which filter, a page at a time; and the same search of one's own answers."""

from typing import Any

import pytest
from label_kit import Person, World, draft, written
from sqlalchemy import update

from plaudit.label.db import schema
from plaudit.label.db.database import writing
from plaudit.label.queue.items import add_items
from plaudit.label.reading import items, search
from plaudit.records import Completion, Message, Prompt

GOLD = draft(90, gold=(1, 2, 3, 4))


@pytest.fixture
def team(small_world: World) -> dict[str, Person]:
    return {
        "ann": small_world.join("ann"),
        "bo": small_world.join("bo"),
        "boss": small_world.join("boss", "admin"),
    }


def answer(who: Person, number: int, ranks: Any = (1, 2, 3, 4), **positions: Any) -> dict[str, Any]:
    """The person's next item has to be this one; ranks are those of the replies in the item's own order."""
    claimed = who.claim()
    assert f"Question {number}?" in claimed["item"]["prompt"][0]["html"]
    shown = [int(reply["html"].partition(" reply ")[2][0]) for reply in claimed["item"]["replies"]]
    given = None if ranks is None else [ranks[reply] for reply in shown]
    stored = who.submit(claimed["lease"], given, **positions)
    assert stored.status_code == 200
    return claimed | stored.json()


def numbers(boss: Person, query: str) -> list[str]:
    found = boss.get(f"/api/admin/items?{query}")
    assert found.status_code == 200, found.text
    return [row["prompt_id"].removeprefix("secret-prompt-") for row in found.json()["items"]]


def test_everybodys_answers_stand_side_by_side_with_what_they_replace(
    small_world: World, team: dict[str, Person]
) -> None:
    add_items(small_world.engine, [draft(1, overlap=3)])
    first = answer(team["ann"], 1, reason="because", flags=[["unsafe"], [], [], []])
    team["ann"].post("/api/correct", {"client_id": "client-9", "seq": first["seq"], "positions": {"ranks": [1] * 4}})
    answer(team["bo"], 1, (4, 3, 2, 1), strength=2)
    cy = small_world.join("cy")
    cy.post("/api/release", {"lease": cy.claim()["lease"]})
    (row,) = team["boss"].get("/api/admin/items").json()["items"]
    ann, corrected, bo = row["answers"]
    assert [one["name"] for one in row["answers"]] == ["ann", "ann", "bo"]
    assert (ann["stands"], corrected["stands"]) == (False, True)
    assert (ann["ranks"], corrected["ranks"], bo["ranks"]) == ([1, 2, 3, 4], [1, 1, 1, 1], [4, 3, 2, 1])
    assert (ann["reason"], bo["strength"], [one["name"] for one in row["skipped"]]) == ("because", 2, ["cy"])
    assert sum(flags == ["unsafe"] for flags in ann["flags"]) == 1
    assert row["wanted"] == 3 and row["replies"][0]["source"] == "secret-source-0"
    assert team["ann"].get("/api/admin/items").status_code == 403


def test_each_filter_finds_what_it_says(small_world: World, team: dict[str, Person]) -> None:
    add_items(small_world.engine, [draft(1, overlap=2), draft(2, overlap=2), draft(3, overlap=2), GOLD])
    add_items(small_world.engine, [written(4)])
    ann, bo, boss = team["ann"], team["bo"], team["boss"]
    answer(ann, 1)
    answer(ann, 2, flags=[["unsafe"], [], [], []], reason="Straße")
    answer(bo, 1, (4, 3, 2, 1))
    answer(bo, 2, (1, 1, 3, 4))
    answer(bo, 3, None, verdict="cannot_judge")
    ann.post("/api/release", {"lease": ann.claim()["lease"]})
    people = {row["name"]: row["id"] for row in boss.get("/api/admin/people").json()["people"]}
    wanted = {
        "": ["1", "2", "3", "90", "4"],
        "only=disagree": ["1"],  # a tie contradicts nobody
        "only=gold": ["90"],
        "only=skipped": ["3"],
        f"only=skipped&person={people['bo']}": [],
        "only=unanswered": ["90", "4"],
        "only=cannot_judge": ["3"],
        f"only=cannot_judge&person={people['ann']}": [],
        "only=all_bad": [],
        f"person={people['ann']}": ["1", "2"],
        "flag=unsafe": ["2"],
        f"flag=unsafe&person={people['bo']}": [],
        "flag=untrue": [],
        "task=write": ["4"],
        "kind=secret-kind": ["1", "2", "3", "90", "4"],
        "split=test": [],
        "since=2020-01-01": ["1", "2", "3"],
        "until=2020-01-01": [],
        "order=latest": ["3", "2", "1"],
        "search=QUESTION+3%3F": ["3"],
        "search=stra%C3%9Fe": ["2"],  # in a reason
        "search=ranks": [],  # a key of the JSON is no text
        "search=secret-prompt-4": ["4"],
        "search=a+start": ["4"],
    }
    assert {query: numbers(boss, query) for query in wanted} == wanted
    offers = boss.get("/api/admin/items").json()["offers"]
    assert (offers["kinds"], offers["tasks"], "unsafe" in offers["flags"]) == (["secret-kind"], ["rank", "write"], True)


def test_the_day_of_the_filter_is_the_day_that_is_shown(small_world: World, team: dict[str, Person]) -> None:
    add_items(small_world.engine, [draft(1), draft(2)])
    answer(team["ann"], 1)
    answer(team["ann"], 2)
    last_second = 1_764_028_799.0  # 2025-11-24T23:59:59Z
    with writing(small_world.engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER label_no_update")
        for seq, at in ((1, last_second), (2, last_second + 1)):
            connection.execute(update(schema.label).where(schema.label.c.seq == seq).values(created=at))
    boss = team["boss"]
    assert numbers(boss, "since=2025-11-24&until=2025-11-24") == ["1"]
    assert numbers(boss, "since=2025-11-25&until=2025-11-25") == ["2"]
    own = team["ann"].get(f"/api/history?since={last_second + 1}").json()["labels"]
    assert [row["created"] for row in own] == [last_second + 1]


@pytest.mark.parametrize("text", ["ÉCOLE fermée", 'say "no" \\ 100 %', "перевод", "你好 世界"])
def test_a_search_finds_every_script_and_every_mark(small_world: World, team: dict[str, Person], text: str) -> None:
    prompt = Prompt("p", (Message("user", f"{text}!"),), "k", "train")
    add_items(small_world.engine, [draft(1), draft(2, prompt=prompt, replies=(Completion("x"),) * 4)])
    for typed in (text, text.lower(), text.upper()):
        found = team["boss"].browser.get("/api/admin/items", params={"search": typed}).json()["items"]
        assert [row["prompt_id"] for row in found] == ["p"], typed
    assert not team["boss"].browser.get("/api/admin/items", params={"search": "100_%"}).json()["items"]


def flat(pages: list[list[str]]) -> list[str]:
    return [one for page in pages for one in page]


@pytest.mark.parametrize("order", ["import", "latest"])
def test_pages_hold_every_item_once(
    small_world: World, team: dict[str, Person], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "PAGE", 3)
    monkeypatch.setattr(search, "_CHUNK", 2)
    add_items(small_world.engine, [draft(number) for number in range(8)])
    for number in range(8):
        answer(team["ann"], number, reason="odd" if number % 2 else "even")

    def all_pages(query: str) -> list[list[str]]:
        pages, after = [], ""
        while True:
            found = team["boss"].get(f"/api/admin/items?order={order}&{query}{after}").json()
            pages.append([row["prompt_id"][-1] for row in found["items"]])
            if found["next"] is None:
                return pages
            after = f"&after={found['next']}"

    everything = list("01234567") if order == "import" else list("76543210")
    pages = all_pages("")
    assert [len(page) for page in pages] == [3, 3, 2] and flat(pages) == everything
    assert flat(all_pages("search=odd")) == [one for one in everything if int(one) % 2]
    # A search that takes long gives what it has found so far, and goes on from there.
    monkeypatch.setattr(search, "SECONDS", -1.0)
    slow = all_pages("search=odd")
    assert len(slow) > 2 and flat(slow) == [one for one in everything if int(one) % 2]


def test_one_answer_is_asked_of_somebody_else(small_world: World, team: dict[str, Person]) -> None:
    add_items(small_world.engine, [draft(1)])
    ann, bo, boss = team["ann"], team["bo"], team["boss"]
    seq = answer(ann, 1)["seq"]
    assert bo.claim() is None
    assert boss.post(f"/api/admin/answer/{seq}", {"do": "ask others"}).json() == {"done": True}
    assert boss.post(f"/api/admin/answer/{seq}", {"do": "ask others"}).status_code == 404
    assert boss.post("/api/admin/answer/77", {"do": "ask others"}).status_code == 404
    assert ann.claim() is None
    answer(bo, 1, (4, 3, 2, 1))
    assert numbers(boss, "only=set+aside") == ["1"]
    assert numbers(boss, "only=disagree") == []  # what counts no more contradicts nobody
    (row,) = boss.get("/api/admin/items").json()["items"]
    assert [(one["name"], one["aside"]) for one in row["answers"]] == [("ann", True), ("bo", False)]
    assert boss.get("/api/admin/log").json()["log"][0]["detail"] == {"answer": seq}


def test_ones_own_history_is_searched_in_what_was_shown_and_said_alone(
    small_world: World, team: dict[str, Person]
) -> None:
    add_items(small_world.engine, [draft(number) for number in range(3)])
    for number in range(3):
        answer(team["ann"], number, reason=f"Why {number}")

    def found(search: str) -> list[int]:
        labels = team["ann"].browser.get("/api/history", params={"search": search}).json()["labels"]
        return [int(label["positions"]["reason"][-1]) for label in labels]

    assert found("question") == [2, 1, 0] and found('"question 1"') == [1] and found('"WHY 2"') == [2]
    for hidden in ("secret-source", "secret-prompt-1", "secret-kind", "secret-file", "ranks"):
        assert found(hidden) == []
