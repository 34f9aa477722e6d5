"""Formats by structure: each is read as it should be, what is not plain is refused by place, and containers agree."""

import csv
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import write_lines
from plaudit.data.files import Reading, read_demonstrations, read_prompts, read_rankings
from plaudit.data.formats import json_rows
from plaudit.data.formats.containers import rows
from plaudit.data.formats.reader import FORMATS, KINDS, Reader
from plaudit.data.formats.rows import Row
from plaudit.errors import UserError
from plaudit.records import Completion, Demonstration, Labelled, Message, Prompt, Ranking, Record


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASKED = Prompt("1", (Message("user", "Why is tea hot?"),), "instruction", "train")
SHOWN = Demonstration(ASKED, "It was boiled.")
LONGER = Prompt(
    "1", (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")), "instruction", "train"
)


def pair(chosen: str, rejected: str, prompt: Prompt = ASKED, ranks: tuple[int, ...] = (1, 2)) -> Ranking:
    return Ranking(prompt, (Completion(chosen), Completion(rejected)), ranks)


P = "Why is tea hot?"
ROWS: dict[str, tuple[str, dict[str, Any], Record]] = {
    "prompt": ("prompts", {"prompt": P}, ASKED),
    "prompt messages": ("prompts", {"prompt": [user(P)]}, ASKED),
    "prompt and completion": ("prompt-completion", {"prompt": P, "completion": "It was boiled."}, SHOWN),
    "conversational completion": (
        "prompt-completion",
        {"prompt": [user(P)], "completion": [assistant("It was boiled.")]},
        SHOWN,
    ),
    "messages": ("messages", {"messages": [user(P), assistant("It was boiled.")]}, SHOWN),
    "messages of three turns": (
        "messages",
        {"messages": [user("Hi"), assistant("Hello"), user("Why?"), assistant("Because.")]},
        Demonstration(LONGER, "Because."),
    ),
    "alpaca": ("alpaca", {"instruction": P, "input": "", "output": "It was boiled."}, SHOWN),
    "alpaca without the key": ("alpaca", {"instruction": P, "output": "It was boiled."}, SHOWN),
    "alpaca with input": (
        "alpaca",
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        Demonstration(Prompt("1", (Message("user", "Add.\n\n1 2"),), "instruction", "train"), "3"),
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": P}, {"from": "gpt", "value": "It was boiled."}]},
        SHOWN,
    ),
    "sharegpt with system": (
        "sharegpt",
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        Demonstration(Prompt("1", (Message("system", "Be brief."), Message("user", "x")), "instruction", "train"), "y"),
    ),
    "explicit pair": ("pairs", {"prompt": P, "chosen": "a", "rejected": "b"}, pair("a", "b")),
    "explicit pair of messages": (
        "pairs",
        {"prompt": [user(P)], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        pair("a", "b"),
    ),
    "pair of conversations with its prompt": (
        "pairs",
        {"prompt": P, "chosen": [user(P), assistant("a")], "rejected": [user(P), assistant("b")]},
        pair("a", "b"),
    ),
    "implicit pair of messages": (
        "pairs",
        {"chosen": [user(P), assistant("a")], "rejected": [user(P), assistant("b")]},
        pair("a", "b"),
    ),
    # TRL's own example of an implicit prompt.
    "implicit pair of texts": (
        "pairs",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        pair("blue.", "green.", Prompt("1", (Message("user", "The sky is"),), "instruction", "train")),
    ),
    "implicit pair inside a word": (
        "pairs",
        {"chosen": "I like cats", "rejected": "I like cars"},
        pair("cats", "cars", Prompt("1", (Message("user", "I like"),), "instruction", "train")),
    ),
    "hh": (
        "hh",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No\nidea: none.",
        },
        pair("So.", "No\nidea: none.", LONGER),
    ),
    "hh with an empty reply": (
        "hh",
        {"chosen": f"\n\nHuman: {P}\n\nAssistant: a", "rejected": f"\n\nHuman: {P}\n\nAssistant:"},
        pair("a", ""),
    ),
    "rankings": (
        "rankings",
        {"prompt": P, "responses": [{"text": t, "rank": r} for t, r in (("a", 2), ("b", 1), ("c", 2))]},
        Ranking(ASKED, (Completion("a"), Completion("b"), Completion("c")), (2, 1, 2)),
    ),
    "votes": (
        "votes",
        {"prompt": P, "responses": [{"text": t, "votes": v} for t, v in (("a", 3), ("b", 9), ("c", 3), ("d", 0))]},
        Ranking(ASKED, tuple(map(Completion, "abcd")), (2, 1, 2, 4), votes=(3, 9, 3, 0)),
    ),
    "winner": (
        "winner",
        {"prompt": P, "answer_a": "a", "answer_b": "b", "winner": "answer_b"},
        pair("a", "b", ranks=(2, 1)),
    ),
    "unpaired": ("unpaired", {"prompt": P, "completion": "a", "label": False}, Labelled(ASKED, "a", False)),
    **{
        f"strength {strength}": (
            "strength",
            {"prompt": P, "response_1": "a", "response_2": "b", "preference_strength": strength},
            replace(pair("a", "b", ranks=ranks), strength=abs(strength) or None),
        )
        for strength, ranks in ((-2, (1, 2)), (0, (1, 1)), (0.5, (2, 1)))
    },
}


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(source: str | Path, **options: Any) -> tuple[list[Record], Reader]:
    reader = Reader(source, **options)
    return [record for _, record in reader if record is not None], reader


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(Reader(source, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "row", "record"), ROWS.values(), ids=list(ROWS))
def test_every_format_is_detected_and_read(name: str, row: dict[str, Any], record: Record, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", row)
    found, reader = records(path)
    assert (reader.format, found) == (name, [record])
    assert f"format {name} (detected)" in reader.describe()
    found, reader = records(path, format=name)
    assert found == [record] and f"format {name} (given)" in reader.describe()


def test_no_format_is_left_out_of_these_tests() -> None:
    assert {name for name, _, _ in ROWS.values()} == set(FORMATS)


@pytest.mark.parametrize(("name", "row", "record"), ROWS.values(), ids=list(ROWS))
def test_the_stages_readers_take_every_format(name: str, row: dict[str, Any], record: Record, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", row)
    readers: dict[str, Callable[[Path], list[Any]]] = {
        "prompts": read_prompts,
        "demonstrations": read_demonstrations,
        "rankings": read_rankings,
    }
    if KINDS[name] in readers:  # labels train nothing yet
        assert list(readers[KINDS[name]](path)) == [record]
    assert read_prompts(path) == [record if isinstance(record, Prompt) else record.prompt]
    for other, reader in readers.items():
        if other not in ("prompts", KINDS[name]):
            with pytest.raises(UserError, match=r"a\.jsonl:1: "):
                reader(path)


@pytest.mark.parametrize(("name", "row", "record"), ROWS.values(), ids=list(ROWS))
def test_the_canonical_form_is_read_back(name: str, row: dict[str, Any], record: Record, tmp_path: Path) -> None:
    assert records(put(tmp_path / "a.jsonl", record.as_json()))[0] == [record]


def test_what_is_detected_is_said(tmp_path: Path) -> None:
    path, said = put(tmp_path / "a.jsonl", {"messages": [user("x"), assistant("y")], "source": "me"}), []
    read_demonstrations(path, Reading(say=said.append))
    assert said == [f"{path}: format messages (detected), demonstrations; 1 rows; ignored keys: 'source' (1)"]


def test_rows_of_two_formats_are_refused_with_both_places(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"messages": [user("x"), assistant("y")]}, {"prompt": "x", "completion": "y"})
    message = refusal(path)
    assert message.startswith(f"{path}:2: ")
    assert "'prompt-completion'" in message and "'messages'" in message and f"{path}:1" in message


def test_a_row_of_two_formats_is_refused_and_format_decides(tmp_path: Path) -> None:
    row = {"prompt": P, "chosen": "a", "rejected": "b", "messages": [user(P), assistant("a")]}
    path = put(tmp_path / "a.jsonl", row)
    assert "messages and pairs: ambiguous" in refusal(path)
    assert records(path, format="pairs")[0] == [pair("a", "b")]
    assert records(path, format="messages")[0] == [Demonstration(ASKED, "a")]


def test_a_named_format_ignores_a_key_that_looks_misspelt(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"instruction": P, "output": "It was boiled.", "inputs": 3})
    assert "did you mean 'input'? Name the format" in refusal(path)
    found, reader = records(path, format="alpaca")
    assert found == [SHOWN] and reader.ignored == {"inputs": 1}


def test_keys_of_no_format_are_named(tmp_path: Path) -> None:
    message = refusal(put(tmp_path / "a.jsonl", {"question": "x", "answer": "y"}))
    assert "a.jsonl:1: no known format has the keys 'question', 'answer'" in message and "alpaca" in message
    assert "prompt=THEIRS (prompts alone)" in message


def test_an_unknown_format_has_its_nearest_name(tmp_path: Path) -> None:
    assert "did you mean 'alpaca'" in refusal(put(tmp_path / "a.jsonl", {"prompt": "x"}), format="alpacca")


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt key": ({"prompt": "x", "completions": "y"}, ("unknown key 'completions'", "'completion'")),
    "misspelt split": ({"prompt": "x", "splitt": "test"}, ("unknown key 'splitt'", "'split'")),
    "null completion": ({"prompt": "x", "completion": None}, ("'completion'", "None")),
    "null chosen": ({"prompt": "x", "chosen": None, "rejected": "y"}, ("'chosen'", "None")),
    "missing rejected": ({"prompt": "x", "chosen": "y"}, ("'rejected'", "None")),
    "missing output": ({"instruction": "x", "input": "y"}, ("'output'", "None")),
    "input of a number": ({"instruction": "x", "input": 3, "output": "y"}, ("'input'", "3")),
    "messages end with the user": ({"messages": [user("x")]}, ("'messages'", "end with an assistant", "'user'")),
    "user twice": ({"messages": [user("x"), user("y"), assistant("z")]}, ("in turn", "'user', 'user', 'assistant'")),
    "unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, ("system, user, assistant", "'tool'")),
    "empty content": ({"messages": [user(""), assistant("x")]}, ("'content'", "''")),
    "unknown speaker": ({"conversations": [{"from": "bing", "value": "x"}]}, ("human", "'bing'")),
    "gpt begins": (
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        ("end with an assistant", "'assistant', 'user'"),
    ),
    "pairs of two prompts": (
        {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
        ("different prompts",),
    ),
    "pair that does not continue": (
        {"prompt": "x", "chosen": [user("y"), assistant("a")], "rejected": [user("y"), assistant("b")]},
        ("'chosen'", "does not continue"),
    ),
    "nothing in common": ({"chosen": "Yes", "rejected": "No"}, ("no prompt in common", "'Yes'", "'No'")),
    "the same text twice": ({"chosen": "Yes it is", "rejected": "Yes it is"}, ("no prompt in common",)),
    "hh in a wrong order": (
        {"chosen": "\n\nHuman: x\n\nAssistant: y\n\nAssistant: z", "rejected": "\n\nHuman: x\n\nAssistant: y"},
        ("'chosen'", "in turn", "'user', 'assistant', 'assistant'"),
    ),
    "hh of two prompts": (
        {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: y\n\nAssistant: b"},
        ("differ before their last Assistant turn",),
    ),
    "votes below 0": ({"prompt": "x", "responses": [{"text": "a", "votes": -1}] * 2}, ("'votes'", "0 up", "-1")),
    "strength in words": (
        {"prompt": "x", "response_1": "a", "response_2": "b", "preference_strength": "high"},
        ("'preference_strength'", "'high'"),
    ),
    "half a surrogate pair": ({"prompt": "x\ud800"}, ("'prompt'", "surrogate")),
}


@pytest.mark.parametrize(("row", "says"), BAD.values(), ids=list(BAD))
def test_a_bad_row_is_named_by_line_field_and_value(row: dict[str, Any], says: tuple[str, ...], tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", row)
    message = refusal(path)
    assert message.startswith(f"{path}:1: ")
    for part in says:
        assert part in message


# --- bytes ---

GOOD = b'{"prompt": "x"}\n'
BYTES: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "BOM inside": (GOOD + b"\xef\xbb\xbf" + GOOD, 2, ("BOM", "two were joined")),
    "NUL": (GOOD + b'{"prompt": "x\0y"}\n', 2, ("NUL byte at column 14",)),
    "invalid UTF-8": (GOOD + b'{"prompt": "caf\xe9"}\n', 2, ("UTF-8", "0xe9")),
    "UTF-16 that does not say so": (GOOD.decode().encode("utf-16-le"), 1, ("NUL byte",)),
    "truncated last line": (GOOD + b'{"prompt": "x', 2, ("not valid JSON", "was cut")),
    "empty line": (GOOD + b"\n" + GOOD, 2, ("the line is empty",)),
    "a key twice": (GOOD + b'{"prompt": "x", "prompt": "y"}\n', 2, ("'prompt' stands twice",)),
    "NaN": (GOOD + b'{"prompt": "x", "score": NaN}\n', 2, ("NaN",)),
    "a line of 100 MB": (GOOD + b'{"prompt": "' + b"x" * 100_000_000 + b'"}\n' + GOOD, 2, ("100,000,014 bytes",)),
}


@pytest.mark.parametrize(("data", "line", "says"), BYTES.values(), ids=list(BYTES))
def test_bad_bytes_stop_at_their_line_or_are_set_aside(
    data: bytes, line: int, says: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ") and len(message) < 500
    for part in says:
        assert part in message
    bad: list[Row] = []
    kept = read_prompts(path, Reading(bad=bad))
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    assert len(kept) + len(bad) == lines
    assert data.split(b"\n")[line - 1] in [row.raw for row in bad]


def test_bytes_that_are_no_text_are_kept_in_hex() -> None:
    assert Row("a:1", 1, None, "p", b"caf\xe9").as_json() == {"place": "a:1", "problem": "p", "raw_hex": "636166e9"}


# --- containers ---

TABLE = [{"id": f"n{i}", "prompt": f'Say "{i}",\nplease: ü', "completion": f"It is {i}."} for i in range(2500)]
WANT = [
    Demonstration(Prompt(row["id"], (Message("user", row["prompt"]),), "instruction", "train"), row["completion"])
    for row in TABLE
]


def as_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write(kind: str, home: Path) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in TABLE).encode()
    match kind:
        case "jsonl.gz":
            (home / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        case "json" | "txt":
            (home / f"a.{kind}").write_text(json.dumps(TABLE, indent=2 if kind == "json" else None))
        case "json.gz":
            (home / "a.json.gz").write_bytes(gzip.compress(json.dumps(TABLE).encode()))
        case "csv" | "tsv":
            return as_csv(home / f"a.{kind}", TABLE, "," if kind == "csv" else "\t")
        case "parquet":
            return as_parquet(home / "a.parquet", TABLE)
        case _:
            (home / f"a.{kind}").write_bytes(lines)
    return home / f"a.{kind}"


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "txt", "csv", "tsv", "parquet"])
def test_every_container_gives_the_same_rows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 1000)  # rows of a JSON array span blocks
    found, reader = records(write(kind, tmp_path))
    assert found == WANT and reader.format == "prompt-completion"


