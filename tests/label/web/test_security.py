"""Who may do what: every endpoint against nobody, against the wrong person, without the token, from another site."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any
from urllib.parse import urljoin

import pytest
from label_kit import PASSWORD, World, cookie_of, draft, form_token
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from plaudit.label import people
from plaudit.label.db import database, schema
from plaudit.label.db.database import open_project, writing
from plaudit.label.people import PER_ADDRESS, PER_NAME
from plaudit.label.queue import leases
from plaudit.label.queue.items import add_items
from plaudit.label.web import routes_admin, routes_annotator, routes_pages
from plaudit.label.web.app import create_app
from plaudit.label.web.entrance import routes as entrance
from plaudit.label.web.entrance import several, sign_in
from plaudit.label.web.shared.gate import MOST_BYTES

ANSWER = {"client_id": "client-id-1", "lease": "x", "positions": {"ranks": [1]}}
POSTS = {
    "/api/claim": {"task": None},
    "/api/submit": ANSWER,
    "/api/correct": {"client_id": "client-id-1", "seq": 1, "positions": {"ranks": [1]}},
    "/api/release": {"lease": "x"},
    "/api/admin/invite": {"name": "mallory", "role": "admin"},
    "/api/admin/person/1": {"active": False},
    "/api/admin/picture": {"data": "R0lGODdh"},
    "/api/admin/invites": {"csv": "name\nmallory"},
    "/api/take-back": {"lease": "x"},
    "/api/password": {"old": "x", "new": "long enough by far"},
    "/api/admin/person/1/ask-others": None,
    "/api/admin/person/1/offer-again": None,
    "/api/admin/person/1/merge": {"into": 2},
    "/api/admin/answer/1": {"do": "ask others"},
    "/api/admin/item/1": {"do": "withdraw"},
    "/api/admin/project": {"overlap": 9},
    "/logout": None,
}
GETS = (
    "/api/me",
    "/api/history",
    "/api/admin/people",
    "/api/admin/project",
    "/api/admin/dashboard",
    "/api/admin/export",
    "/api/admin/log",
    "/api/admin/items",
    "/picture/x",
)
OPEN = {
    "/login",
    "/invite/{token}",
    "/join/{token}",
    "/healthz",
    "/",
    "/history",
    "/admin",
    "/sign-in",
    "/sign-in/back",
}


def test_every_route_is_in_these_tests(small_world: World) -> None:
    """A new route must be put to the tests below, or be named here as one that anybody may ask for."""
    parts = [part.router for part in (routes_admin, routes_annotator, routes_pages, entrance, several, sign_in)]
    found = {route.path for part in (*parts, entrance.login_routes) for route in part.routes}
    names = {"item/1": "item/{which}", "answer/1": "answer/{seq}", "/1": "/{who}", "/picture/x": "/picture/{identity}"}
    known = {reduce(lambda path, pair: path.replace(*pair), names.items(), path) for path in (*POSTS, *GETS)} | OPEN
    assert found <= known and len(found) >= 17


@pytest.mark.parametrize("path", [*POSTS, *GETS])
def test_nobody_gets_nothing(small_world: World, path: str) -> None:
    browser = small_world.browser()
    answer = browser.get(path) if path in GETS else browser.post(path, json=POSTS[path])
    assert answer.status_code == 401 and set(answer.json()) == {"error", "fix"}
    forged = small_world.browser()
    forged.cookies.set(cookie_of(small_world), "x" * 43)
    answer = forged.get(path) if path in GETS else forged.post(path, json=POSTS[path])
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/", "/history", "/admin"])
def test_pages_lead_nobody_to_the_login(small_world: World, path: str) -> None:
    answer = small_world.browser().get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("token", [None, "", "x" * 43, "other"])
def test_a_post_without_this_sessions_token_is_refused(small_world: World, path: str, token: str | None) -> None:
    ann = small_world.join("ann", "admin")
    if token == "other":
        token = small_world.join("bo").headers["X-CSRF-Token"]
    headers = {} if token is None else {"X-CSRF-Token": token}
    answer = ann.browser.post(path, json=POSTS[path], headers=headers)
    assert answer.status_code == 403 and "token" in answer.json()["error"]
    assert ann.get("/api/me").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_post_from_another_site_is_refused(small_world: World, headers: dict[str, str]) -> None:
    ann = small_world.join("ann")
    answer = ann.browser.post("/api/claim", json={"task": None}, headers={**ann.headers, **headers})
    assert answer.status_code == 403 and "another site" in answer.json()["error"]
    own = ann.browser.post(
        "/api/claim", json={"task": None}, headers={**ann.headers, "Origin": "http://127.0.0.1:8080"}
    )
    assert own.status_code == 204


@pytest.mark.parametrize("path", [path for path in (*POSTS, *GETS) if "/admin/" in path])
def test_an_annotator_is_no_admin(small_world: World, path: str) -> None:
    ann = small_world.join("ann")
    answer = ann.get(path) if path in GETS else ann.post(path, POSTS[path])
    assert answer.status_code == 403 and "admin" in answer.json()["error"]
    assert (ann.get("/admin").status_code, ann.get("/admin").headers["location"]) == (303, "/?for=admins")


def test_others_work_can_be_neither_read_nor_written(world: World) -> None:
    add_items(world.engine, [draft(n) for n in range(3)])
    ann, bo = world.join("ann"), world.join("bo")
    hers = ann.claim()
    seq = ann.submit(hers["lease"]).json()["seq"]
    open_lease = ann.claim()["lease"]
    for lease in (hers["lease"], open_lease, "no-such-lease"):
        assert bo.submit(lease).status_code == 403
        assert bo.post("/api/release", {"lease": lease}).status_code == 403
    correction = {"client_id": "client-id-9", "seq": seq, "positions": {"ranks": [4, 3, 2, 1]}}
    refused = bo.post("/api/correct", correction)
    never = bo.post("/api/correct", {**correction, "seq": 999})
    assert refused.status_code == never.status_code == 403 and refused.json() == never.json()
    assert bo.get("/api/history").json()["labels"] == []
    assert ann.post("/api/correct", correction).status_code == 200
    (own,) = ann.get("/api/history").json()["labels"]
    assert own["corrected"] is True
    assert own["positions"]["ranks"] == [4, 3, 2, 1] and own["view"]["id"] == hers["lease"]


def test_somebody_elses_client_id_tells_nothing(world: World) -> None:
    add_items(world.engine, [draft(1, overlap=2)])
    ann, bo = world.join("ann"), world.join("bo")
    assert ann.submit(ann.claim()["lease"], client="shared-client-id").status_code == 200
    answer = bo.submit(bo.claim()["lease"], client="shared-client-id")
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert set(answer.json()) == {"error", "fix"}


def test_a_label_answers_only_what_was_asked(world: World) -> None:
    """Statuses of the contract: 409 for a second body, 422 with the field, replays."""
    add_items(world.engine, [draft(1)])
    ann = world.join("ann")
    lease = ann.claim()["lease"]
    bad = ann.submit(lease, ranks=[1, 2])
    assert (bad.status_code, bad.json()["field"]) == (422, "ranks") and bad.json()["fix"]
    first, again = (ann.submit(lease, client="one-client-id").json() for _ in range(2))
    assert (first["replayed"], again["replayed"], again["seq"]) == (False, True, first["seq"])
    other = ann.submit(lease, ranks=[2, 2, 2, 1], client="one-client-id")
    assert (other.status_code, other.json()["error"]) == (409, "conflict")


# --- signing in ---


def test_the_session_is_another_one_after_signing_in(small_world: World) -> None:
    """Fixation: a session that was planted in the browser before is not the one that is signed in."""
    ann = small_world.join("ann")
    browser = small_world.browser()
    browser.cookies.set(cookie_of(small_world), "planted" * 6)
    page = browser.get("/login").text
    answer = browser.post("/login", data={"name": "ann", "password": PASSWORD, "csrf": form_token(page)})
    assert answer.status_code == 303
    given = answer.headers["set-cookie"]
    assert "planted" not in given and "HttpOnly" in given and "SameSite=strict" in given
    planted = small_world.browser()
    planted.cookies.set(cookie_of(small_world), "planted" * 6)
    assert planted.get("/api/me").status_code == 401
    first = ann.browser.cookies[cookie_of(small_world)]
    page = small_world.browser()
    page.cookies.set(cookie_of(small_world), first)
    # The session that the browser came with ends when somebody signs in over it.
    nonce = page.get("/invite/none")
    answer = page.post("/login", data={"name": "ann", "password": PASSWORD, "csrf": form_token(nonce.text)})
    assert answer.status_code == 303 and ann.get("/api/me").status_code == 401


def test_signing_out_ends_the_session_on_the_server(small_world: World) -> None:
    ann = small_world.join("ann")
    stolen = small_world.browser()
    stolen.cookies.set(cookie_of(small_world), ann.browser.cookies[cookie_of(small_world)])
    assert stolen.get("/api/me").status_code == 200
    assert ann.post("/logout").status_code == 204
    assert stolen.get("/api/me").status_code == ann.get("/api/me").status_code == 401


def test_a_session_ends_with_its_time(small_world: World) -> None:
    ann = small_world.join("ann")
    with writing(small_world.engine) as connection:
        connection.execute(update(schema.session).values(expires=time.time() - 1))
    assert ann.get("/api/me").status_code == 401


def test_disabling_shuts_out_at_once_and_keeps_the_labels(world: World) -> None:
    add_items(world.engine, [draft(n) for n in range(2)])
    admin, ann = world.join("boss", "admin"), world.join("ann")
    ann.submit(ann.claim()["lease"])
    who = next(row["id"] for row in admin.get("/api/admin/people").json()["people"] if row["name"] == "ann")
    assert admin.post(f"/api/admin/person/{who}", {"active": False}).json() == {"active": False}
    assert ann.get("/api/me").status_code == 401 and ann.claim() is None
    browser = world.browser()
    page = browser.get("/login").text
    answer = browser.post("/login", data={"name": "ann", "password": PASSWORD, "csrf": form_token(page)})
    assert answer.status_code == 401
    with world.engine.connect() as connection:
        assert len(connection.execute(select(schema.label)).all()) == 1
    me = next(row["id"] for row in admin.get("/api/admin/people").json()["people"] if row["name"] == "boss")
    assert (
        admin.post(f"/api/admin/person/{me}", {"active": False}).status_code == 422
    )  # nobody locks the door from inside
    assert admin.post("/api/admin/person/999", {"active": True}).status_code == 404


def test_the_login_form_needs_its_token(small_world: World) -> None:
    small_world.join("ann")
    browser, other = small_world.browser(), small_world.browser()
    token = form_token(browser.get("/login").text)
    # Inside the signature: of its last character two bits mean nothing.
    changed = token[:-5] + ("A" if token[-5] != "A" else "B") + token[-4:]
    other.get("/login")
    for sender, csrf in ((small_world.browser(), token), (other, token), (browser, ""), (browser, changed)):
        answer = sender.post("/login", data={"name": "ann", "password": PASSWORD, "csrf": csrf})
        assert answer.status_code == 403 and "plaudit_session_" not in answer.headers.get("set-cookie", "")


def attempt(world: World, name: str, password: str) -> int:
    browser = world.browser()
    page = browser.get("/login").text
    sent = {"name": name, "password": password, "csrf": form_token(page)}
    return int(browser.post("/login", data=sent).status_code)


def test_guessing_a_password_comes_to_an_end(small_world: World) -> None:
    small_world.join("ann"), small_world.join("bo")
    assert [attempt(small_world, "ann", f"guess number {n}") for n in range(PER_NAME + 2)] == [401] * PER_NAME + [
        429
    ] * 2
    assert attempt(small_world, "ann", PASSWORD) == 429  # the right one, too, has to wait
    assert attempt(small_world, "bo", PASSWORD) == 303
    with writing(small_world.engine) as connection:
        old = time.time() - people.WINDOW_SECONDS - 1
        connection.execute(update(schema.login_attempt).values(at=old))
    assert attempt(small_world, "ann", PASSWORD) == 303


def test_guessing_at_once_does_not_slip_through(world: World) -> None:
    """Thirty tries at the same moment: a try counts before its password is looked at."""
    world.join("ann")
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda n: attempt(world, "ann", f"guess number {n}"), range(PER_NAME + 20)))
    assert sorted(found) == [401] * PER_NAME + [429] * 20


def test_one_address_cannot_try_one_password_on_all_names(small_world: World) -> None:
    with writing(small_world.engine) as connection:
        for n in range(PER_ADDRESS - 1):
            assert people.begin_attempt(connection, f"name{n}", "unknown") is not None
    assert [attempt(small_world, f"other{n}", PASSWORD) for n in range(2)] == [401, 429]


def test_a_name_that_is_not_there_takes_as_long_and_says_the_same(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both do one argon2 verification; the time itself would be a flaky thing to test."""
    small_world.join("ann")
    small_world.invite("invited-only")
    asked: list[str | None] = []
    real = people.password_fits
    monkeypatch.setattr(people, "password_fits", lambda stored, given: asked.append(stored) or real(stored, given))
    texts = set()
    for name in ("ann", "nobody", "invited-only", "no\x00name", "x" * 5000):
        browser = small_world.browser()
        csrf = form_token(browser.get("/login").text)
        answer = browser.post("/login", data={"name": name, "password": "wrong password", "csrf": csrf})
        assert answer.status_code == 401
        texts.add(answer.text.count("Name or password is wrong."))
    assert texts == {1} and len(asked) == 5 and [stored is None for stored in asked] == [False, True, True, True, True]


