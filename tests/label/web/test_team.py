"""What a team meets over HTTP: settings that two admins change, skips, names, passwords, a second device."""

from typing import Any

import pytest
from label_kit import PASSWORD, World, cookie_of, draft, form_token

from plaudit.label.db import ledger
from plaudit.label.db.database import open_project, snapshot
from plaudit.label.people import is_name, tidy_name
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
    other.app.state.service.writer.close()


def test_behind_a_proxy_without_url_the_refusal_names_it(small_world: World) -> None:
    headers = {"Origin": "https://label.example.org"}
    answer = small_world.browser().post("/login", data={"name": "ann"}, headers=headers)
    assert answer.status_code == 403 and "--url" in answer.json()["fix"]
