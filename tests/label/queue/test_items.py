"""Files of items: what was added once is known by its bytes and not read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from plaudit.errors import UserError
from plaudit.label.db.schema import item
from plaudit.label.queue import items
from plaudit.label.queue.items import compared
from plaudit.records import Message, Prompt


def prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(count)), encoding="utf-8")
    return path


def test_a_file_that_was_added_is_not_read_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = prompts(tmp_path / "prompts.jsonl", 3)
    assert items.add_file(engine, file) == (3, 0)
    with monkeypatch.context() as patched:
        patched.setattr(items, "drafts", None)
        assert items.add_file(engine, file) == (0, 3)
        with pytest.raises(TypeError):  # asked for as another task it is read
            items.add_file(engine, file, task="write")
    assert items.add_file(engine, prompts(file, 5)) == (2, 3)
    assert items.add_file(engine, file) == (0, 5)


def test_comparisons_ask_as_many_people_as_the_run_asks(add: Any, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    said = {name: {"text": f"by {name}", "finished": True} for name in ("sft", "ppo")}
    (tmp_path / "evaluate" / "replies.jsonl").write_text(json.dumps({"id": "p", **said}) + "\n", encoding="utf-8")
    prompts = [Prompt("p", (Message("user", "Why?"),), "how", "test")]
    for overlap, slots in ((3, 3), (None, 1)):  # None is the project's
        (made,), alike = compared(tmp_path, prompts, overlap)
        assert (made.task, alike) == ("compare", 0)
        add(replace(made, source_file=f"{overlap}"))
        with engine.connect() as connection:
            free = connection.execute(select(item.c.free).where(item.c.source_file == f"{overlap}")).scalar()
        assert free == slots
        with engine.begin() as connection:
            connection.execute(item.delete())


def test_a_file_with_a_bad_row_is_not_known_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.jsonl", 2)
    good = file.read_text(encoding="utf-8")
    file.write_text(good + '{"prompt": 3}\n', encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UserError, match=r"prompts\.jsonl:3"):
            items.add_file(engine, file)
    assert not items.has_items(engine)