def test_passwords_are_argon2_and_tokens_are_not_in_the_database(small_world: World) -> None:
    ann = small_world.join("ann")
    token = small_world.invite("bo")
    with small_world.engine.connect() as connection:
        everything = [str(connection.execute(select(table)).all()) for table in schema.metadata.tables.values()]
        stored = connection.execute(select(schema.person.c.password_hash)).scalars().first()
    assert stored is not None and stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    for secret in (PASSWORD, token, ann.browser.cookies[cookie_of(small_world)]):
        assert not any(secret in text for text in everything)


def test_an_invite_works_once(small_world: World) -> None:
    token = small_world.invite("ann")
    browser = small_world.browser()
    page = browser.get(f"/invite/{token}")
    assert page.status_code == 200
    csrf = form_token(page.text)
    assert browser.post(f"/invite/{token}", data={"password": "short", "csrf": csrf}).status_code == 422
    assert browser.post(f"/invite/{token}", data={"password": PASSWORD, "csrf": "x"}).status_code == 403
    assert browser.post(f"/invite/{token}", data={"password": PASSWORD, "csrf": csrf}).status_code == 303
    again = small_world.browser()
    page = again.get(f"/invite/{token}")
    assert page.status_code == 404
    answer = again.post(f"/invite/{token}", data={"password": "another password", "csrf": form_token(page.text)})
    assert answer.status_code == 404 and attempt(small_world, "ann", PASSWORD) == 303


