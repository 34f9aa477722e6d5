"""The service as a process: what it loads and takes, what it prints, and its commands."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from label_kit import PASSWORD, form_token
from sqlalchemy import update

from plaudit.cli.label import database_of
from plaudit.errors import UserError
from plaudit.label.db import ledger, schema
from plaudit.label.db.database import connect, open_project, snapshot, writing
from plaudit.label.queue import items
from plaudit.label.web.serve import Place, listen

MOST_MB = 200
CODE = "from plaudit.cli.main import main; main()"


def default_database(source: Path | None) -> Path:
    return Path(database_of(source, None))


def rankings(path: Path, count: int = 20) -> Path:
    rows = [
        {
            "id": f"p{n}",
            "prompt": f"Question {n}?",
            "responses": [
                {"text": f"first {n}", "rank": 1, "source": "sft"},
                {"text": f"second {n}", "rank": 2, "source": "ppo"},
                {"text": f"third {n}", "rank": 2, "source": "ppo", "finished": False},
            ],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """`plaudit label serve FILE` as a process of its own; the lines that it printed, and its address."""
    file = rankings(tmp_path / "rankings.jsonl")
    command = [sys.executable, "-c", CODE, "label", "serve", str(file), "--port", "0", "--overlap", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        url = re.search(r"Labelling at (\S+)", "".join(lines))
        assert url is not None, lines
        yield SimpleNamespace(process=process, lines=lines, url=url[1], file=file)
        process.terminate()


def test_the_service_labels_and_never_loads_torch_and_stays_small(served: SimpleNamespace) -> None:
    """From the printed link to an export: then the process's memory, and every library that it has open."""
    link = re.search(r"http\S+/invite/\S+", served.lines[2])
    assert link is not None and link[0].startswith(served.url)
    assert f"{served.file}: 20 new items" in served.lines[0]
    with httpx.Client(base_url=served.url, timeout=60) as browser:
        csrf = form_token(browser.get(link[0]).text)
        joined = browser.post(link[0], data={"password": PASSWORD, "csrf": csrf})
        assert (joined.status_code, joined.headers["location"]) == (303, "/admin")  # where no item is reserved for them
        headers = {"X-CSRF-Token": browser.get("/api/me").json()["csrf"]}
        for number in range(20):
            claimed = browser.post("/api/claim", json={"task": None}, headers=headers).json()
            sent = {"client_id": f"client-id-{number}", "lease": claimed["lease"], "positions": {"ranks": [1, 2, 3]}}
            assert browser.post("/api/submit", json=sent, headers=headers).status_code == 200
        assert browser.post("/api/claim", json={"task": None}, headers=headers).status_code == 204
        numbers = browser.get("/api/admin/dashboard").json()
        assert numbers["progress"]["given"] == 20 and numbers["people"][0]["name"] == "admin"
        exported = browser.get("/api/admin/export?format=rankings&annotator=admin")
        rows = [json.loads(line) for line in exported.text.splitlines()]
        assert len(rows) == 20 and {row["annotator"] for row in rows} == {"admin"}
        assert exported.headers["content-disposition"] == 'attachment; filename="rankings.jsonl"'
        assert exported.headers["x-plaudit-export"] == "20 rows"
        none = browser.get("/api/admin/export?format=comparisons")
        assert none.headers["x-plaudit-export"] == (
            "0 rows; left out: 20 of the task rank (--format rankings, pairs or hh)"
        )
        assert browser.get("/api/admin/export?annotator=nobody").status_code == 422
        refused = browser.get("/api/admin/export?since=2026-11-23&until=2026-11-01")
        assert refused.json() == {"error": "since must come before until", "fix": "exchange them"}
    status = Path(f"/proc/{served.process.pid}/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(f"peak {int(peak[1]) / 1024:.0f} MB")
    assert int(peak[1]) / 1024 < MOST_MB
    maps = Path(f"/proc/{served.process.pid}/maps").read_text(encoding="utf-8")
    assert "sqlite" in maps and not re.search(r"torch|transformers|pandas|pyarrow", maps)


def test_the_script_of_the_docs_ranks_everything(served: SimpleNamespace, tmp_path: Path, plaudit: Any) -> None:
    page = (Path(__file__).parents[3] / "docs" / "label-api.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(# rank_all\.py\n.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    link = plaudit("label", "invite", "robot", str(served.file)).out.strip()
    assert link.startswith(f"{served.url}/invite/")  # where it is served, and not a default
    done = subprocess.run([sys.executable, "-c", script, link], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.count("'replayed': False") == 20
    with snapshot(connect(default_database(served.file))) as connection:
        rows = list(ledger.labels(connection))
    # "first 7", "second 7", "third 7 (cut)": the shortest is best.
    assert [row.ranks for row in rows] == [(1, 2, 3)] * 20


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    file = rankings(tmp_path / "rankings.jsonl", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", CODE, "label", "serve", str(file), "--port", port],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2 and "choose another --port" in done.stderr and "Traceback" not in done.stderr
    assert not default_database(file).exists()  # nothing was written before


def test_a_file_that_is_not_there_makes_no_database(tmp_path: Path, plaudit: Any) -> None:
    file = rankings(tmp_path / "rankings.jsonl", 1)
    for words in (
        ("serve", "typo.jsonl"),
        ("add", "typo.jsonl"),
        ("import", "typo.jsonl", str(file)),
        ("serve", str(file), "--gold", "typo.jsonl"),
    ):
        done = plaudit("label", *words)
        assert done.code == 2 and done.err == "Error: typo.jsonl: no such file or folder; check the name\n"
    assert list(tmp_path.iterdir()) == [file]


def test_nobody_serves_in_the_clear_unwarned() -> None:
    assert Place("127.0.0.1").warning() is Place("::1").warning() is Place("localhost").warning() is None
    for place in (Place("0.0.0.0"), Place("::"), Place("192.0.2.7"), Place("0.0.0.0", url="http://label.example")):
        assert "without TLS" in str(place.warning())
    assert Place("0.0.0.0", url="https://label.example").warning() is None


@pytest.mark.parametrize("url", ["label.example", "ftp://label.example", "https://", "https://h/path?query"])
def test_an_address_of_the_browsers_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="--url"):
        listen(Place(url=url))


def test_each_run_and_file_has_a_database_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}\n", encoding="utf-8")
    assert default_database(tmp_path / "run") == tmp_path / "run" / "label" / "labels.sqlite"
    assert default_database(tmp_path / "x.jsonl") == tmp_path / "x.jsonl.labels.sqlite"
    # All rounds have that of their run, and a recipe may name another.
    (tmp_path / "run/round-2").mkdir()
    (tmp_path / "run/round-2/recipe.yaml").write_text("{}\n", encoding="utf-8")
    assert default_database(tmp_path / "run/round-2") == tmp_path / "run" / "label" / "labels.sqlite"
    (tmp_path / "run/recipe.yaml").write_text("preferences: {database: /srv/our.sqlite}\n", encoding="utf-8")
    assert default_database(tmp_path / "run") == Path("/srv/our.sqlite")
    with pytest.raises(UserError, match="--database"):
        default_database(None)


def test_the_database_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    engine = open_project(tmp_path / "deep" / "labels.sqlite")
    os.umask(before)
    with engine.connect():
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "deep").iterdir()}
    assert modes == dict.fromkeys(("labels.sqlite", "labels.sqlite-wal", "labels.sqlite-shm"), 0o600)


