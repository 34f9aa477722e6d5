"""The words of the annotators' pages: whole in every language, used, and nowhere else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from label_kit import World, form_token

from plaudit.label.web.shared.render import PAGES, STATIC, page_html
from plaudit.label.web.text.wording import ENGLISH, FOLDER, language_of, languages, texts

KEY = re.compile(r"[\"'`]([a-z]+\.[a-z_]+)[\"'`]")
PYTHON = list(PAGES.parent.rglob("*.py"))


def scripts_of_annotators() -> set[Path]:
    """What the two pages load, and what that imports."""
    found: set[Path] = set()
    waiting = [STATIC / "label.js", STATIC / "history.js"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'from "\./([\w/.-]+)"', file.read_text(encoding="utf-8"))
            waiting.extend(STATIC / name for name in names)
    return found


def forms(text: Any) -> list[str]:
    return list(text.values()) if isinstance(text, dict) else [text]


def test_every_language_has_every_text_with_the_same_names_to_fill_in() -> None:
    assert set(languages()) >= {"en", "de"} and languages()["de"] == "Deutsch"
    for tag in languages():
        own, english = texts(tag), texts(ENGLISH)
        assert list(own) == list(english), tag
        for key in english:
            wanted = {name for form in forms(english[key]) for name in re.findall(r"\{\w+\}", form)}
            for form in forms(own[key]):
                assert form.strip() and set(re.findall(r"\{\w+\}", form)) == wanted, (tag, key)
            assert ("other" in own[key]) if isinstance(english[key], dict) else isinstance(own[key], str), (tag, key)


def test_no_key_stands_twice_in_a_file() -> None:
    for tag in languages():
        pairs = json.loads((FOLDER / f"{tag}.json").read_text(encoding="utf-8"), object_pairs_hook=list)
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), tag


def test_every_text_is_used_and_every_key_that_is_used_is_there() -> None:
    files = [*scripts_of_annotators(), *PAGES.glob("*.j2"), *PYTHON]
    used = {key for file in files for key in KEY.findall(file.read_text(encoding="utf-8"))}
    groups = {key.partition(".")[0] for key in texts(ENGLISH)}
    assert {key for key in used if key.partition(".")[0] in groups} == set(texts(ENGLISH)) - {"language"}


def test_the_annotators_pages_have_no_words_of_their_own() -> None:
    """A script's string with a capital and a blank is a sentence; between a page's tags there is nothing but marks."""
    for file in scripts_of_annotators():
        code = re.sub(r"^\s*(//|\*|/\*).*$|(?<=[;,{)]) // .*$", "", file.read_text(encoding="utf-8"), flags=re.M)
        assert not re.findall(r"[\"'`][A-Z][a-z]*[ .,!?][^\"'`]*[\"'`]", code), file.name
    for file in PAGES.glob("*.j2"):
        if file.name != "admin.html.j2":
            text = re.sub(
                r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<kbd[^>]*>\w</kbd>|<[^>]*>", "", file.read_text("utf-8"), flags=re.S
            )
            assert re.findall(r"\w\w+", text.replace("Plaudit", "")) == [], file.name


@pytest.mark.parametrize(
    ("project", "accepted", "expected"),
    [
        ("browser", "", "en"),
        ("browser", "de", "de"),
        ("browser", "de-AT, en;q=0.8", "de"),
        ("browser", "en-GB,en;q=0.9,de;q=0.8", "en"),
        ("browser", "fr-CH, fr;q=0.9, de;q=0.5, *;q=0.1", "de"),
        ("browser", "fr, ja;q=0.5", "en"),
        ("browser", "de;q=0, en;q=0.1", "en"),
        ("browser", "de;q=nonsense, ;;,", "en"),
        ("de", "en", "de"),
        ("en", "de", "en"),
    ],
)
def test_the_project_says_the_language_or_the_browser_asks_for_it(project: str, accepted: str, expected: str) -> None:
    assert language_of(project, accepted) == expected


def test_pages_speak_the_language_and_say_which(small_world: World) -> None:
    boss, german = small_world.join("boss", "admin"), {"Accept-Language": "de-DE,de;q=0.9"}
    browser = small_world.browser()
    page = browser.get("/login", headers=german).text
    assert '<html lang="de">' in page and "Anmelden" in page
    data = {"name": "boss", "password": "not the password", "csrf": form_token(page)}
    assert "Name oder Passwort ist falsch." in browser.post("/login", data=data, headers=german).text
    invite = browser.get("/join/closed", headers=german).text
    assert "Dieser Link gilt nicht mehr" in invite
    for path in ("/", "/history"):
        assert '<html lang="de">' in boss.browser.get(path, headers=german).text
    # The admin's page is English, whatever is asked for.
    assert '<html lang="en">' in boss.browser.get("/admin", headers=german).text
    assert boss.post("/api/admin/project", {"language": "de"}).json()["language"] == "de"
    assert '<html lang="de">' in browser.get("/login", headers={"Accept-Language": "en"}).text
    assert boss.get("/api/admin/project").json()["languages"] == languages()
    refused = boss.post("/api/admin/project", {"language": "xx"})
    assert refused.status_code == 422 and "browser, de, en" in refused.json()["error"] + refused.json()["fix"]


def test_a_name_in_a_text_is_escaped_and_a_mark_of_ours_is_not() -> None:
    page = page_html("invite", language="de", project="", csrf="", token="t", name="<i>ann", error=None, up="../")
    assert "als <strong>&lt;i&gt;ann</strong> an." in page and "<i>ann" not in page
