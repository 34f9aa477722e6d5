"""Many invitations from one CSV file: all of them, or none and the line that is wrong."""

from pathlib import Path

import pytest
from label_kit import World

from plaudit.errors import UserError
from plaudit.label.db import ledger
from plaudit.label.db.database import open_project, snapshot, writing
from plaudit.label.invitations import invite_all, read_invitations

GOOD = 'name,role,quota,fields\nann,annotator,200,"medical 50; law"\nbo,admin,,\n'


def test_everybody_is_invited_with_their_quota_and_fields(tmp_path: Path) -> None:
    engine = open_project(tmp_path / "labels.sqlite")
    with writing(engine) as connection:
        links = invite_all(
            connection, read_invitations(f"\ufeff{GOOD}", "people.csv"), lambda token: f"http://x/{token}"
        )
    lines = links.removeprefix("\ufeff").splitlines()
    assert lines[0] == "name,role,link" and [line.split(",")[:2] for line in lines[1:]] == [
        ["ann", "annotator"],
        ["bo", "admin"],
    ]
    assert len({line.split(",")[2] for line in lines[1:]}) == 2 and "http://x/" in lines[1]
    with snapshot(engine) as connection:
        ann, bo = ledger.people(connection)
    assert (ann.name, ann.quota, ann.fields, ann.invited) == ("ann", 200, {"medical": 50, "law": None}, True)
    assert (bo.role, bo.quota, bo.fields) == ("admin", None, {})
    engine.dispose()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("who\nann\n", r"people\.csv:1: there is no column 'name'"),
        ("name,skill\nann,law\n", r"people\.csv:1: column 'skill' is unknown"),
        ("name,quota\nann,3\nbo,many\n", r"people\.csv:3: field 'quota' 'many'"),
        ("name\nann\nAnn\n", r"people\.csv:3: 'Ann' is in line 2 already"),
        ("name,role\nann,annotator,3\n", r"people\.csv:2: more cells than columns"),
        ("name\n", r"people\.csv: 0 people"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_line(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_invitations(text, "people.csv")


def test_over_http_a_wrong_row_invites_nobody(small_world: World) -> None:
    boss = small_world.join("boss", "admin")
    refused = boss.post("/api/admin/invites", {"csv": "name,role\nann,annotator\nbo,king\n"})
    assert refused.status_code == 422 and "the file:3" in refused.json()["error"]
    assert [row["name"] for row in boss.get("/api/admin/people").json()["people"]] == ["boss"]
    made = boss.post("/api/admin/invites", {"csv": GOOD})
    assert made.status_code == 200 and made.json()["links"].count("/invite/") == 2
    token = made.json()["links"].splitlines()[1].rpartition("/invite/")[2]
    assert small_world.browser().get(f"/invite/{token}").status_code == 200


def test_an_admin_pauses_somebody_and_says_what_they_are_given(small_world: World) -> None:
    boss, ann = small_world.join("boss", "admin"), small_world.join("ann")
    who = next(row["id"] for row in boss.get("/api/admin/people").json()["people"] if row["name"] == "ann")
    sent = {"paused": True, "quota": 5, "fields": "law 2; poem"}
    told = {"paused": True, "quota": 5, "fields": {"law": 2, "poem": None}}
    assert boss.post(f"/api/admin/person/{who}", sent).json() == told
    assert ann.get("/api/me").json()["project"]["paused"] and ann.claim() is None
    row = next(row for row in boss.get("/api/admin/people").json()["people"] if row["name"] == "ann")
    assert {name: row[name] for name in told} == told
    assert boss.get("/api/admin/log").json()["log"][0]["what"] == "allow"
    assert ann.post(f"/api/admin/person/{who}", {"paused": False}).status_code == 403