def test_invites_run_out_and_newer_ones_replace_them(small_world: World) -> None:
    first, second = small_world.invite("ann"), small_world.invite("ann")
    assert [small_world.browser().get(f"/invite/{token}").status_code for token in (first, second)] == [404, 200]
    with writing(small_world.engine) as connection:
        connection.execute(update(schema.invite).values(expires=time.time() - 1))
    assert small_world.browser().get(f"/invite/{second}").status_code == 404


def test_a_new_link_for_somebody_changes_the_password_and_ends_sessions(small_world: World) -> None:
    ann = small_world.join("ann")
    token = small_world.invite("ann")
    assert ann.get("/api/me").status_code == 200
    browser = small_world.browser()
    csrf = form_token(browser.get(f"/invite/{token}").text)
    assert browser.post(f"/invite/{token}", data={"password": "a new password", "csrf": csrf}).status_code == 303
    assert ann.get("/api/me").status_code == 401
    assert [attempt(small_world, "ann", password) for password in (PASSWORD, "a new password")] == [401, 303]


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a\x00b"},
        {"name": ""},
        {"name": " "},
        {"name": "x" * 65},
        {"name": "<b>"},
        {"name": "ok", "role": "owner"},
        {"name": "\ud800"},
        {"name": 5},
        {"name": "ok", "extra": 1},
        {"name": "a\nb"},
    ],
)
def test_names_that_nobody_can_have(small_world: World, body: dict[str, Any]) -> None:
    boss = small_world.join("boss", "admin")
    assert boss.post("/api/admin/invite", body).status_code == 422


