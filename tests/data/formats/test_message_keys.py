"""What a message says beside its role and its text, and what a row says beside its messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.files import Reading, read_demonstrations, read_rankings
from plaudit.data.formats.reader import Reader, prompt_of
from plaudit.data.formats.rows import Row
from plaudit.errors import UserError
from plaudit.records import Demonstration, Message


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SAID = {"role": "user", "content": "Hi"}
CALL = [{"type": "function", "function": {"name": "look_up", "arguments": {}}}]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"messages": [SAID, {"role": "assistant", "content": "Yes.", "tool_calls": CALL}]}, "tool_calls"),
        (
            {"messages": [SAID, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}]},
            "reasoning_content",
        ),
        ({"messages": [SAID, {"role": "assistant", "content": "Yes.", "weight": 0}]}, "weight"),
        ({"messages": [{**SAID, "name": "Ann"}, {"role": "assistant", "content": "Yes."}]}, "name"),
        (
            {"conversations": [{"from": "human", "value": "Hi", "weight": 1}, {"from": "gpt", "value": "Yes."}]},
            "weight",
        ),
        ({"prompt": [SAID], "completion": [{"role": "assistant", "content": "Yes.", "thinking": "Hm."}]}, "thinking"),
        (
            {
                "prompt": [SAID],
                "chosen": [{"role": "assistant", "content": "", "tool_calls": CALL}],
                "rejected": [{"role": "assistant", "content": ""}],
            },
            "tool_calls",
        ),
        ({"prompt": [{**SAID, "images": ["a.png"]}]}, "images"),
        ({"prompt": "Hi", "tools": [{"type": "function"}]}, "tools"),
        ({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"prompt": "<image>What is it?", "completion": "A cat.", "images": ["a.png"]}, "images"),
        ({"prompt": "What is it?", "chosen": "A cat.", "rejected": "No.", "image": {"path": "a.png"}}, "image"),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Yes.", "tool_calls": CALL},
                "rejected": {"from": "gpt", "value": "No."},
            },
            "tool_calls",
        ),
    ],
)
def test_what_a_message_says_beside_its_text_is_not_lost(row: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=rf"a\.jsonl:1: .*the key '{key}'.*data\.ignore_message_keys"):
        list(Reader(path))
    reader = Reader(path, quarantine=True)
    assert [record for _, record in reader] == [None]
    reader = Reader(path, ignore=[key])
    assert all(record is not None for _, record in reader)
    assert dict(reader.ignored_in_messages) == {key: 1}
    assert f"ignored in messages: '{key}' (1)" in reader.describe()


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_a_key_of_a_message_that_says_nothing_is_nothing(nothing: object, tmp_path: Path) -> None:
    row = {"messages": [{**SAID, "tool_calls": nothing, "name": None}, {"role": "assistant", "content": "Yes."}]}
    ((_, record),) = Reader(put(tmp_path / "a.jsonl", row))
    assert isinstance(record, Demonstration)
    assert record.completion == "Yes."


def test_a_content_of_text_parts_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}]}
    (record,) = read_demonstrations(put(tmp_path / "a.jsonl", row))
    assert (record.prompt.messages, record.completion) == ((Message("user", "Hi there"),), "Hi ")
    row["messages"][0]["content"] = [{"type": "image", "url": "x"}]
    with pytest.raises(UserError, match=r"b\.jsonl:1: field 'content': a part is no text: .*image"):
        list(Reader(put(tmp_path / "b.jsonl", row)))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "system": "Be brief."},
        {"prompt": "Hi", "completion": "Yes.", "system": "Be brief."},
        {"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "system": "Be brief."},
        {"messages": [SAID, {"role": "assistant", "content": "Yes."}], "system": "Be brief."},
    ],
)
def test_a_rows_system_message_is_read_in_every_format(row: dict[str, Any], tmp_path: Path) -> None:
    ((_, record),) = Reader(put(tmp_path / "a.jsonl", row))
    assert record is not None
    assert prompt_of(record).messages == (Message("system", "Be brief."), Message("user", "Hi"))
    ((_, without),) = Reader(put(tmp_path / "b.jsonl", {**row, "system": None}))
    assert without is not None
    assert prompt_of(without).messages == (Message("user", "Hi"),)


def test_two_system_messages_are_one_too_many(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "system", "content": "Be long."}, SAID], "system": "Be brief."}
    with pytest.raises(UserError, match="field 'system' is not the system message"):
        list(Reader(put(tmp_path / "a.jsonl", row)))


def test_a_text_that_beats_itself_stops_a_run_or_is_set_aside(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}
    path = put(tmp_path / "a.jsonl", pair, {**pair, "rejected": "Yes."})
    with pytest.raises(UserError, match=r"a\.jsonl:2: replies 1 and 2 are equal but ranked 1 and 2: 'Yes\.'"):
        read_rankings(path)
    bad: list[Row] = []
    assert len(read_rankings(path, Reading(bad=bad))) == 1
    assert [row.place for row in bad] == [f"{path}:2"]


def test_a_cell_that_spells_an_empty_list_of_tools_says_nothing(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}]
    path = put(
        tmp_path / "a.jsonl",
        {"conversations": turns, "tools": "[]"},
        {"conversations": turns, "image": "", "video": False},
    )
    assert [record.completion for _, record in Reader(path) if isinstance(record, Demonstration)] == ["Yes."] * 2
