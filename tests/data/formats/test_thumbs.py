"""Exports of deployed chats: thumbs become labels with the turns before them; what a label cannot hold is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plaudit.data.files import read_labels
from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError

Plaudit = Callable[..., SimpleNamespace]


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path


def open_webui(rating: Any = 1, message: str = "m4", **more: Any) -> dict[str, Any]:
    turns = [("m1", None, "user", "Hi"), ("m2", "m1", "assistant", "Hello!"), ("m3", "m2", "user", "A river?")]
    turns += [("m4", "m3", "assistant", "The Orne."), ("m5", "m3", "assistant", "Bridge.")]
    messages = {id: {"id": id, "parentId": up, "role": role, "content": text} for id, up, role, text in turns}
    chat = {"title": "t", "params": {"system": "Be brief."}, "history": {"messages": messages, "currentId": "m5"}}
    return {
        "id": "f1",
        "user_id": "anna",
        "version": 0,
        "type": "rating",
        "created_at": 1,
        "updated_at": 2,
        "data": {"rating": rating, "model_id": "x", "reason": "", "comment": ""},
        "meta": {"message_id": message, "chat_id": "c", "message_index": 3},
        "snapshot": {"chat": {"id": "c", "chat": {**chat, **more}}},
    }


def librechat(branch: bool = False) -> list[dict[str, Any]]:
    root = "00000000-0000-0000-0000-000000000000"
    rows = [
        ("m1", root, True, "Hi", None),
        ("m2", "m1", False, "Hello!", {"rating": "thumbsUp", "tag": "x"}),
        ("m3", "m2", True, "A river?", None),
        ("m4", "m3", False, "Bridge.", {"rating": "thumbsDown"}),
    ]
    return [
        {
            "messageId": id,
            "parentMessageId": up,
            "conversationId": "c",
            "isCreatedByUser": user,
            "text": text,
            **({"feedback": thumb} if thumb else {}),
            **({"user": "anna"} if branch else {}),
        }
        for id, up, user, text, thumb in rows
    ]


def test_what_a_model_thought_is_no_part_of_its_reply(tmp_path: Path) -> None:
    """Open WebUI writes it into the text of the message, and what the model called likewise."""
    row = open_webui()
    messages = row["snapshot"]["chat"]["chat"]["history"]["messages"]
    thought = '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n&gt; Hm.\n</details>\n'
    messages["m2"]["content"] = thought + "Hello!"
    messages["m4"]["content"] = f"{thought}The Orne.{thought}"
    (label,) = read_labels(written(tmp_path / "a.json", [row]))
    assert label.completion == "The Orne." and label.prompt.messages[2].content == "Hello!"
    messages["m3"]["content"] = thought  # a person may have asked about one
    assert read_labels(written(tmp_path / "a.json", [row]))[0].prompt.messages[3].content == thought
    messages["m4"]["content"] = '<details type="tool_calls" done="true">…</details>\nThe Orne.'
    with pytest.raises(UserError, match=r'a message holds <details type="tool_calls".*take the row out'):
        read_labels(written(tmp_path / "a.json", [row]))


def test_open_webui(tmp_path: Path) -> None:
    path = written(tmp_path / "feedbacks.json", [open_webui(), open_webui(-1, "m5")])
    first, second = read_labels(path)
    assert [(m.role, m.content) for m in first.prompt.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "A river?"),
    ]
    assert (first.completion, first.label, first.annotator, first.prompt.id) == ("The Orne.", True, "anna", "f1")
    assert (second.completion, second.label) == ("Bridge.", False) and second.prompt == first.prompt


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (open_webui(None), "the rating must be one of .* found None"),
        (open_webui(1, "m9"), "the message 'm9' that was rated is not in the file"),
        ({**open_webui(), "snapshot": None}, "'snapshot' holds no chat"),
        (open_webui(history={"messages": {"m4": {"role": "assistant", "content": "x", "files": [1]}}}), "has files"),
    ],
)
def test_open_webui_without_what_a_label_needs(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read_labels(written(tmp_path / "feedbacks.json", [row]))


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, [[]], {"history": 5}, {"chat": {"history": {"messages": []}}}])
def test_odd_values_are_bad_rows(odd: Any, tmp_path: Path) -> None:
    """Wherever a mapping, a list or an id should be."""
    for key in ("data", "meta", "snapshot"):
        with pytest.raises(UserError):
            read_labels(written(tmp_path / "a.json", [{**open_webui(), key: odd}]))
    with pytest.raises(UserError):
        read_labels(written(tmp_path / "b.json", [open_webui(1, odd)]))
    for key in ("messageId", "parentMessageId", "feedback", "children", "content"):
        rows = librechat()[:2]
        rows[1][key] = odd
        try:
            assert len(read_labels(written(tmp_path / "c.json", {"messages": rows}))) == 1
        except UserError:
            continue


@pytest.mark.parametrize("shape", ["conversation", "tree", "lines"])
def test_librechat(shape: str, tmp_path: Path) -> None:
    """The export of a conversation as a list or as a tree, and messages as mongoexport writes them."""
    rows = librechat(shape == "lines")
    path = tmp_path / "chat.json"
    if shape == "conversation":
        written(path, {"conversationId": "c", "title": "t", "branches": True, "recursive": False, "messages": rows})
    elif shape == "tree":
        for child, parent in zip(rows[:0:-1], rows[-2::-1], strict=True):
            parent["children"] = [child]
        written(path, {"conversationId": "c", "recursive": True, "messagesTree": [rows[0]]})
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reader = Reader(path)
    found = [record for _, record in reader]
    said = reader.describe()
    assert "format unpaired (detected), labels; 2 rows" in said and "messages of LibreChat that were rated" in said
    first, second = read_labels(path)
    assert found == [first, second]
    assert [m.content for m in first.prompt.messages] == ["Hi"] and (first.completion, first.label) == ("Hello!", True)
    assert [m.content for m in second.prompt.messages] == ["Hi", "Hello!", "A river?"] and not second.label
    assert first.annotator == ("anna" if shape == "lines" else None)


def test_the_check_of_data_counts_labels(tmp_path: Path, plaudit: Plaudit) -> None:
    """How many were liked, and whose they are; a reply that another person judged otherwise is no duplicate."""
    rows = [{**row, "user": "ben"} if row.get("feedback") else row for row in librechat()]
    done = plaudit("data", "check", written(tmp_path / "chat.json", {"messages": rows}))
    assert done.code == 0 and "0.500 of the labels" in done.out and "ben 2" in done.out, done.err
    assert "warning: one annotator, 1 found" in done.out and "'ben' gave 100% of 2 labels" in done.out
    label = {"prompt": "Name a tree, please.", "completion": "The oak."}
    both = [{**label, "label": kind, "annotator": who} for kind, who in ((True, "anna"), (False, "ben"))]
    done = plaudit("data", "check", written(tmp_path / "two.json", both))
    assert "exact duplicates" in done.out and "warning: duplicate" not in done.out
    assert "warning: duplicate" in plaudit("data", "check", written(tmp_path / "same.json", both[:1] * 2)).out


def test_librechat_parts(tmp_path: Path) -> None:
    """Text parts are the reply and thoughts are not; a tool's call cannot be held; a file without thumbs says so."""
    rows = librechat()
    rows[1] |= {"text": "", "content": [{"type": "think", "think": "hm"}, {"type": "text", "text": {"value": "Hey!"}}]}
    path = written(tmp_path / "chat.json", {"messages": rows[:2]})
    assert read_labels(path)[0].completion == "Hey!"
    rows[1]["content"][0] = {"type": "tool_call", "tool_call": {}}
    with pytest.raises(UserError, match="rated message 1: a part of the message is no text"):
        read_labels(written(path, {"messages": rows[:2]}))
    with pytest.raises(UserError, match="LibreChat export in which no message was rated"):
        read_labels(written(path, {"messages": rows[:1]}))


