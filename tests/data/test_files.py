"""JSONL in and out: every mistake is named with its place, field and value; a file is written whole or not at all."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plaudit.data import files
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Message, Prompt, Ranking

PROMPT_ROW = {"id": "a", "kind": "domain", "split": "test", "prompt": "Why?"}
REPLIES = [{"text": "x", "rank": 1}, {"text": "y", "rank": 2}]


def put(path: Path, *rows: object) -> Path:
    """One line a row; a string is written as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def message_of(read: Callable[[Path], Any], path: Path) -> str:
    """The one-line message of the UserError that reading `path` to its end raises."""
    with pytest.raises(UserError) as caught:
        list(read(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- reading rows ---


def test_rows_come_with_their_place(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"x": 1}, {"y": [2]})
    assert list(files.read_rows(path)) == [(f"{path}:1", {"x": 1}), (f"{path}:2", {"y": [2]})]


def test_a_missing_last_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": 2}')
    assert [row for _, row in files.read_rows(path)] == [{"x": 1}, {"x": 2}]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\r\n{"x": 2}\r\n')
    assert [row for _, row in files.read_rows(path)] == [{"x": 1}, {"x": 2}]


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 are legal inside JSON strings; str.splitlines would cut there."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [row for _, row in files.read_rows(path)] == [{"x": "a\u2028b\u0085c"}]


def test_gzip_is_read_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress('{"x": "ü"}\n'.encode()))
    assert [row for _, row in files.read_rows(path)] == [{"x": "ü"}]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.jsonl"
    assert f"{path}: no such file" in message_of(files.read_rows, path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    assert f"{tmp_path}: is a folder, where a file is needed" in message_of(files.read_rows, tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl")
    assert f"{path}: the file is empty" in message_of(files.read_rows, path)


@pytest.mark.parametrize("line", ["", "   ", "\t"])
def test_an_empty_line_is_named(tmp_path: Path, line: str) -> None:
    path = put(tmp_path / "a.jsonl", {"x": 1}, line, {"x": 2})
    assert f"{path}:2: the line is empty" in message_of(files.read_rows, path)


@pytest.mark.parametrize(
    ("line", "column"),
    [('{"x": }', 7), ("{'x': 1}", 2), ('{"x": 1', 8), ("hello", 1), ('{"x": 1} {"x": 2}', 10)],
)
def test_bad_json_is_shown_with_its_column(tmp_path: Path, line: str, column: int) -> None:
    path = put(tmp_path / "a.jsonl", {"x": 1}, line)
    message = message_of(files.read_rows, path)
    assert f"{path}:2: not valid JSON at column {column}" in message
    assert repr(line) in message


@pytest.mark.parametrize(("line", "kind"), [("[1, 2]", "list"), ('"text"', "str"), ("null", "NoneType"), ("3", "int")])
def test_what_is_not_an_object_is_shown(tmp_path: Path, line: str, kind: str) -> None:
    path = put(tmp_path / "a.jsonl", line)
    message = message_of(files.read_rows, path)
    assert f"{path}:1: expected a JSON object, found {kind}" in message
    assert line in message


def test_json_that_python_cannot_hold_is_a_bad_line_too(tmp_path: Path) -> None:
    """A number of 5,000 digits and brackets 100,000 deep are valid JSON that json.loads gives up on."""
    for line in ('{"x": ' + "1" * 5000 + "}", "[" * 100_000 + "]" * 100_000):
        path = put(tmp_path / "a.jsonl", {"x": 1}, line)
        assert f"{path}:2" in message_of(files.read_rows, path)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": "caf\xe9"}\n')
    message = message_of(files.read_rows, path)
    assert message.startswith(f"{path}")
    assert "UTF-8" in message
    assert "0xe9" in message


COMPRESSED = gzip.compress(b"".join(b'{"number": %d}\n' % n for n in range(2000)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(COMPRESSED[:-20], id="truncated"),
        pytest.param(COMPRESSED[: len(COMPRESSED) // 2], id="half"),
        pytest.param(COMPRESSED[:15] + bytes([COMPRESSED[15] ^ 0xFF]) + COMPRESSED[16:], id="damaged stream"),
        pytest.param(COMPRESSED[:-8] + bytes([COMPRESSED[-8] ^ 0xFF]) + COMPRESSED[-7:], id="wrong checksum"),
        pytest.param(b'{"x": 1}\n', id="not gzip"),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    assert message_of(files.read_rows, path).startswith(f"{path}: ")


# --- prompts ---


def test_a_prompt_is_a_string_or_messages(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "How are you?"},
    ]
    path = put(tmp_path / "a.jsonl", PROMPT_ROW, {**PROMPT_ROW, "id": "b", "prompt": turns})
    assert files.read_prompts(path) == [
        Prompt("a", (Message("user", "Why?"),), "domain", "test"),
        Prompt("b", tuple(Message(turn["role"], turn["content"]) for turn in turns), "domain", "test"),
    ]


def test_id_kind_and_split_have_defaults(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"prompt": "one"}, {"prompt": "two"})
    assert [(p.id, p.kind, p.split) for p in files.read_prompts(path)] == [
        ("1", "instruction", "train"),
        ("2", "instruction", "train"),
    ]


USER = {"role": "user", "content": "u"}
BAD_PROMPTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"prompt": None}, ("'prompt'", "None")),
    ({"prompt": ""}, ("'prompt'", "''")),
    ({"prompt": "  "}, ("'prompt'", "'  '")),
    ({"prompt": 3}, ("'prompt'", "3")),
    ({"prompt": []}, ("'prompt'", "[]")),
    ({"prompt": ["hello"]}, ("'prompt'", "'hello'")),
    ({"prompt": [{"role": "human", "content": "u"}]}, ("'prompt'", "system, user, assistant", "'human'")),
    ({"prompt": [{"content": "u"}]}, ("'prompt'", "{'content': 'u'}")),
    ({"prompt": [{"role": ["user"], "content": "u"}]}, ("'prompt'", "['user']")),
    ({"prompt": [{"role": "user", "content": None}]}, ("'content'", "None")),
    ({"prompt": [{"role": "user", "content": ""}]}, ("'content'", "''")),
    ({"prompt": [{"role": "user"}]}, ("'content'", "None")),
    ({"prompt": [USER, {"role": "assistant", "content": "a"}]}, ("'prompt'", "end with a user", "'assistant'")),
    ({"prompt": [{"role": "system", "content": "s"}]}, ("'prompt'", "end with a user", "'system'")),
    ({"id": ""}, ("'id'", "''")),
    ({"id": True}, ("'id'", "True")),
    ({"kind": ["domain"]}, ("'kind'", "['domain']")),
    ({"split": "dev"}, ("'split'", "train, validation, test", "'dev'")),
    ({"split": "Train"}, ("'split'", "'Train'")),
]


@pytest.mark.parametrize(("change", "needles"), BAD_PROMPTS)
def test_a_bad_prompt_row_is_named_by_line_field_and_value(
    tmp_path: Path, change: dict[str, Any], needles: tuple[str, ...]
) -> None:
    path = put(tmp_path / "a.jsonl", {"prompt": "fine"}, {**PROMPT_ROW, **change})
    message = message_of(files.read_prompts, path)
    assert message.startswith(f"{path}:2: ")
    for needle in needles:
        assert needle in message


def test_a_missing_prompt_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"id": "a"})
    message = message_of(files.read_prompts, path)
    assert message.startswith(f"{path}:1: field 'prompt'")
    assert "None" in message


