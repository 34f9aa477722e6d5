"""What a team meets over HTTP: settings that two admins change, skips, names, passwords, a second device."""

from typing import Any

import pytest
from label_kit import PASSWORD, World, cookie_of, draft, form_token, free_of

from plaudit.label.db import ledger
from plaudit.label.db.database import open_project, snapshot
from plaudit.label.db.names import tidy_name
from plaudit.label.people import is_name
from plaudit.label.queue.items import add_items


def login(world: World, name: str, password: str = PASSWORD) -> Any:
    browser = world.browser()
    page = browser.get("/login").text
    return browser.post("/login", data={"name": name, "password": password, "csrf": form_token(page)})


def test_the_second_of_two_admins_is_told_and_overwrites_nothing(small_world: World) -> None:
    one, other = small_world.join("one", "admin"), small_world.join("other", "admin")
    read = one.get("/api/admin/project").json()["version"]
    saved = one.post("/api/admin/project", {"guidelines": "Be kind.", "version": read}).json()
    assert saved["version"] == read + 1
    refused = other.post("/api/admin/project", {"guidelines": "Be short.", "version": read})
    assert refused.status_code == 409 and "somebody else" in refused.json()["error"]
    assert one.get("/api/admin/project").json()["guidelines"] == "Be kind."
    (entry,) = one.get("/api/admin/log").json()["log"]
    assert entry["what"] == "settings" and entry["detail"]["guidelines"][1] == "Be kind."


def test_an_open_tab_hears_of_other_settings_with_its_next_item(small_world: World) -> None:
    add_items(small_world.engine, [draft(1), draft(2)])
    ann, boss = small_world.join("ann"), small_world.join("boss", "admin")
    first = ann.claim()
    assert first["settings"] == ann.me["project"]["settings"] and 1700 < first["seconds_left"] <= 1800
    boss.post("/api/admin/project", {"guidelines": "Be kind."})
    ann.submit(first["lease"])
    now = ann.get("/api/me").json()["project"]
    assert ann.claim()["settings"] == now["settings"] > first["settings"]
    assert now["guidelines_version"] == 2 and "Be kind" in now["guidelines_html"]


def test_a_skip_is_taken_back(small_world: World) -> None:
    add_items(small_world.engine, [draft(1), draft(2)])
    ann, bo = small_world.join("ann"), small_world.join("bo")
    skipped = ann.claim()["lease"]
    ann.post("/api/release", {"lease": skipped})
    ann.claim()
    assert bo.post("/api/take-back", {"lease": skipped}).status_code == 403
    assert ann.post("/api/take-back", {"lease": skipped}).json() == {"taken_back": True}
    assert ann.claim()["lease"] == skipped
    ann.post("/api/release", {"lease": skipped})
    bo.claim()
    assert ann.post("/api/take-back", {"lease": skipped}).status_code == 409


def test_a_second_device_does_not_replace_an_answer_silently(small_world: World) -> None:
    add_items(small_world.engine, [draft(1)])
    ann = small_world.join("ann")
    lease = ann.claim()["lease"]
    stored = ann.submit(lease, client="first-device").json()
    other = ann.submit(lease, (4, 3, 2, 1), client="second-device")
    assert other.status_code == 409 and other.json()["seq"] == stored["seq"]
    same = ann.submit(lease, client="third-device")
    assert same.json() == stored | {"replayed": True}


def test_the_time_at_work_is_kept_and_never_more_than_there_was(small_world: World) -> None:
    add_items(small_world.engine, [draft(1)])
    ann = small_world.join("ann")
    lease = ann.claim()["lease"]
    body = {"client_id": "client-1", "lease": lease, "positions": {"ranks": [1, 2, 3, 4]}, "active_seconds": 500.0}
    assert ann.post("/api/submit", body).status_code == 200
    with snapshot(small_world.engine) as connection:
        (label,) = ledger.labels(connection)
    assert label.active is not None and label.active == label.seconds < 60


def test_what_an_admin_does_to_people_and_items_is_done_and_written_down(small_world: World) -> None:
    (item,) = (draft(1).id,)
    add_items(small_world.engine, [draft(1)])
    boss, ann = small_world.join("boss", "admin"), small_world.join("ann")
    ann.submit(ann.claim()["lease"])
    who = next(row["id"] for row in boss.get("/api/admin/people").json()["people"] if row["name"] == "ann")
    assert boss.post(f"/api/admin/person/{who}/ask-others").json() == {"items": 1}
    assert boss.post(f"/api/admin/person/{who}/offer-again").json() == {"items": 0}
    for act in ("withdraw", "put back", "another opinion"):
        assert boss.post(f"/api/admin/item/{item}", {"do": act}).json() == {"done": True}
    assert boss.post("/api/admin/item/abc", {"do": "withdraw"}).status_code == 404
    done = [row["what"] for row in boss.get("/api/admin/log").json()["log"]]
    # What was refused is not written down as done.
    assert done == ["another opinion", "put back", "withdraw", "offer again", "ask others"]


def ids(boss: Any) -> dict[str, int]:
    return {row["name"]: row["id"] for row in boss.get("/api/admin/people").json()["people"]}