def test_the_places_of_a_json_array_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n  {"prompt": "a"},\n\n  {"prompt": 3},\n  {"prompt":\n "b"}]\n')
    assert [row.place for row in rows(path)] == [f"{path}:2", f"{path}:4", f"{path}:5"]
    assert refusal(path).startswith(f"{path}:4: field 'prompt'")


@pytest.mark.parametrize(
    ("text", "rows", "says"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"', 1, "is cut"),
        ('[{"prompt": "a"}, {"prompt": "b"}', 1, "is cut"),
        ('[{"prompt": "a"}, {"prompt": "b}]', 1, "is cut"),
        ('[{"prompt": "a"}, {"prompt": b}, {"prompt": "c"}]', 2, "not valid JSON"),
        ('[{"prompt": "a"}, 3, {"prompt": "c"}]', 2, "expected a JSON object, found int"),
        ('[{"prompt": "a"},, {"prompt": "c"}]', 2, "empty"),
        ('[{"prompt": "a"}, {"prompt": "c"},]', 2, "empty"),
        ('[{"prompt": "a"} {"prompt": "c"}]', 0, "not valid JSON"),
        ('[{"prompt": "a"}] {"prompt": "c"}', 1, "text after the closing bracket"),
    ],
)
def test_a_damaged_array_keeps_its_good_rows(text: str, rows: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    reader = Reader(path, quarantine=True)
    items = list(reader)
    assert sum(record is not None for _, record in items) == rows
    assert [says in str(row.problem) for row, record in items if record is None] == [True]
    assert reader.rows == rows + reader.bad


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (b"prompt,completion\na,b\nc\n", ":3: ", "1 fields where the header names 2"),
        (b"prompt,completion\na,b,c\n", ":2: ", "3 fields where the header names 2"),
        (b'prompt,completion\na,"b\nc,d\n', ":2: ", "not valid CSV"),
        (b"prompt,completion\na,\xff\n", ":2: ", "UTF-8"),
        (b"prompt,completion\na,b\0\n", ":2: ", "NUL"),
        (b"prompt,completion\na,b\n\nc,d\n", ":3: ", "empty"),
        (b"prompt,completion\na,\n", ":2: ", "'completion'"),
        (b"prompt,completion,\na,b,c\n", ":2: ", "3 fields where the header names 2"),
        (b"prompt,,completion\na,,b\n", ":1: ", "empty name"),
        (b"prompt,completion\n,\na,b\n", ":2: ", "the row is empty"),
        (b"prompt,prompt\na,b\n", ":1: ", "twice"),
        (b"prompt,completion\n", ": ", "no row"),
        (b"messages\nhello\n", ":2: ", "must hold JSON"),
    ],
)
def test_a_bad_csv_is_named_by_line(data: bytes, place: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}{place}") and says in message