@pytest.mark.parametrize(
    "roles",
    [("user", "user"), ("assistant", "user"), ("user", "system", "user"), ("system", "system", "user")],
    ids=" ".join,
)
def test_turns_in_a_wrong_order_are_refused(tmp_path: Path, roles: tuple[str, ...]) -> None:
    """An optional system message, then user and assistant by turns: what chat templates are written for."""
    turns = [{"role": role, "content": "x"} for role in roles]
    path = put(tmp_path / "a.jsonl", {"prompt": turns})
    message = message_of(files.read_prompts, path)
    assert message.startswith(f"{path}:1: field 'prompt'")


def test_half_a_surrogate_pair_is_refused_where_it_stands(tmp_path: Path) -> None:
    r"""JSON may spell "\ud800", which no UTF-8 file and no tokenizer can hold: found here or in the middle of a run."""
    path = put(tmp_path / "a.jsonl", {"prompt": "fine"}, '{"prompt": "broken \\ud800"}')
    assert message_of(files.read_prompts, path).startswith(f"{path}:2: ")


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", PROMPT_ROW, {"id": "b", "prompt": "x"}, {"id": "a", "prompt": "y"})
    message = message_of(files.read_prompts, path)
    assert message.startswith(f"{path}:3: field 'id' 'a'")
    assert f"{path}:1" in message


