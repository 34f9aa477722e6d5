"""Mangled files: never a traceback, never a lost row: rows in = rows used + rows set aside, whatever stands there."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.data.audit.check import Audit
from plaudit.data.files import convert
from plaudit.data.formats.reader import FORMATS, Reader
from plaudit.data.formats.rows import BOM, Row
from plaudit.errors import UserError
from plaudit.records import Record

USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SEEDS: list[dict[str, Any]] = [
    {"id": "a", "kind": "safety", "split": "test", "prompt": "Why?"},
    {"prompt": "Why?", "completion": "Because, ü.", "source": "me"},
    {"messages": [USER, REPLY, USER, REPLY]},
    {"instruction": "Why?", "input": "x", "output": "So."},
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    {"prompt": "Why?", "chosen": "a", "rejected": "b"},
    {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No."}]},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": "\n\nHuman: Why?\n\nAssistant: a", "rejected": "\n\nHuman: Why?\n\nAssistant: b"},
    {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]},
    {"prompt": "Why?", "responses": [{"text": "a", "votes": 3}, {"text": "b", "votes": 0}]},
    {"prompt": "Why?", "response_1": "a", "response_2": "b", "preference_strength": -2},
    {"prompt": "Why?", "answer_a": "a", "answer_b": "b", "winner": "a"},
    {"prompt": "Why?", "completion": "So.", "label": True},
    {"instruction": "Why?", "chosen": "a", "rejected": "b", "history": [["Hi", "Ho"]]},
    {"question": "Why?", "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2}]},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({key for row in SEEDS for key in row} | {"promt", "score", ""})
NASTY = (b"\0", b"\r", b"\r\n", b"\n", b"\n\n", b"\xff", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b"[", b"]", b",")
NASTY += (b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b" ", b"1e999", b"NaN", b"\x1a", b"\xe2\x80\xa8", b"'")


@st.composite
def rows(draw: st.DrawFn) -> list[Any]:
    """Rows of one seed or of several, some of them with a key changed, added, removed or set to anything."""
    seeds = [draw(st.sampled_from(SEEDS))] if draw(st.booleans()) else SEEDS
    made: list[Any] = []
    for _ in range(draw(st.integers(0, 8))):
        row: Any = dict(draw(st.sampled_from(seeds)))
        match draw(st.integers(0, 5)):
            case 0:
                row[draw(st.sampled_from(KEYS))] = draw(JSON)
            case 1:
                row.pop(draw(st.sampled_from(sorted(row))))
            case 2:
                row = draw(JSON)
        made.append(row)
    return made


def mangled(data: bytes, draw: st.DrawFn) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data = data[:at] + draw(st.sampled_from(NASTY)) + data[at:]
            case 1:
                data = data[:at] + data[at + draw(st.integers(1, 30)) :]
            case 2:
                data = data[:at] + draw(st.binary(max_size=6)) + data[at:]
            case 3:
                data = data[:at]
    return data


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name, bytes) of a mangled file."""
    name = draw(st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.json.gz", "a.parquet"]))
    made = draw(rows())
    if ".json" in name and "jsonl" not in name:
        data = json.dumps(made, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans())).encode(
            "utf-8", "surrogatepass"
        )
    elif name == "a.csv":
        names = list(made[0]) if made and isinstance(made[0], dict) else ["prompt", "completion"]
        lines = [",".join(names)] + [
            ",".join(json.dumps(row.get(n, "")).replace('\\"', '""') for n in names)
            for row in made
            if isinstance(row, dict)
        ]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        data = "".join(json.dumps(row) + "\n" for row in made).encode()
    if name.endswith(".gz"):
        return name, mangled(gzip.compress(mangled(data, draw), 1, mtime=0), draw)
    return name, mangled(data, draw)


WANTED = (None, "prompts", "demonstrations", "rankings")
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def read(reader: Reader) -> tuple[list[tuple[Row, Record | None]], str | None]:
    """(what was read, the UserError that stopped it); any other exception fails the test."""
    items: list[tuple[Row, Record | None]] = []
    try:
        items.extend(reader)
    except UserError as error:
        return items, str(error)
    return items, None


def lines_in(data: bytes) -> int:
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


@SETTINGS
@given(
    files(), st.sampled_from([None, None, *FORMATS]), st.sampled_from([None, "prompts", "demonstrations", "rankings"])
)
def test_every_row_is_used_or_set_aside_and_nothing_but_a_user_error_is_raised(
    file: tuple[str, bytes], format: str | None, wanted: str | None
) -> None:
    name, data = file
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / name
        path.write_bytes(data)
        reader = Reader(path, format=format, wanted=wanted, quarantine=True)
        items, stopped = read(reader)
        if stopped is not None:
            assert str(path) in stopped
        else:
            used = sum(record is not None for _, record in items)
            assert reader.rows == len(items) == used + reader.bad
            assert all((record is None) == (row.problem is not None) for row, record in items)
            if name == "a.jsonl" and not reader.columns.said:  # else it was no JSON lines, which is said
                data = data.removeprefix(BOM)
                assert reader.rows == lines_in(data)
                # What was set aside is there byte for byte.
                assert [row.raw for row, record in items if record is None] == [
                    line for line, (_, record) in zip(data.split(b"\n"), items, strict=False) if record is None
                ]
        taken, refused = read(Reader(path, format=format, wanted=wanted))
        if refused is not None:
            assert str(path) in refused and "\n" not in refused and len(refused) < 700
        else:
            assert stopped is None and reader.bad == 0
            assert [record for _, record in taken] == [record for _, record in items]


@SETTINGS
@given(files())
def test_check_and_convert_account_for_every_row(file: tuple[str, bytes]) -> None:
    name, data = file
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / name
        path.write_bytes(data)
        audit = Audit()
        try:
            audit.add(path)
        except UserError:
            return
        report = audit.report()
        (found,) = report["files"]
        assert found["rows"] == found["used"] + found["bad"]
        assert (found["bad"] > 0) == any(problem["kind"] == "bad row" for problem in report["problems"])
        json.dumps(report)
        done, aside = convert(path, Path(home) / "out.jsonl", quarantine=True)
        written = lines_in((Path(home) / "out.jsonl").read_bytes())
        assert done.rows == found["rows"] == written + done.bad
        assert aside.exists() == (done.bad > 0)
        if done.bad:
            assert lines_in(aside.read_bytes()) == done.bad
        if written:
            again = list(Reader(Path(home) / "out.jsonl"))
            assert len(again) == written


@SETTINGS
@given(st.binary(max_size=400), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a"]))
def test_random_bytes_are_a_user_error_or_accounted_for(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / name
        path.write_bytes(data)
        reader = Reader(path, quarantine=True)
        items, stopped = read(reader)
        assert len(items) == reader.rows if stopped is None else str(path) in stopped