def test_dify(tmp_path: Path, plaudit: Plaudit) -> None:
    """JSON with its rows under feedback_data, and CSV, which is converted; an answer that was cut is a bad row."""
    rows = [
        {
            "feedback_id": f"f{n}",
            "app_name": "a",
            "user_query": f"Question {n}?",
            "ai_response": answer,
            "feedback_rating": "x",
            "feedback_rating_raw": raw,
            "from_end_user_id": "",
            "from_account_name": "Ben",
        }
        for n, (answer, raw) in enumerate([("Yes.", "like"), ("No.", "dislike"), ("a" * 500 + "...", "like")])
    ]
    made = read_labels(written(tmp_path / "dify.json", {"export_info": {"app_id": "1"}, "feedback_data": rows[:2]}))
    assert [(one.completion, one.label, one.annotator) for one in made] == [
        ("Yes.", True, "Ben"),
        ("No.", False, "Ben"),
    ]
    with (tmp_path / "dify.csv").open("w", newline="", encoding="utf-8-sig") as handle:
        table = csv.DictWriter(handle, rows[0])
        table.writeheader()
        table.writerows(rows)
    to = tmp_path / "labels.jsonl"
    done = plaudit("data", "convert", tmp_path / "dify.csv", "--to", to)
    assert done.code == 2 and "was cut at 500 characters by Dify's export" in done.err
    done = plaudit("data", "convert", tmp_path / "dify.csv", "--to", to, "--on-bad-row", "quarantine")
    assert done.code == 0 and "feedbacks of Dify" in done.out and read_labels(to) == made
