"""Several projects and an organisation's sign-in in a browser: cookies come back from another site as they must."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from label_page import DESKTOP
from provider_fake import CLIENT, SECRET, fake_provider

from plaudit.label.db.database import open_project, writing
from plaudit.label.people import make_invite
from plaudit.label.web.app import create_several
from plaudit.label.web.entrance.oidc import Provider


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Two projects at 127.0.0.1; the provider is at localhost, which is another site."""
    engines = {name: open_project(tmp_path / f"{name}.sqlite", name.title()) for name in ("law", "med")}
    for name, role in (("law", "admin"), ("med", "annotator")):
        with writing(engines[name]) as connection:
            make_invite(connection, "ann@example.org", role)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with fake_provider("localhost") as fake:
        fake.person = {"email": "ann@example.org", "email_verified": True}
        app = create_several(engines, url=url, provider=Provider(fake.issuer, CLIENT, SECRET))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield SimpleNamespace(url=url, fake=fake)
        server.should_exit = True
        thread.join()


def test_one_click_signs_in_to_every_project_and_the_start_page_lists_them(browser: Any, service: Any) -> None:
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    page.goto(service.url)
    page.get_by_role("link", name="Sign in with localhost").click()
    page.wait_for_url(f"{service.url}/")
    assert page.get_by_role("listitem").all_inner_texts() == ["Law you lead it", "Med you label"]
    page.get_by_role("link", name="Med").click()
    page.get_by_text("Nothing is left for you to label").wait_for()
    assert page.locator("#who").inner_text().strip() == "(ann@example.org)"
    page.get_by_role("link", name="Projects").click()
    page.get_by_role("link", name="Law").click()
    page.get_by_role("button", name="Sign out (ann@example.org)").click()  # called so when the page's script is ready
    page.wait_for_url(f"{service.url}/law/login")
    page.goto(service.url)
    assert page.get_by_role("listitem").all_inner_texts() == ["Med you label"]
    context.close()


def test_whom_nobody_knows_is_told_so(browser: Any, service: Any) -> None:
    service.fake.person = {"sub": "s-2", "email": "bo@example.org", "email_verified": True}
    page = browser.new_context(**DESKTOP).new_page()
    page.goto(f"{service.url}/med/login")
    page.get_by_role("link", name="Sign in with localhost").click()
    page.get_by_role("alert").wait_for()
    assert "Nobody here is known as bo@example.org" in page.get_by_role("alert").inner_text()
    page.context.close()