def test_lists_in_csv_are_json_and_empty_optional_cells_are_not_given(tmp_path: Path) -> None:
    messages = json.dumps([user(P), assistant("It was boiled.")])
    assert records(as_csv(tmp_path / "a.csv", [{"id": "", "split": "", "messages": messages}]))[0] == [SHOWN]


def test_who_judged_and_how_clearly_may_be_left_out_of_a_table(tmp_path: Path) -> None:
    head = "prompt;chosen;rejected;annotator;strength\n"
    (tmp_path / "a.csv").write_text(f"{head}a?;b;c;ann;2\nd?;e;f;;\ng?;h;i; ;1,5\n")
    found = [(r.annotator, r.strength) for r in records(tmp_path / "a.csv")[0] if isinstance(r, Ranking)]
    assert found == [("ann", 2.0), (None, None), (None, 1.5)]
    (tmp_path / "a.csv").write_text(f"{head}a?;b;c;ann;much\n")
    assert "'strength' must be a number, found 'much'" in refusal(tmp_path / "a.csv")
    head = "prompt;response_1;response_2;preference_strength\n"
    (tmp_path / "a.csv").write_text(f"{head}a?;b;c;-1,5\n")
    assert [r.strength for r in records(tmp_path / "a.csv")[0] if isinstance(r, Ranking)] == [1.5]
    (tmp_path / "a.csv").write_text(f"{head}a?;b;c;1,500\n")
    assert "'preference_strength' must hold a number: '1,500'" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": " ", "rejected": "b"},
        {"prompt": None, "chosen": "The month is", "rejected": "The month is May."},
        {"prompt": None, "chosen": "Human: a\n\nAssistant: ", "rejected": "Human: a\n\nAssistant: b"},
        {"answer_a": "", "answer_b": "b", "winner": "a"},
        {"answer_a": "a", "answer_b": "\n", "winner": "b"},
        {"response_1": "", "response_2": "b", "preference_strength": -1},
        {"response_1": "a", "response_2": "", "preference_strength": 2},
    ],
)
def test_an_answer_that_nobody_wrote_is_not_the_better_one(row: dict[str, Any], tmp_path: Path) -> None:
    place = "(chosen|answer_a|answer_b|response_1|response_2)"
    said = refusal(
        put(tmp_path / "a.jsonl", {key: value for key, value in {"prompt": P, **row}.items() if value is not None})
    )
    assert re.search(f":1: field '{place}' has no reply, which cannot be the better one", said)
    name = re.search(f"'{place}'", said)
    assert name and (row[name[1]].strip() in ("", "The month is", "Human: a\n\nAssistant:"))