# --- items from files ---

ROWS = {
    "rankings": ({"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}, "rank", 2),
    "pairs": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "rank", 2),
    "hh": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "rank", 2),
    "votes": ({"prompt": "q", "responses": [{"text": "a", "votes": 1}, {"text": "b", "votes": 2}]}, "rank", 2),
    "strength": ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 1}, "rank", 2),
    "prompts": ({"prompt": "q"}, "write", 0),
    "prompt-completion": ({"prompt": "q", "completion": "a"}, "write", 1),
    "messages": ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "write", 1),
    "alpaca": ({"instruction": "q", "output": "a"}, "write", 1),
    "winner": ({"prompt": "q", "response_a": "a", "response_b": "b", "winner": "a"}, "rank", 2),
    "unpaired": ({"prompt": "q", "completion": "a", "label": True}, "write", 1),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "write", 1),
}


@pytest.mark.parametrize("format", ROWS)
def test_every_format_becomes_items(tmp_path: Path, format: str) -> None:
    row, task, replies = ROWS[format]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    engine = open_project(tmp_path / "labels.sqlite")
    assert items.add_items(engine, items.drafts(path)) == (1, 0)
    assert items.add_items(engine, items.drafts(path)) == (0, 1)  # a second import changes nothing
    with snapshot(engine) as connection:
        (item,) = ledger.items(connection)
    assert (item.task, len(item.replies), item.messages[0].content, item.gold) == (task, replies, "q", None)
    assert item.source_file == "rows.jsonl"