# --- what goes back ---


@pytest.mark.parametrize("path", ["/login", "/api/me", "/static/label.js", "/nowhere", "/healthz", "/invite/x"])
def test_every_answer_has_the_headers(small_world: World, path: str) -> None:
    headers = small_world.browser().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
    assert headers["x-frame-options"] == "DENY" and headers["cache-control"] in ("no-store", "no-cache")
    assert "server" not in headers and "strict-transport-security" not in headers


def test_behind_https_cookies_are_secure(tmp_path: Any) -> None:
    engine = open_project(tmp_path / "labels.sqlite")
    app = create_app(engine, url="https://label.example.org")
    browser = TestClient(app, base_url="https://label.example.org")
    answer = browser.get("/login")
    assert "Secure" in answer.headers["set-cookie"] and "max-age" in answer.headers["strict-transport-security"]
    app.state.service.close()


@pytest.mark.parametrize("stripped", [True, False], ids=["the proxy takes it off", "the proxy hands it on"])
def test_below_a_path_every_address_and_cookie_stays_below_it(tmp_path: Any, stripped: bool) -> None:
    engine = open_project(tmp_path / "labels.sqlite")
    app = create_app(engine, url="https://example.org/label/")
    world = World(app, engine)

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix("/label") if stripped else scope["path"]
        await app({**scope, "path": path}, receive, send)

    browser = TestClient(proxy, base_url="https://example.org", follow_redirects=False)
    assert browser.get("/label/").headers["location"] == "/label/login"
    for path, status in (("login", 200), (f"invite/{world.invite('bo')}", 200), ("invite/used", 404), ("join/x", 404)):
        path = f"/label/{path}"
        answer = browser.get(path)
        assert answer.status_code == status and "Path=/label;" in answer.headers["set-cookie"] + ";"
        addresses = re.findall(r'(?:href|src|action)="([^"#]+)"', answer.text)
        assert len(addresses) > 2
        for address in addresses:
            assert urljoin(f"https://example.org{path}", address).startswith("https://example.org/label/")
    world.join("ann")
    sent = {"name": "ann", "password": PASSWORD, "csrf": form_token(browser.get("/label/login").text)}
    welcome = browser.post("/label/login", data=sent, headers={"Origin": "https://example.org"})
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/label/")
    assert browser.get("/label/api/me").json()["name"] == "ann"
    assert browser.get("/label/static/label.js").status_code == 200
    if not stripped:
        assert browser.get("/label").headers["location"] == "/label/"
        assert browser.get("/labels").status_code == 404
    app.state.service.close()