def test_prompts_alone_as_messages_are_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"messages": [user(P)]})
    assert "(prompts alone are named: columns prompt=messages)" in refusal(path)
    assert [r.text for _, r in Reader(path, columns={"prompt": "messages"}) if isinstance(r, Prompt)] == [P]


def test_messages_in_parquet_and_a_damaged_parquet(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a.parquet", [{"messages": [user(P), assistant("It was boiled.")], "kind": None}])
    assert records(path)[0] == [SHOWN]
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read as Parquet" in refusal(path)


def test_a_folder_is_read_through_datasets_and_its_parts_are_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    home = tmp_path / "set"
    home.mkdir()
    put(home / "train.jsonl", *[{"prompt": f"Say {i}", "completion": "x"} for i in range(3)])
    put(home / "test.jsonl", {"prompt": "Say 9", "completion": "x"})
    found, reader = records(home)
    assert sorted((r.prompt.text, r.prompt.split) for r in found if isinstance(r, Demonstration)) == [
        ("Say 0", "train"),
        ("Say 1", "train"),
        ("Say 2", "train"),
        ("Say 9", "test"),
    ]
    assert reader.rows == 4


def test_a_data_set_saved_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(
        {"train_sft": datasets.Dataset.from_list([{"prompt": P, "completion": "It was boiled."}])}
    ).save_to_disk(tmp_path / "set")
    assert records(tmp_path / "set")[0] == [SHOWN]
    datasets.DatasetDict({"extra": datasets.Dataset.from_list([{"prompt": P}])}).save_to_disk(tmp_path / "odd")
    assert "part 'extra' is neither train, validation nor test" in refusal(tmp_path / "odd")


def test_a_hub_data_set_out_of_reach_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    assert "hub:no-one/nothing: `datasets` cannot read it" in refusal("hub:no-one/nothing")
    (tmp_path / "void").mkdir()
    assert str(tmp_path / "void") in refusal(tmp_path / "void")


def test_a_file_is_streamed(tmp_path: Path) -> None:
    """The first row comes before the second is looked at: a pipe that never ends would do."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 10 + b"broken")
    stream = iter(Reader(path))
    assert next(stream)[0].place == f"{path}:1"


def test_formats_and_reading_load_no_table_library() -> None:
    code = "import sys, plaudit.data.audit.check; print('datasets' in sys.modules, 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


def test_what_a_ranking_tells_beyond_its_order(tmp_path: Path) -> None:
    row = {
        "prompt": "Hi",
        "annotator": "ann",
        "strength": 2,
        "responses": [
            {"text": "a", "rank": 2, "votes": 1, "score": -0.5, "source": "small"},
            {"text": "b", "rank": 1, "votes": 3, "score": 1, "source": "large"},
        ],
    }
    path = write_lines(tmp_path / "r.jsonl", [row])
    (ranking,) = read_rankings(path)
    assert ranking.votes == (1, 3)
    assert ranking.judge_scores == (-0.5, 1.0)
    assert ranking.sources == ("small", "large")
    assert (ranking.strength, ranking.annotator) == (2.0, "ann")
    again = write_lines(tmp_path / "again.jsonl", [ranking.as_json()])
    assert read_rankings(again)[0].as_json() == ranking.as_json()
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "Hi", "chosen": "a", "rejected": "b", "annotator": "bo"}])
    assert read_rankings(path)[0].annotator == "bo"
    path = write_lines(tmp_path / "n.jsonl", [{"prompt": "Hi", "chosen": "a", "rejected": "b", "annotator": 3}])
    assert read_rankings(path)[0].annotator == "3"
    told = {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": -3}
    (ranking,) = read_rankings(write_lines(tmp_path / "s.jsonl", [told]))
    assert (ranking.ranks, ranking.strength) == ((1, 2), 3.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strength": 0}, "'strength' must be above 0"),
        ({"strength": "much"}, "'strength' must be a number"),
        ({"annotator": [3]}, "'annotator' must be a non-empty string, found .*; write one or delete the row"),
        (
            {"responses": [{"text": "a", "rank": 1, "score": 1}, {"text": "b", "rank": 2}]},
            "1 of 2 replies have 'score'",
        ),
        (
            {"responses": [{"text": "a", "rank": 1, "score": True}, {"text": "b", "rank": 2, "score": 1}]},
            "'score' must be a number",
        ),
    ],
)
def test_a_wrong_detail_of_a_ranking_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = {"prompt": "Hi", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], **change}
    path = write_lines(tmp_path / "r.jsonl", [row])
    with pytest.raises(UserError, match=said):
        read_rankings(path)


@pytest.mark.parametrize(
    ("role", "said"), [("developer", "write 'system'"), ("tool", "what tools said is not learned")]
)
def test_a_role_that_is_not_read_says_what_to_do(tmp_path: Path, role: str, said: str) -> None:
    turns = [{"role": role, "content": "x"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    path = write_lines(tmp_path / "r.jsonl", [{"messages": turns}])
    with pytest.raises(UserError, match=f"found .*; {said}"):
        read_demonstrations(path)