def test_replies_that_say_the_same_are_one(tmp_path: Path) -> None:
    replies = [{"text": text, "rank": at, "source": f"s{at}"} for at, text in enumerate(("b", "a", "b", "c", "a"), 1)]
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "q", "responses": replies}, {"prompt": "q", "responses": [{"text": "a", "rank": 1}] * 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    alike: list[str] = []
    (item,) = items.drafts(path, alike=alike)
    assert alike == [f"{path}:2"]  # as a run's own replies may be: nobody is asked
    assert [reply.text for reply in item.replies] == ["b", "a", "c"] and item.sources == ("s1", "s2", "s4")


def test_formats_are_all_tried() -> None:
    from plaudit.data.formats.reader import FORMATS

    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize(
    ("row", "task", "gold", "match"),
    [
        (ROWS["prompts"][0], "rank", False, "cannot become task 'rank'"),
        (ROWS["rankings"][0], "write", False, "cannot become task 'write'"),
        (ROWS["prompts"][0], None, True, "a gold item needs ranked replies"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, None, True, "one text cannot beat itself"),
        ({"prompt": "q", "responses": [{"text": str(n), "rank": 1} for n in range(3)]}, "compare", False, "needs two"),
        ({"prompt": "q", "responses": [{"text": str(n), "rank": 1} for n in range(17)]}, None, False, "2 to 16"),
    ],
)
def test_rows_that_cannot_be_that(
    tmp_path: Path, row: dict[str, Any], task: str | None, gold: bool, match: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=match) as told:
        list(items.drafts(path, task=task, gold=gold))
    assert f"{path}:1" in str(told.value)


# --- the commands ---


def test_add_invite_and_people(tmp_path: Path, plaudit: Any) -> None:
    file = rankings(tmp_path / "rankings.jsonl", 3)
    assert "3 new items" in plaudit("label", "add", str(file)).out
    assert "0 new items, 3 were there already" in plaudit("label", "add", str(file)).out
    gold = rankings(tmp_path / "gold.jsonl", 4)
    database = str(default_database(file))
    assert "4 new items" in plaudit("label", "add", str(gold), "--gold", "--database", database).out
    done = plaudit("label", "invite", "ann", str(file))
    assert "Not served yet" in done.err and done.out.startswith("http://127.0.0.1:8080/invite/")
    link = plaudit("label", "invite", "ann", str(file), "--url", "https://label.example/").out.strip()
    assert re.fullmatch(r"https://label\.example/invite/[\w-]{43}", link)
    assert re.search(r"ann +│ annotator │ invited", plaudit("label", "people", str(file)).out)
    assert "disabled" in plaudit("label", "people", str(file), "--disable", "ann").out
    assert "disabled" not in plaudit("label", "people", str(file), "--enable", "ann").out
    for words in (("invite", "ann"), ("people",)):  # a path that was mistyped makes no new database
        done = plaudit("label", *words, str(tmp_path / "typo.jsonl"))
        assert done.code == 2 and "no such database" in done.err
    assert not list(tmp_path.glob("typo*"))
    done = plaudit("label", "people", str(file), "--disable", "nobody")
    assert done.code == 2 and "nobody is called 'nobody'" in done.err
    plaudit("label", "invite", "chief", str(file), "--role", "admin")
    done = plaudit("label", "people", str(file), "--disable", "chief")
    assert done.code == 2 and "'chief' is the only admin" in done.err
    plaudit("label", "invite", "deputy", str(file), "--role", "admin")
    assert plaudit("label", "people", str(file), "--disable", "chief").code == 0
    with snapshot(connect(database)) as connection:
        assert [item.gold for item in ledger.items(connection)] == [None] * 3 + [(1, 2, 2)] * 4


def test_a_run_that_waits_for_its_people_is_served_as_it_is(
    tmp_path: Path, plaudit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replies are in the database already, and there are no rankings before the people have ranked."""
    monkeypatch.setattr("plaudit.label.web.serve.serve", lambda *_: None)
    anywhere = ("--port", "0")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("{}\n", encoding="utf-8")
    assert plaudit("label", "serve", str(run), *anywhere).code == 2  # nothing was sampled yet
    items.add_items(open_project(default_database(run)), items.drafts(rankings(tmp_path / "rankings.jsonl")))
    assert plaudit("label", "serve", str(run), *anywhere, "--lease-minutes", "5").code == 0
    with snapshot(connect(default_database(run))) as connection:
        assert ledger.project(connection).lease_minutes == 5 and len(list(ledger.items(connection))) == 20
    # Items with a number of people of their own keep it, and whoever asks for another one is told.
    assert "items as they are" not in plaudit("label", "serve", str(run), *anywhere, "--overlap", "3").err
    with writing(connect(default_database(run))) as connection:
        connection.execute(update(schema.item).where(schema.item.c.number <= 6).values(overlap=2))
    told = plaudit("label", "serve", str(run), *anywhere, "--overlap", "3").err
    assert "--overlap 3 leaves 6 items as they are" in told and "preferences.overlap" in told


def test_a_project_is_called_after_its_file_and_never_after_us(
    tmp_path: Path, plaudit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit.label.web.serve.listen", contextlib.nullcontext)
    monkeypatch.setattr("plaudit.label.web.serve.serve", lambda *_: None)
    monkeypatch.setattr("plaudit.label.web.shared.aside.add", lambda *_: None)
    file = rankings(tmp_path / "kind replies.jsonl", 1)
    for given, database, expected in (([str(file)], "a", "kind replies"), ([], "b", "Labels")):
        where = str(tmp_path / f"{database}.sqlite")
        assert plaudit("label", "serve", *given, "--database", where).code == 0
        with snapshot(connect(where)) as connection:
            assert ledger.project(connection).name == expected
    refused = plaudit("label", "serve", "--database", str(tmp_path / "c.sqlite"), "--language", "xx")
    assert refused.code == 2 and "write browser, de, en" in refused.err


def test_a_bad_row_puts_nothing_in(tmp_path: Path, plaudit: Any) -> None:
    file = rankings(tmp_path / "rankings.jsonl", 500)
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"prompt": "q", "responses": []}\n')
    done = plaudit("label", "add", str(file))
    assert done.code == 2 and f"{file}:501" in done.err
    with snapshot(connect(default_database(file))) as connection:
        assert list(ledger.items(connection)) == []


def test_without_the_extra_a_command_says_what_to_install(tmp_path: Path) -> None:
    """An environment without FastAPI: the command line works, and `label` names the extra."""
    hide = (
        "import sys, importlib.abc, importlib.util\n"
        "gone = ('fastapi', 'sqlalchemy', 'argon2')\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in gone: raise ModuleNotFoundError(name=name)\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name in gone else real(name, *a)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    for words, code in ((["--help"], 0), (["label", "--help"], 0), (["label", "serve", str(tmp_path / "x.jsonl")], 2)):
        done = subprocess.run(
            [sys.executable, "-c", hide + CODE, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == code, done.stderr
    assert "pip install 'plaudit[label]'" in done.stderr and "fastapi" in done.stderr and "Traceback" not in done.stderr


def test_help_loads_neither_torch_nor_the_extra() -> None:
    code = "import sys, plaudit.cli.main; print([m for m in ('fastapi', 'sqlalchemy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stopping_is_quick_and_keeps_what_was_said(served: SimpleNamespace) -> None:
    served.process.terminate()
    _, said = served.process.communicate(timeout=60)
    assert f"are kept in {default_database(served.file)}; the same command serves them again" in said
    assert "checkpoint" not in said and served.process.returncode == 143
    with snapshot(connect(default_database(served.file))) as connection:
        assert ledger.project(connection).overlap == 2 and len(list(ledger.items(connection))) == 20
