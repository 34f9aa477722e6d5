"""Pictures of guidelines: kept in the database, checked by their bytes, shown to whoever is signed in."""

from base64 import b64encode
from pathlib import Path

import pytest
from label_kit import World

from plaudit.errors import UserError
from plaudit.label.db.database import open_project, writing
from plaudit.label.web.text.pictures import MOST_BYTES, guidelines_html, keep, with_pictures

PNG = b"\x89PNG\r\n\x1a\n" + b"not looked at"
ID = "0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG, GIF or WebP"),
        (b"", "no PNG"),
        (b"RIFF1234WAVE", "no PNG"),
        (PNG + b"x" * MOST_BYTES, "1,048,597 bytes, more than 1,048,576"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told), writing(open_project(tmp_path / "x.sqlite")) as connection:
        keep(connection, data)


def test_an_admin_puts_a_picture_in_and_who_is_signed_in_sees_it(small_world: World) -> None:
    boss, ann = small_world.join("boss", "admin"), small_world.join("ann")
    markdown = boss.post("/api/admin/picture", {"data": b64encode(PNG).decode()}).json()["markdown"]
    boss.post("/api/admin/project", {"guidelines": f"So:\n\n{markdown}"})
    html = ann.get("/api/me").json()["project"]["guidelines_html"]
    address = html.partition('<img src="')[2].partition('"')[0]
    shown = ann.get(address)
    assert (shown.content, shown.headers["content-type"]) == (PNG, "image/png")
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert small_world.browser().get(address).status_code == 401
    assert ann.get("/picture/other").status_code == 404
    assert boss.post("/api/admin/picture", {"data": "no base64!"}).status_code == 422


def test_pictures_beside_the_file_are_kept_with_it(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PNG)
    engine = open_project(tmp_path / "x.sqlite")
    with writing(engine) as connection:
        text = with_pictures(connection, "![a](one.png) ![b](https://example.org/x.png) ![c](one.png)", tmp_path)
        first, second, third = text.split(" ")
        assert second == "![b](https://example.org/x.png)"
        assert first.removeprefix("![a]") == third.removeprefix("![c]") and "(picture:" in first
        with pytest.raises(UserError, match=r"two\.png.*the guidelines show it"):
            with_pictures(connection, "![](two.png)", tmp_path)


def test_no_other_picture_and_no_attribute_gets_into_a_page() -> None:
    assert guidelines_html(f'![a "b" <c>](picture:{ID})').count("<img") == 1
    assert 'alt="a &quot;b&quot; &lt;c&gt;"' in guidelines_html(f'![a "b" <c>](picture:{ID})')
    for text in ("![x](https://example.org/x.png)", "![x](picture:../me)", f"![x](picture:{ID}?y)", "\ue0000\ue001"):
        assert "<img" not in guidelines_html(text)
