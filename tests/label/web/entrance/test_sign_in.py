"""Sign-in by an organisation's provider: who comes in, as whom, and what is not believed."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from label_kit import World
from provider_fake import CLIENT, SECRET, FakeProvider, fake_provider
from sqlalchemy import update
from starlette.testclient import TestClient

from plaudit.errors import UserError
from plaudit.label import people
from plaudit.label.db import ledger, schema
from plaudit.label.db.database import open_project, writing
from plaudit.label.db.names import known_person
from plaudit.label.web.app import create_app
from plaudit.label.web.entrance.oidc import Provider

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider) -> Iterator[World]:
    """One for all tests: each has people and subjects of its own."""
    engine = open_project(tmp_path_factory.mktemp("labels") / "labels.sqlite", "Kind replies")
    app = create_app(engine, url=URL, provider=Provider(provider.issuer, CLIENT, SECRET, ("Example.org",)))
    yield World(app, engine)
    app.state.service.close()


def sign_in(browser: TestClient, fake: FakeProvider, path: str = "/sign-in", **claims: Any) -> Any:
    """To the provider and back, as somebody about whom it says this."""
    to = browser.get(path)
    assert to.status_code == 303 and to.headers["location"].startswith(f"{fake.issuer}/authorize?")
    return browser.get("/sign-in/back", params=fake.grant(to.headers["location"], **claims))


def names(world: World) -> set[str]:
    with writing(world.engine) as connection:
        return {one.name for one in ledger.people(connection)}


def me(browser: TestClient) -> Any:
    answer = browser.get("/api/me")
    return answer.json()["name"] if answer.status_code == 200 else None


def test_a_verified_address_is_the_person_of_that_name_and_the_identity_stays_theirs(
    world: World, provider: FakeProvider
) -> None:
    world.invite("Ann@firm.example", "admin")
    browser = world.browser()
    page = browser.get("/login").text
    assert 'href="/sign-in"' in page and "Sign in with 127.0.0.1" in page
    back = sign_in(browser, provider, email="ann@firm.example", email_verified=True)
    assert back.status_code == 200 and '<meta http-equiv="refresh" content="0; url=/admin">' in back.text
    cookie = next(one for one in back.headers.get_list("set-cookie") if one.startswith("plaudit_session"))
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert me(browser) == "Ann@firm.example"
    with writing(world.engine) as connection:
        ann = next(one for one in ledger.people(connection) if one.name == "Ann@firm.example")
        assert not ann.invited, "who can sign in was invited before"
        people.rename(connection, ann.id, "Ann")
    other = world.browser()
    sign_in(other, provider, email="new@firm.example", email_verified=True)
    assert me(other) == "Ann", "the subject counts, whatever the address becomes"
    with writing(world.engine) as connection:
        connection.execute(update(schema.person).where(schema.person.c.id == ann.id).values(active=False))
    assert sign_in(world.browser(), provider).status_code == 403


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "stranger@firm.example", "email_verified": True, "sub": "s-2"},
        {"email": "bo@firm.example", "email_verified": False, "sub": "s-3"},
        {"email": "bo@firm.example", "email_verified": "true", "sub": "s-3"},
        {"email": "bo@firm.example", "sub": "s-3"},
        {"email": "x@notexample.org", "email_verified": True, "sub": "s-4"},
        {"sub": "s-5"},
    ],
)
def test_who_is_not_known_is_refused_and_no_account_is_made(
    world: World, provider: FakeProvider, claims: dict[str, Any]
) -> None:
    if "bo@firm.example" not in names(world):
        world.join("bo@firm.example")
    before, browser = names(world), world.browser()
    back = sign_in(browser, provider, **claims)
    assert back.status_code == 403 and "Nobody here is known as" in back.text and me(browser) is None
    assert names(world) == before


def test_an_address_that_was_given_to_somebody_else_does_not_take_the_account(
    world: World, provider: FakeProvider
) -> None:
    world.join("flo@firm.example")
    said = {"email": "flo@firm.example", "email_verified": True}
    assert sign_in(world.browser(), provider, **said, sub="s-8").status_code == 200
    assert sign_in(world.browser(), provider, **said, sub="s-9").status_code == 403


def test_an_invitation_is_taken_by_signing_in_whatever_the_address(world: World, provider: FakeProvider) -> None:
    token = world.invite("cleo")
    browser = world.browser()
    page = browser.get(f"/invite/{token}").text
    link = re.search(r'href="(/sign-in[^"]*)"', page)
    assert link is not None
    assert sign_in(browser, provider, link[1], sub="s-cleo").status_code == 200
    assert me(browser) == "cleo" and world.browser().get(f"/invite/{token}").status_code == 404
    assert sign_in(world.browser(), provider, link[1], sub="s-thief").status_code == 403, "it works once"
    again = world.browser()
    sign_in(again, provider, sub="s-cleo")
    assert me(again) == "cleo"
    world.join("dan")
    with writing(world.engine) as connection:
        cleo, dan = (known_person(connection, name) for name in ("cleo", "dan"))
        assert cleo is not None and dan is not None
        people.merge(connection, cleo.id, dan.id)
    sign_in(again, provider, sub="s-cleo")
    assert me(again) == "dan", "of two accounts that became one the identity is the one's"


def test_an_account_is_made_where_the_operator_named_the_domain(world: World, provider: FakeProvider) -> None:
    browser = world.browser()
    sign_in(browser, provider, email="Eve@EXAMPLE.org", email_verified=True, sub="s-eve")
    assert me(browser) == "Eve@EXAMPLE.org" and browser.get("/api/me").json()["role"] == "annotator"


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another-client"},
        {"aud": "another-client", "azp": CLIENT},
        {"iss": "https://evil.example"},
        {"exp": int(time.time()) - 3600},
        {"sub": None},
        {"signed_by": "client"},
        {"signed_by": "stranger"},
    ],
)
def test_what_is_not_to_be_believed_is_not(
    world: World, provider: FakeProvider, claims: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    if "gil@firm.example" not in names(world):
        world.join("gil@firm.example")
    browser = world.browser()
    said = {"email": "gil@firm.example", "email_verified": True, "sub": "s-gil"}
    back = sign_in(browser, provider, **said | claims)
    assert back.status_code == 502 and "The sign-in did not work" in back.text and me(browser) is None
    assert "Sign-in failed: " in capfd.readouterr().err


def test_what_comes_back_must_be_what_was_begun_in_this_browser(world: World, provider: FakeProvider) -> None:
    world.join("hal@firm.example")
    browser, other = world.browser(), world.browser()
    said = {"email": "hal@firm.example", "email_verified": True, "sub": "s-hal"}
    granted = provider.grant(browser.get("/sign-in").headers["location"], **said)
    assert other.get("/sign-in/back", params=granted).status_code == 403, "another browser's answer"
    assert browser.get("/sign-in/back", params=granted | {"state": "x"}).status_code == 403
    assert browser.get("/sign-in/back", params={"state": granted["state"], "error": "access_denied"}).status_code == 403
    assert browser.get("/sign-in/back", params=granted | {"code": "guessed"}).status_code == 502
    assert browser.get("/sign-in/back", params=granted).status_code == 200
    assert browser.get("/sign-in/back", params=granted).status_code == 403, "an answer is taken once"
    other.get("/sign-in")
    stolen = provider.grant(browser.get("/sign-in").headers["location"], **said)
    other.get("/sign-in")
    state = other.cookies.get("plaudit_sign_in")
    assert state is not None and other.get("/sign-in/back", params=stolen).status_code == 403


def test_without_a_provider_there_is_no_such_page(small_world: World) -> None:
    browser = small_world.browser()
    assert browser.get("/sign-in").status_code == 404 and "/sign-in" not in browser.get("/login").text


def test_a_provider_that_is_away_or_another_is_told(provider: FakeProvider) -> None:
    away = Provider("http://127.0.0.1:9", CLIENT, SECRET).look()
    assert away is not None and "cannot be reached" in away
    assert Provider(provider.issuer + "/", CLIENT, SECRET).look() is None
    with pytest.raises(UserError, match="is answered with 404; is it the issuer"):
        Provider(provider.issuer + "/realm", CLIENT, SECRET).look()
    with pytest.raises(UserError, match=r"its issuer is 'http://127.0.0.1:\d+'; write that"):
        Provider(provider.issuer.replace("127.0.0.1", "localhost"), CLIENT, SECRET).look()
    with pytest.raises(UserError, match="write the provider's issuer"):
        Provider("http://login.example.org", CLIENT, SECRET)