@pytest.mark.row(25)
def test_row25_a_prompt_in_two_splits_names_both_lines_and_splits(tmp_path: Path) -> None:
    path = put(
        tmp_path / "a.jsonl",
        {"id": "a", "split": "train", "prompt": "Why is the sky blue?"},
        {"id": "b", "split": "test", "prompt": "Other"},
        {"id": "c", "split": "test", "prompt": [{"role": "user", "content": "Why is the sky blue?"}]},
    )
    message = message_of(files.read_prompts, path)
    assert message.startswith(f"{path}:3: ")
    for needle in ("'Why is the sky blue?'", "'test'", "'train'", f"{path}:1"):
        assert needle in message


def test_the_same_last_turn_after_another_conversation_is_another_prompt(tmp_path: Path) -> None:
    def row(split: str, first: str) -> dict[str, Any]:
        turns = [("user", first), ("assistant", "Yes."), ("user", "Why?")]
        return {"id": split, "split": split, "prompt": [{"role": role, "content": text} for role, text in turns]}

    path = put(tmp_path / "a.jsonl", row("train", "Is the sky blue?"), row("test", "Is grass green?"))
    assert [p.split for p in files.read_prompts(path)] == ["train", "test"]


def test_a_prompt_twice_in_one_split_is_allowed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"})
    assert [p.id for p in files.read_prompts(path)] == ["a", "b"]


# --- demonstrations ---


def test_a_demonstration_is_a_prompt_and_its_completion(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {**PROMPT_ROW, "completion": "Because."})
    assert list(files.read_demonstrations(path)) == [
        Demonstration(Prompt("a", (Message("user", "Why?"),), "domain", "test"), "Because.")
    ]


@pytest.mark.parametrize(
    ("change", "needles"),
    [
        *BAD_PROMPTS,
        ({"completion": None}, ("'completion'", "None")),
        ({"completion": " \n"}, ("'completion'", repr(" \n"))),
        ({"completion": ["a"]}, ("'completion'", "['a']")),
    ],
)
def test_a_bad_demonstration_is_named_by_line_field_and_value(
    tmp_path: Path, change: dict[str, Any], needles: tuple[str, ...]
) -> None:
    good = {**PROMPT_ROW, "completion": "c"}
    path = put(tmp_path / "a.jsonl", {"prompt": "fine", "completion": "c"}, {**good, **change})
    message = message_of(files.read_demonstrations, path)
    assert message.startswith(f"{path}:2: ")
    for needle in needles:
        assert needle in message


# --- rankings ---


def test_a_ranking_is_read_with_ties_and_cut_replies(tmp_path: Path) -> None:
    responses = [{"text": "x", "rank": 2}, {"text": "", "rank": 1, "finished": False}, {"text": "z", "rank": 2}]
    path = put(tmp_path / "a.jsonl", {**PROMPT_ROW, "responses": responses})
    assert files.read_rankings(path) == [
        Ranking(
            Prompt("a", (Message("user", "Why?"),), "domain", "test"),
            (Completion("x"), Completion("", finished=False), Completion("z")),
            (2, 1, 2),
        )
    ]


def with_first(**change: Any) -> dict[str, Any]:
    return {"responses": [{**REPLIES[0], **change}, REPLIES[1]]}