def test_people_are_renamed_and_get_another_role(small_world: World) -> None:
    boss, ann = small_world.join("boss", "admin"), small_world.join("ann")
    who = ids(boss)
    assert boss.post(f"/api/admin/person/{who['ann']}", {"name": " Anne  Lee "}).status_code == 200
    assert ann.get("/api/me").json()["name"] == "Anne Lee"  # still signed in
    assert (login(small_world, "ann").status_code, login(small_world, "anne lee").status_code) == (401, 303)
    for name, word in (("BOSS", "there already"), ("a/b", "letters")):
        refused = boss.post(f"/api/admin/person/{who['ann']}", {"name": name})
        assert refused.status_code == 422 and word in refused.text
    assert ann.get("/api/admin/log").status_code == 403
    assert boss.post(f"/api/admin/person/{who['boss']}", {"role": "annotator"}).status_code == 422
    assert boss.post(f"/api/admin/person/{who['ann']}", {"role": "admin"}).status_code == 200
    log = ann.get("/api/admin/log").json()["log"]
    assert [row["detail"] for row in log] == [
        {"person": who["ann"], "role": "admin"},
        {"person": who["ann"], "name": " Anne  Lee "},
    ]
    assert boss.post("/api/admin/person/99", {"role": "admin"}).status_code == 404


def test_two_accounts_of_one_person_become_one_and_nobody_has_two_voices(world: World) -> None:
    add_items(world.engine, [draft(number, overlap=2) for number in range(3)])
    boss, ann, ann2 = world.join("boss", "admin"), world.join("ann"), world.join("ann at home")
    for who, count in ((ann, 1), (ann2, 2)):  # the first item is answered by both
        for _ in range(count):
            who.submit(who.claim()["lease"], reason=who.me["name"])
    held = ann2.claim()["lease"]
    who = ids(boss)
    path = f"/api/admin/person/{who['ann at home']}/merge"
    assert boss.post(path, {"into": who["ann at home"]}).status_code == 422
    assert boss.post(path, {"into": 99}).status_code == 422
    with snapshot(world.engine) as connection:
        before = [row.seq for row in ledger.labels(connection)]
    assert boss.post(path, {"into": who["ann"]}).json() == {"items": 2}  # one answered, one that was held
    assert ann2.get("/api/me").status_code == 401 and ann2.claim() is None
    with snapshot(world.engine) as connection:
        rows = list(ledger.labels(connection))
    assert [row.seq for row in rows] == before  # the ledger is what it was
    assert [(row.person, row.aside) for row in rows] == [
        (who["ann"], False),
        (who["ann at home"], True),
        (who["ann"], False),
    ]
    assert free_of(world.engine) == [1, 1, 2]
    own = ann.get("/api/history").json()["labels"]
    assert [row["positions"]["reason"] for row in own] == ["ann at home", "ann"]
    correction = {"client_id": "client-10", "seq": own[0]["seq"], "positions": {"ranks": [4, 3, 2, 1]}}
    assert ann.post("/api/correct", correction).status_code == 200
    assert ann.claim()["lease"] == held or ann.claim() is not None  # the third item is still to be had
    found = boss.get(f"/api/admin/items?person={who['ann']}").json()["items"]
    assert len(found) == 2 and {one["name"] for one in found[1]["answers"]} == {"ann"}


# --- names and passwords ---


@pytest.mark.parametrize("name", ["Zoë", "Zoe\u0308", "O'Brien", "D’Arcy, Anne", "नमिता", "ann", "Ng-Lee Jr."])
def test_names_of_people(name: str) -> None:
    assert is_name(tidy_name(name))


@pytest.mark.parametrize("name", ["", " ", "-ann", "a/b", "a<b", "a\u202eb", "x" * 65, "a\nb\x00"])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(tidy_name(name))


def test_a_name_is_found_with_other_capitals_and_blanks_around_it(small_world: World) -> None:
    small_world.join("Zoë Ann")
    for typed in ("zoë ann", " ZOË  ANN ", "Zoe\u0308 Ann"):
        assert login(small_world, typed).status_code == 303
    boss = small_world.join("boss", "admin")
    assert boss.post("/api/admin/invite", {"name": "zoë ann"}).status_code == 200
    names = [row["name"] for row in boss.get("/api/admin/people").json()["people"]]
    assert names == ["Zoë Ann", "boss"]  # a new link for her, and nobody new


def test_one_changes_ones_own_password(small_world: World) -> None:
    ann, boss = small_world.join("ann"), small_world.join("boss", "admin")
    elsewhere = login(small_world, "ann").cookies
    assert ann.post("/api/password", {"old": "wrong password", "new": "another password"}).status_code == 422
    assert ann.post("/api/password", {"old": PASSWORD, "new": "short"}).status_code == 422
    assert ann.post("/api/password", {"old": PASSWORD, "new": "another password"}).json() == {"changed": True}
    assert login(small_world, "ann").status_code == 401
    assert login(small_world, "ann", "another password").status_code == 303
    assert ann.get("/api/me").status_code == boss.get("/api/me").status_code == 200
    browser = small_world.browser()
    browser.cookies.update(elsewhere)
    assert browser.get("/api/me").status_code == 401  # signed in before, somewhere else


def test_two_projects_on_one_host_have_sessions_of_their_own(small_world: World, tmp_path: Any) -> None:
    from plaudit.label.web.app import create_app

    other = World(create_app(open_project(tmp_path / "other.sqlite"), url="http://127.0.0.1:8081"), None)  # type: ignore[arg-type]
    assert cookie_of(small_world) != cookie_of(other)
    other.app.state.service.close()


def test_behind_a_proxy_without_url_the_refusal_names_it(small_world: World) -> None:
    headers = {"Origin": "https://label.example.org"}
    answer = small_world.browser().post("/login", data={"name": "ann"}, headers=headers)
    assert answer.status_code == 403 and "--url" in answer.json()["fix"]
