"""The whole database elsewhere: taken while people label, brought back, moved to PostgreSQL and back."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import first_schema
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from annotators import join, label_next
from label_kit import draft
from sqlalchemy import Engine, insert, select, text

from plaudit.errors import UserError
from plaudit.label.db import schema, writer
from plaudit.label.db.database import connect, open_project, snapshot, writing
from plaudit.label.db.ledger import read
from plaudit.label.db.writer import Writer
from plaudit.label.queue import leases
from plaudit.label.queue.allowances import set_allowance
from plaudit.label.queue.items import add_items
from plaudit.label.transfer.copies import backup, ledger_hash, move, restore
from plaudit.label.web.text.pictures import keep


def judge(shown: list[str]) -> dict[str, Any]:
    return {"ranks": [1 + sum(other < own for other in shown) for own in shown], "reason": "é ünïcode"}


def labelled(path: Path, count: int, name: str = "ann") -> Engine:
    """A database in which somebody answered so many items."""
    engine = open_project(path, "Kind replies")
    add_items(engine, [draft(number, overlap=2) for number in range(count)])
    who = join(engine, name)
    for _ in range(count):
        assert label_next(engine, who, judge)
    return engine


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "labels.sqlite"
    engine = labelled(path, 4)
    with writing(engine) as connection:  # a row in every table that a copy could forget
        set_allowance(connection, 1, quota=50, fields={"secret-kind": None})
        keep(connection, b"GIF89a and more")
        row = {"name": "secret-file.jsonl", "digest": "0" * 64, "gold": False, "items": 4, "created": 1.5}
        connection.execute(insert(schema.batch).values(row))
    yield path
    engine.dispose()


def digest_of(path: Path | str) -> Any:
    engine = connect(path)
    with snapshot(engine) as connection:
        found = ledger_hash(connection)
    engine.dispose()
    return found


def test_a_backup_taken_while_somebody_labels_is_one_whole_moment(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    engine = open_project(path, "Kind replies")
    add_items(engine, [draft(number) for number in range(60)])
    who, stop = join(engine, "ann"), threading.Event()

    def work() -> None:
        while not stop.is_set() and label_next(engine, who, judge):
            continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        taken = [backup(str(path), tmp_path / f"backup-{number}.sqlite") for number in range(3)]
    finally:
        stop.set()
        thread.join()
    for number, copied in enumerate(taken):
        file = tmp_path / f"backup-{number}.sqlite"
        assert sorted(one.name for one in tmp_path.glob(f"{file.name}*")) == [file.name]  # one file, and no -wal
        assert digest_of(file) == copied
        with snapshot(connect(file)) as connection:
            book = read(connection)
        assert len(book.labels) == copied.labels == len({row.item for row in book.labels})
    engine.dispose()


def test_a_restored_backup_has_every_row_also_beside_an_old_wal(full: Path, tmp_path: Path) -> None:
    taken = backup(str(full), tmp_path / "monday.sqlite")
    engine = connect(full)
    who = join(engine, "bo")
    label_next(engine, who, judge)  # not in the backup, and perhaps still in the -wal
    restored, kept = restore(tmp_path / "monday.sqlite", str(full), replace=True)
    assert restored == taken == digest_of(full)
    assert kept is not None and digest_of(kept).labels == taken.labels + 1
    label_next(engine, join(engine, "cy"), judge)  # and it goes on
    assert digest_of(full).labels == taken.labels + 1
    engine.dispose()


def test_what_must_not_be_restored_is_refused_by_name(full: Path, tmp_path: Path) -> None:
    backup(str(full), tmp_path / "monday.sqlite")
    notes, empty = tmp_path / "notes.txt", tmp_path / "empty.sqlite"
    notes.write_text("not a database, " * 100, encoding="utf-8")
    sqlite3.connect(empty).execute("CREATE TABLE theirs (x INTEGER)")
    new = str(tmp_path / "new.sqlite")
    for file, words in (
        (notes, "notes.txt: cannot be read as a label database"),
        (empty, "empty.sqlite: holds no label database"),
        (tmp_path / "none.sqlite", "none.sqlite: no such file"),
    ):
        with pytest.raises(UserError, match=words):
            restore(file, new, replace=False)
    with pytest.raises(UserError, match="--replace keeps it"):
        restore(tmp_path / "monday.sqlite", str(full), replace=False)
    Path(f"{new}-wal").write_bytes(b"left over")
    with pytest.raises(UserError, match=r"new\.sqlite-wal: is left of another database"):
        restore(tmp_path / "monday.sqlite", new, replace=False)
    with pytest.raises(UserError, match="name another file"):
        backup(str(full), tmp_path / "monday.sqlite")


def test_to_postgresql_and_back_every_row_is_the_same(full: Path, tmp_path: Path, postgres: Any) -> None:
    def rows(where: Path | str) -> dict[str, list[Any]]:
        engine = connect(where)
        with snapshot(engine) as connection:
            tables = schema.metadata.sorted_tables
            found = {
                one.name: connection.execute(select(one).order_by(*one.primary_key.columns)).all() for one in tables
            }
        engine.dispose()
        return found

    there = postgres.create_schema("moved")
    before = rows(full)
    assert move(str(full), there) == digest_of(full) == digest_of(there)
    assert rows(there) == before
    with pytest.raises(UserError, match="holds a project already"):
        move(str(full), there)
    engine = connect(there)
    label_next(engine, join(engine, "bo"), judge)  # numbers go on where they were
    engine.dispose()
    back = tmp_path / "back.sqlite"
    assert move(there, str(back)) == digest_of(back)
    assert digest_of(back).labels == 5
    taken = backup(there, tmp_path / "of-postgres.sqlite")
    assert taken == digest_of(back)
    other = postgres.create_schema("restored")
    assert restore(tmp_path / "of-postgres.sqlite", other, replace=False)[0] == taken


def test_over_the_command_line(full: Path, tmp_path: Path, plaudit: Callable[..., SimpleNamespace]) -> None:
    done = plaudit("label", "backup", "--database", full, "--to", tmp_path / "b.sqlite")
    assert done.code == 0 and "4 rows of the ledger, hash" in done.out
    done = plaudit("label", "restore", tmp_path / "b.sqlite", "--database", tmp_path / "new.sqlite")
    assert done.code == 0, done.err
    done = plaudit("label", "move", "--database", tmp_path / "new.sqlite", "--to", str(tmp_path / "c.sqlite"))
    assert done.code == 0 and digest_of(tmp_path / "c.sqlite") == digest_of(full)


# --- the files of a database that is served ---


def test_what_was_committed_leaves_the_wal_file_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A careless copy of the .sqlite alone must not be empty."""
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0.2)
    path = tmp_path / "labels.sqlite"
    engine = open_project(path, "Kind replies")
    add_items(engine, [draft(1)])
    ann = join(engine, "ann")
    served = Writer(engine)
    claimed = served.run(lambda connection: leases.claim(connection, ann))
    assert claimed is not None
    served.run(lambda connection: leases.submit(connection, ann, claimed.lease, "client-1", {"ranks": [1, 2, 3, 4]}))
    for _ in range(100):
        time.sleep(0.05)
        shutil.copyfile(path, tmp_path / "copied.sqlite")
        try:
            if digest_of(tmp_path / "copied.sqlite").labels == 1:
                break
        except Exception:  # not even its tables are there yet
            continue
    else:
        pytest.fail("the label is in the -wal file alone")
    served.close()
    assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").stat().st_size == 0
    engine.dispose()


def test_who_only_reads_changes_no_schema(tmp_path: Path, plaudit: Callable[..., SimpleNamespace]) -> None:
    path = tmp_path / "old.sqlite"
    engine = connect(path)
    with writing(engine) as connection:
        with Operations.context(MigrationContext.configure(connection)):
            first_schema.upgrade()
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    engine.dispose()
    before = path.read_bytes()
    for command in (["stats"], ["people"], ["export", "--to", tmp_path / "x.jsonl"], ["invite", "ann"]):
        done = plaudit("label", *command, "--database", path)
        assert done.code == 2 and "its schema is '0001'" in done.err
    assert path.read_bytes() == before
    # Who writes brings it up to date, and keeps it as it was.
    open_project(path).dispose()
    kept = sqlite3.connect(tmp_path / "old.sqlite.before-0001")
    assert kept.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)


def test_a_copy_without_its_wal_is_no_empty_project(tmp_path: Path, plaudit: Callable[..., SimpleNamespace]) -> None:
    path = tmp_path / "copied.sqlite"
    sqlite3.connect(path).execute("PRAGMA journal_mode = WAL")
    done = plaudit("label", "stats", "--database", path)
    assert done.code == 2 and "holds no label database" in done.err and "plaudit label backup" in done.err
