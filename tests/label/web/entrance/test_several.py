"""Several projects of one server: each with its own people and roles, below its own path, and one start page."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import pytest
from label_kit import PASSWORD, World, form_token
from provider_fake import CLIENT, SECRET, fake_provider
from starlette.testclient import TestClient

from plaudit.label import people
from plaudit.label.db.database import open_project, writing
from plaudit.label.web.app import create_several
from plaudit.label.web.entrance.oidc import Provider
from plaudit.label.web.entrance.several import Paths

URL = "https://example.org/label"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Paths, dict[str, World]]]:
    """Ann leads `law` and labels in `med`; bo, of the same password, is in `med` alone, and another bo leads `law`."""
    folder = tmp_path_factory.mktemp("several")
    engines = {name: open_project(folder / f"{name}.sqlite", name.title()) for name in ("law", "med")}
    app = create_several(engines, url=URL)
    worlds = {name: World(one, engines[name]) for name, one in app.projects.items()}
    worlds["law"].join("ann", "admin")
    worlds["med"].join("ann")
    worlds["med"].join("bo")
    with writing(engines["law"]) as connection:
        token = people.make_invite(connection, "bo", "admin")
        people.take_invite(connection, token, people.hash_password("another bo's password"))
    yield app, worlds
    for world in worlds.values():
        world.app.state.service.close()


def browser_of(app: Any) -> TestClient:
    return TestClient(app, base_url="https://example.org", follow_redirects=False)


def log_in(browser: TestClient, path: str, name: str, password: str = PASSWORD) -> Any:
    sent = {"name": name, "password": password, "csrf": form_token(browser.get(path).text)}
    return browser.post(path, data=sent, headers={"Origin": "https://example.org"})


def name_in(browser: TestClient, project: str) -> Any:
    answer = browser.get(f"/label/{project}/api/me")
    return (answer.json()["name"], answer.json()["role"]) if answer.status_code == 200 else None


def test_one_sign_in_opens_every_project_where_name_and_password_are_known(several: tuple[Paths, Any]) -> None:
    browser = browser_of(several[0])
    assert browser.get("/label").headers["location"] == "/label/"
    assert browser.get("/label/").headers["location"] == "/label/login"
    assert "Law" not in browser.get("/label/login").text, "whoever may enter nothing hears of nothing"
    assert log_in(browser, "/label/login", "ann").headers["location"] == "/label/"
    page = browser.get("/label/").text
    assert re.findall(r'href="(/label/\w+/\w*)">(\w+)', page) == [("/label/law/admin", "Law"), ("/label/med/", "Med")]
    assert (name_in(browser, "law"), name_in(browser, "med")) == (("ann", "admin"), ("ann", "annotator"))
    assert browser.get("/label/med/api/admin/people").status_code == 403
    assert 'href="./../">Projects' in browser.get("/label/med/").text
    token = browser.get("/label/med/api/me").json()["csrf"]
    assert browser.post("/label/law/api/claim", json={}, headers={"X-CSRF-Token": token}).status_code == 403
    assert browser.post("/label/med/logout", headers={"X-CSRF-Token": token}).status_code == 204
    assert name_in(browser, "med") is None and name_in(browser, "law") == ("ann", "admin")


def test_somebody_of_one_project_is_nobody_in_another(
    several: tuple[Paths, dict[str, World]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "PER_NAME", 2)
    app, worlds = several
    browser = browser_of(app)
    assert log_in(browser, "/label/login", "bo").headers["location"] == "/label/med/"
    assert name_in(browser, "med") == ("bo", "annotator") and name_in(browser, "law") is None
    cookie = browser.cookies.get(worlds["med"].app.state.service.cookie)
    assert cookie is not None
    forged = browser_of(app)
    forged.cookies.set(worlds["law"].app.state.service.cookie, cookie)
    assert name_in(forged, "law") is None
    for _ in range(people.PER_NAME + 1):
        log_in(browser, "/label/login", "bo")
    own = browser_of(app)
    assert log_in(own, "/label/law/login", "bo", "another bo's password").headers["location"] == "/label/law/admin"


def test_a_wrong_password_opens_nothing_and_is_counted(
    several: tuple[Paths, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "PER_NAME", 2)
    browser = browser_of(several[0])
    answers = [
        log_in(browser, "/label/login", "cleo", "wrong password").status_code for _ in range(people.PER_NAME + 1)
    ]
    assert answers == [401] * people.PER_NAME + [429] and browser.cookies.get("plaudit_session") is None


@pytest.mark.parametrize("stripped", [False, True])
def test_addresses_stay_below_the_path_of_the_project(several: tuple[Paths, Any], stripped: bool) -> None:
    app, worlds = several

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix("/label") if stripped else scope["path"]
        await app({**scope, "path": path}, receive, send)

    browser = browser_of(proxy)
    token = worlds["med"].invite("dora")
    below = "/label/med"
    for path in (f"{below}/login", f"{below}/invite/{token}", "/label/login"):
        below = below if path.startswith(below) else "/label"
        page = browser.get(path)
        assert page.status_code == 200 and "Path=/label;" in page.headers["set-cookie"] + ";"
        for address in re.findall(r'(?:href|src|action)="([^"#]+)"', page.text):
            assert urljoin(f"https://example.org{path}", address).startswith(f"https://example.org{below}/")
    assert (
        browser.get("/label/med/static/label.js").status_code
        == browser.get("/label/static/base.css").status_code
        == 200
    )
    assert browser.get("/label/none/").status_code == 404 and browser.get("/label/healthz").json() == {"ok": True}
    assert browser.get("/label/med").headers["location"] == "/label/med/"


def test_every_project_lives_and_ends_with_the_server(tmp_path: Any) -> None:
    engines = {name: open_project(tmp_path / f"{name}.sqlite") for name in ("a", "b")}
    app = create_several(engines, url="http://127.0.0.1:8080")

    with TestClient(app):
        assert all(one.state.service.writer._threads[0].is_alive() for one in app.projects.values())
    assert not any(one.state.service.writer._threads[0].is_alive() for one in app.projects.values())


def test_one_identity_enters_every_project_that_knows_it_and_is_made_in_none(tmp_path: Any) -> None:
    engines = {name: open_project(tmp_path / f"{name}.sqlite", name.title()) for name in ("law", "med")}
    with fake_provider() as fake:
        provider = Provider(fake.issuer, CLIENT, SECRET, ("example.org",))
        app = create_several(engines, url=URL, provider=provider)
        worlds = {name: World(one, engines[name]) for name, one in app.projects.items()}
        worlds["law"].invite("ann@example.org", "admin")
        said = {"email": "ann@example.org", "email_verified": True}

        def signed_in(page: str, **who: Any) -> tuple[TestClient, str]:
            browser = browser_of(app)
            link = re.search(r'href="(/label/sign-in[^"]*)"', browser.get(page).text)
            assert link is not None
            to = browser.get(link[1].replace("&amp;", "&")).headers["location"]
            back = browser.get("/label/sign-in/back", params=fake.grant(to, **who))
            found = re.search(r"url=([^\"]+)", back.text)
            return browser, found[1] if found else str(back.status_code)

        browser, to = signed_in("/label/login", **said)
        assert to == "/label/law/admin" and name_in(browser, "med") is None, "no account is made from the start page"
        browser, to = signed_in("/label/med/login", **said)
        assert to == "/label/med/" and name_in(browser, "law") == ("ann@example.org", "admin")
        browser, to = signed_in("/label/login", **said)
        assert to == "/label/" and name_in(browser, "med") == ("ann@example.org", "annotator")
        browser, to = signed_in("/label/login", sub="s-2", email="x@example.org", email_verified=True)
        assert to == "403" and name_in(browser, "law") is None
    for world in worlds.values():
        world.app.state.service.close()