@pytest.mark.parametrize(
    "path",
    [
        "/static/../label.html.j2",
        "/static/..%2flabel.html.j2",
        "/static/%2e%2e/render.py",
        "/static//etc/passwd",
        "/static/....//base.html.j2",
        "/static/%00",
        "/static/..\\label.html.j2",
        "/invite/../../etc/passwd",
        "/invite/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out(small_world: World, path: str) -> None:
    answer = small_world.browser().get(path)
    assert answer.status_code in (400, 404) and "extends" not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=../../etc/passwd", "format"),
        ("format=rankings%00", "format"),
        ("annotator=..%2F..%2Fx", "annotator"),
        ("annotator=%00", "annotator"),
        ("since=../x", "since"),
        ("min_agreement=nan", "min_agreement"),
        ("without_flag=%00", "without_flag"),
    ],
)
def test_an_exports_name_and_options_cannot_be_bent(small_world: World, query: str, field: str) -> None:
    boss = small_world.join("boss", "admin")
    answer = boss.get(f"/api/admin/export?{query}")
    assert answer.status_code == 422 and answer.json()["field"].startswith(field)


def test_an_option_in_a_value_is_a_value(small_world: World, tmp_path: Any) -> None:
    boss = small_world.join("boss", "admin")
    for query, value in (("without_flag=--to%3D/tmp/x", "--to=/tmp/x"), ("annotator=--help", "--help")):
        answer = boss.get(f"/api/admin/export?{query}")
        assert answer.status_code == 422 and f"{value!r}: not in this database" in answer.json()["error"]


def test_too_large_a_body_is_refused(small_world: World) -> None:
    ann = small_world.join("ann")
    body = {"client_id": "client-id-1", "lease": "x", "positions": {"text": "x" * MOST_BYTES}}
    assert ann.post("/api/submit", body).status_code == 413
    pieces = (b"x" * 65536 for _ in range(1 + MOST_BYTES // 65536))
    answer = ann.browser.post(
        "/api/submit", content=pieces, headers={**ann.headers, "Content-Type": "application/json"}
    )
    assert answer.status_code == 413


def test_a_server_on_this_machine_answers_to_its_own_names_only(small_world: World, tmp_path: Any) -> None:

    app = create_app(small_world.engine, url="http://127.0.0.1:8080", hosts=("127.0.0.1", "localhost", "::1"))
    for host, status in (("127.0.0.1:8080", 200), ("localhost", 200), ("[::1]:8080", 200), ("evil.example", 400)):
        assert TestClient(app).get("/login", headers={"Host": host}).status_code == status
    app.state.service.close()


def test_a_database_that_is_away_is_503_and_comes_back(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add_items(small_world.engine, [draft(1)])
    ann = small_world.join("ann")
    lease = ann.claim()["lease"]
    real = leases.submit

    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("database is locked"))

    monkeypatch.setattr(leases, "submit", away)
    answer = ann.submit(lease)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and "lost" in answer.json()["fix"]
    monkeypatch.setattr(leases, "submit", real)
    assert ann.submit(lease).status_code == 200


def test_a_locked_database_is_503_and_loses_nothing(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the write lock for longer than anybody waits."""
    add_items(small_world.engine, [draft(1)])
    ann = small_world.join("ann")
    lease = ann.claim()["lease"]
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    small_world.engine.dispose()
    holder = database.connect(small_world.engine.url)
    with writing(holder):
        assert ann.submit(lease, client="the-client-id").status_code == 503
    assert ann.submit(lease, client="the-client-id").json()["replayed"] is False
    holder.dispose()