@pytest.mark.parametrize(
    ("change", "needles"),
    [
        *BAD_PROMPTS,
        ({"responses": None}, ("'responses'", "None")),
        ({"responses": "x"}, ("'responses'", "'x'")),
        ({"responses": [REPLIES[0]]}, ("'responses'", "at least two", "'rank': 1")),
        ({"responses": ["x", "y"]}, ("'responses'", "'text'", "'x'")),
        (with_first(text=None), ("'responses'", "'text'", "None")),
        (with_first(rank=0), ("'responses'", "'rank'", "0")),
        (with_first(rank=-1), ("'responses'", "'rank'", "-1")),
        (with_first(rank=True), ("'responses'", "'rank'", "True")),
        (with_first(rank=1.0), ("'responses'", "'rank'", "1.0")),
        (with_first(rank="1"), ("'responses'", "'rank'", "'1'")),
        (with_first(rank=None), ("'responses'", "'rank'", "None")),
        (with_first(finished=None), ("'responses'", "'finished'", "None")),
        (with_first(finished=1), ("'responses'", "'finished'", "1")),
    ],
)
def test_a_bad_ranking_is_named_by_line_field_and_value(
    tmp_path: Path, change: dict[str, Any], needles: tuple[str, ...]
) -> None:
    good = {**PROMPT_ROW, "responses": REPLIES}
    path = put(tmp_path / "a.jsonl", {"prompt": "fine", "responses": REPLIES}, {**good, **change})
    message = message_of(files.read_rankings, path)
    assert message.startswith(f"{path}:2: ")
    for needle in needles:
        assert needle in message


# --- writing ---

UGLY = 'Ünïcode, "quotes",\ttabs,\nnew lines, \u2028 and 🎉'


def test_prompts_written_are_prompts_read(tmp_path: Path) -> None:
    prompts = [
        Prompt("a", (Message("user", UGLY),), "domain", "test"),
        Prompt("b", (Message("system", "s"), Message("user", "u")), "safety", "train"),
    ]
    files.write_rows(tmp_path / "a.jsonl", (prompt.as_json() for prompt in prompts))
    assert files.read_prompts(tmp_path / "a.jsonl") == prompts


def test_rankings_written_are_rankings_read(tmp_path: Path) -> None:
    prompt = Prompt("a", (Message("user", "u"),), "domain", "validation")
    rankings = [Ranking(prompt, (Completion(UGLY), Completion("", finished=False), Completion("y")), (2, 1, 2))]
    files.write_rows(tmp_path / "a.jsonl", [ranking.as_json() for ranking in rankings])
    assert files.read_rankings(tmp_path / "a.jsonl") == rankings


def test_json_is_written_readably_and_read_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "new" / "a.json", {"x": [1, "ü"]})
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert "ü" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"x": [1, "ü"]}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    files.write_rows(tmp_path / "a.jsonl", [{"x": 1}])
    assert names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"x": {1, 2}}, id="a set"),
        pytest.param({"x": object()}, id="an object"),
        pytest.param({"x": "\ud800"}, id="half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("write", [lambda p, bad: files.write_rows(p, [{"x": 2}, bad]), files.write_json])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path, Any], None], bad: Any
) -> None:
    path = tmp_path / "a.json"
    files.write_rows(path, [{"x": 1}])
    with pytest.raises((TypeError, ValueError)):
        write(path, bad)
    assert path.read_text(encoding="utf-8") == '{"x": 1}\n'
    assert names(tmp_path) == ["a.json"]


def test_rows_that_fail_while_they_are_made_keep_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    files.write_rows(path, [{"x": 1}])
    with pytest.raises(ZeroDivisionError):
        files.write_rows(path, ({"x": 1 // n} for n in (1, 0)))
    assert path.read_text(encoding="utf-8") == '{"x": 1}\n'
    assert names(tmp_path) == ["a.jsonl"]


def test_the_file_appears_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename everything is on disk under the temporary name and the old file is untouched."""
    path, seen = tmp_path / "a.txt", []
    files.write_text(path, "old")
    rename = Path.replace

    def watch(part: Path, target: Path) -> Path:
        seen.append((part.read_text(), Path(target).read_text()))
        return rename(part, target)

    monkeypatch.setattr(Path, "replace", watch)
    files.write_text(path, "new")
    assert seen == [("new", "old")]
    assert path.read_text() == "new"


# --- folders ---


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with files.whole_folder(tmp_path / "model") as part:
        (part / "new").touch()
        assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(FileNotFoundError), files.whole_folder(tmp_path / "model") as part:
        (part / "new" / "file").touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename = Path.replace

    def fails(source: Path, target: Path) -> Path:
        if ".part" in source.name:
            raise OSError("the disk fails")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="the disk fails"), files.whole_folder(tmp_path / "model") as part:
        (part / "new").touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]
