"""A paid crowd: one link, the worker's id in it, a quota, and a code at the end."""

from typing import Any

import pytest
from label_kit import Person, World, draft, form_token

from plaudit.errors import UserError
from plaudit.label import crowd
from plaudit.label.db.database import writing
from plaudit.label.queue.items import add_items


def opened(world: World, quota: int = 2, code: str | None = None) -> str:
    with writing(world.engine) as connection:
        return crowd.open_to_crowd(connection, quota, code)


def come(browser: Any, token: str, worker: str, parameter: str = "worker") -> Any:
    page = browser.get(f"/join/{token}", params={parameter: worker})
    assert page.status_code == 200 and worker in page.text
    return browser.post(f"/join/{token}", data={"worker": worker, "csrf": form_token(page.text)})


@pytest.mark.parametrize("parameter", crowd.WORKER)
def test_a_worker_gives_their_labels_and_is_told_the_code(small_world: World, parameter: str) -> None:
    add_items(small_world.engine, [draft(n) for n in range(1, 5)])
    browser = small_world.browser()
    entered = come(browser, opened(small_world), "A1B2C3", parameter)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    worker = Person(browser)
    assert worker.me["name"] == "A1B2C3" and worker.me["progress"] == {"done": 0, "available": 2}
    for _ in range(2):
        assert worker.get("/api/me").json()["completion"] is None
        assert worker.submit(worker.claim()["lease"]).status_code == 200
    assert worker.claim() is None
    with writing(small_world.engine) as connection:
        (own,) = crowd.codes(connection)
    assert own["worker"] == "A1B2C3" and worker.get("/api/me").json()["completion"] == own["code"]


def test_codes_differ_unless_there_is_one_for_all(small_world: World) -> None:
    token = opened(small_world)
    for name in ("w1", "w2"):
        come(small_world.browser(), token, name)
    with writing(small_world.engine) as connection:
        assert len({row["code"] for row in crowd.codes(connection)}) == 2
        crowd.open_to_crowd(connection, 1, "C0DE")
        assert {row["code"] for row in crowd.codes(connection)} == {"C0DE"}


def test_a_workers_id_alone_opens_nobodys_account(small_world: World) -> None:
    small_world.join("ann")
    token, first = opened(small_world), small_world.browser()
    come(first, token, "w1")
    assert come(first, token, "w1").status_code == 303  # the same browser goes on
    for name in ("w1", "W1", "ann"):
        other = small_world.browser()
        refused = come(other, token, name)
        assert refused.status_code == 409 and "another browser" in refused.text
        assert other.get("/api/me").status_code == 401


def test_a_link_that_is_closed_replaced_or_without_an_id_lets_nobody_in(small_world: World) -> None:
    old, browser = opened(small_world), small_world.browser()
    csrf = form_token(browser.get(f"/join/{old}?worker=w1").text)
    assert browser.get(f"/join/{old}").status_code == 422
    token = opened(small_world)
    assert browser.get(f"/join/{old}?worker=w1").status_code == 404
    assert browser.post(f"/join/{old}", data={"worker": "w1", "csrf": csrf}).status_code == 422
    assert browser.post(f"/join/{token}", data={"worker": "w1", "csrf": "forged"}).status_code == 403
    with writing(small_world.engine) as connection:
        crowd.close_to_crowd(connection)
    assert browser.get(f"/join/{token}?worker=w1").status_code == 404
    assert browser.get("/api/me").status_code == 401


def test_one_address_cannot_make_people_without_end(small_world: World) -> None:
    token, browser = opened(small_world), small_world.browser()
    answers = []
    for number in range(41):
        browser.cookies.clear()
        answers.append(come(browser, token, f"w{number}").status_code)
    assert answers == [303] * 40 + [429]


@pytest.mark.parametrize(("quota", "code"), [(0, None), (2**31, None), (1, ""), (1, "x" * 201)])
def test_what_cannot_be_is_refused(small_world: World, quota: int, code: str | None) -> None:
    with pytest.raises(UserError, match=r"--quota|--code"):
        opened(small_world, quota, code)
