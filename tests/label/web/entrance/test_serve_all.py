"""`plaudit label serve-all`, and the options of the sign-in: what is refused, and what is served."""

from pathlib import Path
from typing import Any

import pytest
from provider_fake import fake_provider
from starlette.testclient import TestClient

from plaudit.label.db.database import open_project, writing
from plaudit.label.people import take_invite


def test_several_projects_are_served_each_with_its_first_invitation(
    tmp_path: Path, plaudit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, **_: served.append(server.config.app))
    engines = {name: open_project(tmp_path / f"{name}.sqlite", name.title()) for name in ("law", "med")}
    given = [f"{name}={tmp_path / name}.sqlite" for name in engines]
    done = plaudit("label", "serve-all", *given, "--port", "0", "--url", "https://example.org/label/")
    assert done.code == 0 and "Labelling at https://example.org/label\n" in done.out
    links = [line.rpartition(" ")[2] for line in done.out.splitlines() if line.startswith("First admin of")]
    assert [link.rpartition("/")[0] for link in links] == [f"https://example.org/label/{n}/invite" for n in engines]
    browser = TestClient(served[0], base_url="https://example.org", follow_redirects=False)
    assert "Welcome, admin" in browser.get(links[1].removeprefix("https://example.org")).text
    invited = plaudit("label", "invite", "ann", "--database", str(tmp_path / "med.sqlite"))
    assert invited.out.startswith("https://example.org/label/med/invite/")
    with writing(engines["law"]) as connection:
        take_invite(connection, links[0].rpartition("/")[2], "a hash")
    done = plaudit("label", "serve-all", *given, "--port", "0")
    assert "of med," in done.out and "of law," not in done.out, "who can sign in needs no link"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve-all", "a.sqlite"], "write NAME=DATABASE"),
        (["serve-all", "Law=a.sqlite"], "a name is lower-case letters"),
        (["serve-all", "login=a.sqlite"], "none of login"),
        (["serve-all", "a=a.sqlite", "a=a.sqlite"], "'a' is there already"),
        (["serve-all", "a=typo.sqlite"], "typo.sqlite: no such database"),
        (["serve", "--database", "a.sqlite", "--oidc-client", "x"], "Give --oidc and the provider's issuer"),
        (["serve", "--database", "a.sqlite", "--oidc", "https://x.example"], "PLAUDIT_LABEL_OIDC_SECRET"),
        (
            ["serve-all", "a=a.sqlite", "--oidc", "http://x.example", "--oidc-client", "x"],
            "write the provider's issuer",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, plaudit: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if said == "write the provider's issuer":
        monkeypatch.setenv("PLAUDIT_LABEL_OIDC_SECRET", "s")
    open_project("a.sqlite").dispose()
    before = sorted(tmp_path.iterdir())
    done = plaudit("label", *words)
    assert done.code == 2 and said in done.err, done.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_provider_is_asked_before_anything_is_served(
    tmp_path: Path, plaudit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit.label.web.serve.serve", lambda *_: None)
    monkeypatch.setenv("PLAUDIT_LABEL_OIDC_SECRET", "s")
    database = tmp_path / "a.sqlite"
    given = ("serve", "--database", str(database), "--port", "0", "--oidc-client", "x", "--oidc")
    with fake_provider() as fake:
        done = plaudit("label", *given, f"{fake.issuer}/another")
        assert done.code == 2 and "is it the issuer?" in done.err and not database.exists()
        assert plaudit("label", *given, fake.issuer).code == 0
    done = plaudit("label", *given, fake.issuer)  # away by now: it may be back before anybody signs in
    assert done.code == 0 and f"Warning: {fake.issuer} cannot be reached" in done.err


def test_without_the_extra_the_option_says_what_to_install(plaudit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.cli.label.SIGN_IN", ("authlib_that_is_not_there",))
    done = plaudit("label", "serve", "--database", "a.sqlite", "--oidc", "https://x.example")
    assert done.code == 2 and "pip install 'plaudit[label,oidc]'" in done.err
