"""Files as spreadsheets and other programs write them: read as they are meant, and what was recognised is said."""

import gzip
import json
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from typer.testing import CliRunner

from plaudit.cli.data import commands
from plaudit.data.audit.check import Audit
from plaudit.data.formats.reader import Reader
from plaudit.errors import UserError
from plaudit.records import Demonstration, Prompt, Ranking

PAIRS = [("Où est-il ?", "Là-bas, à gauche.", "Ici; non."), ('Say "oui"', "oui", "no\nway")]


def sheet(delimiter: str = ",", header: str = "prompt,chosen,rejected", end: str = "\r\n", more: str = "") -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & {delimiter, '"', "\n"} else text

    lines = [header.replace(",", delimiter), *(delimiter.join(map(cell, pair)) + more for pair in PAIRS)]
    return "".join(line + end for line in lines)


OBJECTS = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
UTF8, UTF16 = "utf-8-sig", "utf-16"
FILES: dict[str, tuple[str, bytes, str]] = {
    "byte order mark": ("a.csv", sheet().encode(UTF8), ""),
    "semicolons": ("a.csv", sheet(";").encode(), "semicolon-separated"),
    "semicolons and a byte order mark": ("a.csv", sheet(";").encode(UTF8), "semicolon-separated"),
    "Excel's own line": ("a.csv", ("sep=;\r\n" + sheet(";")).encode(), "semicolon-separated"),
    "bars": ("a.csv", sheet("|").encode(), "bar-separated"),
    "tabs": ("a.csv", sheet("\t").encode(), "tab-separated"),
    "Unicode text": ("a.csv", sheet("\t").encode(UTF16), "UTF-16; tab-separated"),
    "Unicode text by its own name": ("a.txt", sheet("\t").encode(UTF16), "UTF-16; tab-separated"),
    "commas in a .tsv": ("a.tsv", sheet().encode(), "comma-separated"),
    "capitals and blanks": (
        "a.csv",
        sheet(header="Prompt, CHOSEN ,rejected").encode(),
        "'Prompt' read as 'prompt'; ' CHOSEN ' read as 'chosen'",
    ),
    "empty column": ("a.csv", sheet(header="prompt,chosen,rejected,,", more=",,").encode(), ""),
    "row numbers of pandas": (
        "a.csv",
        ("," + sheet()).replace("\r\nOù", "\r\n0,Où").replace('\r\n"Say', '\r\n1,"Say').encode(),
        "the first column, which has no name and numbers the rows, left out",
    ),
    "empty rows": ("a.csv", (sheet() + ",,\r\n,,\r\n").encode(), "2 empty rows at the end left out"),
    "JSON lines from Windows": ("a.jsonl", "".join(json.dumps(o) + "\r\n" for o in OBJECTS).encode(UTF8), ""),
    "JSON lines in UTF-16": ("a.jsonl", "".join(json.dumps(o) + "\n" for o in OBJECTS).encode(UTF16), "UTF-16"),
    "array under .jsonl": ("a.jsonl", json.dumps(OBJECTS).encode(), "a JSON array"),
    "pretty array under .jsonl": ("a.jsonl", json.dumps(OBJECTS, indent=1).encode(), "a JSON array"),
    "array with a byte order mark": ("a.json", json.dumps(OBJECTS, indent=1).encode(UTF8), ""),
    "pretty objects": (
        "a.jsonl",
        "\n".join(json.dumps(o, indent=1) for o in OBJECTS).encode(),
        "objects over several lines",
    ),
    "under a key": (
        "a.json",
        json.dumps({"version": 1, "rows": OBJECTS}).encode(),
        "rows under the key 'rows'; not read beside them: 'version'",
    ),
    "JSON lines under .csv": ("a.csv", "".join(json.dumps(o) + "\n" for o in OBJECTS).encode(), ""),
    "array under .csv": ("a.csv", json.dumps(OBJECTS).encode(), ""),
    "columns": (
        "a.json",
        json.dumps({key: [o[key] for o in OBJECTS] for key in OBJECTS[0]}).encode(),
        "an object of columns",
    ),
    "columns of pandas": (
        "a.json",
        json.dumps({key: {str(at + 4): o[key] for at, o in enumerate(OBJECTS)} for key in OBJECTS[0]}).encode(),
        "an object of columns",
    ),
    "semicolons in a .txt": ("a.txt", sheet(";").encode(), "semicolon-separated"),
    "commas in a .txt": ("a.txt", sheet().encode(), "comma-separated"),
    "pretty under a key": ("a.json", json.dumps({"data": OBJECTS}, indent=1).encode(), "rows under the key 'data'"),
}


def texts(reader: Reader) -> list[tuple[str, ...]]:
    return [(r.prompt.text, *(c.text for c in r.replies)) for _, r in reader if isinstance(r, Ranking)]


@pytest.mark.parametrize(("name", "data", "said"), FILES.values(), ids=list(FILES))
def test_a_file_is_read_as_it_is_meant_and_what_was_recognised_is_said(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    reader = Reader(tmp_path / name)
    assert texts(reader) == PAIRS
    assert reader.describe().endswith("2 rows" + (f"; {said}" if said else ""))


def test_one_object_a_line_stays_a_row(tmp_path: Path) -> None:
    """A row that has a key `data` is no container, and a broken first line leaves the others."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "x", "data": 3}) + "\n")
    assert [row.value for row, _ in Reader(path)] == [{"prompt": "x", "data": 3}]
    path.write_text('{"prompt": "x\n{"prompt": "y"}\n')
    assert [record is None for _, record in Reader(path, quarantine=True)] == [True, False]


def test_an_object_of_lists_that_is_one_row_stays_one(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Why?"}], "completion": [{"role": "assistant", "content": "So."}]}
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert [r.completion for _, r in Reader(tmp_path / "a.json") if isinstance(r, Demonstration)] == ["So."]
    (tmp_path / "a.json").write_text(json.dumps({"prompt": ["Why?", "Who?"], "completion": ["So."]}))
    with pytest.raises(UserError, match=r"a.json:1: "):
        list(Reader(tmp_path / "a.json"))


def test_a_header_is_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Prompt\nWhy?\n")
    with pytest.raises(UserError, match=r"a.txt:1: 'Prompt' looks like the header of a table of one column; delete it"):
        list(Reader(tmp_path / "a.txt"))


def test_a_table_of_other_names_is_no_list_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Frage\tAntwort\r\nWozu?\tDarum.\r\n".encode(UTF16))
    with pytest.raises(UserError, match=r"a.txt:1: the line has tabs, as the header of a table has"):
        list(Reader(path))
    found = [r for _, r in Reader(path, columns={"prompt": "Frage", "completion": "Antwort"})]
    assert [(r.prompt.text, r.completion) for r in found if isinstance(r, Demonstration)] == [("Wozu?", "Darum.")]
    path.write_text("Why?\nWhat\tthen?\n")
    assert [r.text for _, r in Reader(path) if isinstance(r, Prompt)] == ["Why?", "What\tthen?"]


def test_plain_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Où ?\r\n\r\n Why, then? \r\n".encode(UTF8))
    reader = Reader(tmp_path / "a.txt")
    assert [(row.place[-2:], record.text) for row, record in reader] == [(":1", "Où ?"), (":3", "Why, then?")]  # type: ignore[union-attr]
    assert "format prompts (detected), prompts; 2 rows; plain text, a prompt a line" in reader.describe()


def test_elements_of_one_line_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prompt": "x"}, {"prompt": ""},\n{"prompt": ""}]')
    bad = [row.problem or "" for row, record in Reader(tmp_path / "a.json", quarantine=True) if record is None]
    assert [text.removeprefix(f"{tmp_path}/a.json").split(" field")[0] for text in bad] == [":1, element 2:", ":2:"]
    audit = Audit()
    audit.add(tmp_path / "a.json")
    assert audit.report()["files"][0]["used"] == 1


@pytest.mark.parametrize("name", ["a.xls", "a.ods", "a.numbers", "a.docx"])
def test_what_is_no_text_is_refused_with_what_to_click(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=rf"a {name[1:]} file cannot be read; .*Save as.*CSV UTF-8"):
        list(Reader(tmp_path / name))


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "gzip under another name": ("a.jsonl", gzip.compress(b'{"prompt": "a"}\n'), "packed by gzip.*add .gz"),
    "a workbook under another name": ("a.csv", b"PK\x03\x04" + bytes(40), "a workbook or a ZIP archive.*CSV UTF-8"),
    "an old workbook": ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(40), "old Office program.*CSV UTF-8"),
    "a log-in page": ("a.csv", b"\n<!DOCTYPE html><html><p>Sign in</p></html>", "web page.*download the data itself"),
    "a Git LFS pointer": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "UTF-32": ("a.csv", "\ufeffprompt\nWhy?\n".encode("utf-32-le"), "UTF-32.*save it as UTF-8"),
    "YAML": ("a.yaml", b"- prompt: Why?\n", r"a .yaml file is not read; rows stand in .csv"),
    "ends of old Macs": ("a.csv", b"prompt,completion\rWhy?,So.\r", "CR alone.*CSV UTF-8"),
    "two lists of rows": (
        "a.json",
        json.dumps({"data": OBJECTS, "validation": OBJECTS}).encode(),
        "rows stand under 'data', 'validation'; put each list into a file",
    ),
    "a split a key": (
        "a.json",
        json.dumps({"train": OBJECTS}).encode(),
        "rows stand under 'train'; put each list into a file",
    ),
    "a header in the middle": (
        "a.csv",
        b"prompt,completion\nWhy?,So.\nprompt,completion\nHow?,So.\n",
        ":3: the header stands here again.*delete the line",
    ),
    "an open quotation mark": ("a.csv", b'prompt,completion\nWhy?,"So.\nHow?,So.\n', ":2: .*never closed; close it"),
    "a title above the header": (
        "a.csv",
        b"prompt,,\nprompt,completion\nWhy?,So.\n",
        ":2: 2 fields where the header names 1.*delete what stands above the header",
    ),
    "one name twice": ("a.csv", b"prompt,answer,answer\na,b,c\n", "twice.*name each column once"),
    "more cells": ("a.csv", b"prompt,completion\nWhy?,So, so.\n", ":2: 3 fields.*into quotation marks"),
    "fewer cells": ("a.csv", b"prompt,completion\nWhy?\n", ":2: 1 fields.*fill in what is missing"),
    "two objects on a line": ("a.jsonl", b'{"prompt": "a"}{"prompt": "b"}\n{"prompt": "c"}\n', ":1: .*a line for each"),
    "Python's dicts": ("a.jsonl", b"{'prompt': 'a'}\n{'prompt': 'b'}\n", ":1: .*json.dumps"),
    "another language": ("a.csv", b"pregunta,respuesta\na,b\n", "'pregunta', 'respuesta'.*winner=THEIRS"),
}


@pytest.mark.parametrize(("name", "data", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_read_is_refused_with_what_to_do(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        list(Reader(tmp_path / name))


def test_a_workbook_without_openpyxl_is_refused_with_what_to_click(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"openpyxl, which is not installed.*plaudit\[excel\].*CSV UTF-8"):
        list(Reader(tmp_path / "a.xlsx"))


def test_a_workbook_is_read_like_a_csv(tmp_path: Path) -> None:
    lines = [("Prompt", "chosen", "rejected", "id", None), *((*p, float(n), None) for n, p in enumerate(PAIRS))]

    def save(sheets: dict[str, list[tuple[Any, ...]]]) -> Path:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for title, rows in sheets.items():
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
        book.save(tmp_path / "a.xlsx")
        return tmp_path / "a.xlsx"

    reader = Reader(save({"Pairs": [*lines, (None,) * 5, ("", None, " ", None, None)], "Sheet2": []}))
    assert texts(reader) == PAIRS
    assert "Excel workbook, sheet 'Pairs'; 'Prompt' read as 'prompt'; 2 empty rows" in reader.describe()
    with pytest.raises(UserError, match=r"2 sheets with a header, 'One', 'Two'"):
        list(Reader(save({"One": lines, "Two": lines})))


def patched_book(path: Path, rows: list[tuple[Any, ...]], *changes: tuple[str, str]) -> Path:
    """A workbook whose first sheet says something else than openpyxl would write."""
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    hidden = book.create_sheet("Lists")
    hidden.append(("better", "worse"))
    hidden.sheet_state = "hidden"
    book.save(path)
    with zipfile.ZipFile(path) as packed:
        parts = {name: packed.read(name).decode() for name in packed.namelist()}
    for old, new in changes:
        assert old in parts["xl/worksheets/sheet1.xml"]
        parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"].replace(old, new)
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in parts.items():
            packed.writestr(name, text)
    return path


@pytest.mark.parametrize("said", ["A1", "A1:C2", "A1:B9"])
def test_no_row_of_a_workbook_is_lost_where_its_size_is_said_too_small(said: str, tmp_path: Path) -> None:
    lines = [("prompt", "chosen", "rejected", "kind"), *PAIRS]
    path = patched_book(tmp_path / "a.xlsx", lines, ('<dimension ref="A1:D3" />', f'<dimension ref="{said}" />'))
    assert texts(Reader(path)) == PAIRS


def test_a_line_end_of_a_workbook_is_no_word(tmp_path: Path) -> None:
    """Excel's file has `_x000D_` for a CR, and `_x005F_` before it where somebody has typed that."""
    lines = [("prompt", "chosen", "rejected"), ("Why?", "So_x000D_\nit is.", "_x005F_x000D_")]
    assert texts(Reader(patched_book(tmp_path / "a.xlsx", lines))) == [("Why?", "So\nit is.", "_x000D_")]


@pytest.mark.parametrize("end", ["\n", "\n\n\n", "\n \n"])
def test_empty_lines_at_the_end_of_a_table_are_left_out(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nWhy?\nWhat?" + end)
    assert [record.text for _, record in Reader(tmp_path / "a.csv") if isinstance(record, Prompt)] == ["Why?", "What?"]
    path = patched_book(tmp_path / "a.xlsx", [("prompt",), ("Why?",), ("What?",), (" ",), ("",)])
    assert len(list(Reader(path))) == 2


@pytest.mark.parametrize("line", ['Why?, "So.", "No."', 'Why?, "So, yes."', '"Why?",\t"So.",No.'])
def test_a_blank_before_a_quotation_mark_is_refused(line: str, tmp_path: Path) -> None:
    """Read by the rules, the second one is the pair of ' "So' and ' yes."'."""
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\n{line}\n")
    with pytest.raises(UserError, match=r"a.csv:2: a blank stands before the quotation mark that opens a cell"):
        list(Reader(tmp_path / "a.csv"))
    meant = '"He said, ""No"", then left."," ""No."" "," no ""x"" "\n'
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + meant)
    assert texts(Reader(tmp_path / "a.csv")) == [('He said, "No", then left.', ' "No." ', ' no "x" ')]


def test_a_cell_that_excel_has_cut_is_refused(tmp_path: Path) -> None:
    head, cut, whole = ("prompt", "chosen", "rejected"), "ü" * 32_767, "ü" * 32_766
    sheet = patched_book(tmp_path / "a.xlsx", [head, ("Why?", whole, "No."), ("Why?", cut, "No.")])
    (tmp_path / "a.csv").write_text(f"{','.join(head)}\nWhy?,{whole},No.\nWhy?,{cut},No.\n", encoding="utf-8")
    for path in (sheet, tmp_path / "a.csv"):
        reader = Reader(path, quarantine=True)
        assert [record is None for _, record in reader] == [False, True]
        with pytest.raises(UserError, match=r":3: a cell has 32,767 characters, which is where Excel cuts"):
            list(Reader(path))


def test_a_first_column_without_a_name_must_number_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt,completion\n0,Why?,So.\nnot this one,Who?,Me.\n")
    with pytest.raises(UserError, match=r"a.csv:3: the first column has no name and holds 'not this one'; name it"):
        list(Reader(tmp_path / "a.csv"))


def test_a_damaged_workbook_is_refused_with_what_to_click(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot be read as an Excel workbook: .*CSV UTF-8"):
        list(Reader(tmp_path / "a.xlsx"))


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Frage;gut;schlecht;chosen\nx;a;b;c\n")
    given = "prompt=Frage,chosen=gut, rejected=schlecht"
    said = CliRunner().invoke(
        commands,
        ["convert", str(tmp_path / "a.csv"), "--to", str(tmp_path / "out.jsonl"), "--columns", given],
    )
    assert said.exit_code == 0, said.output
    assert "'Frage' read as 'prompt'" in said.output and "chosen (the file's own)" in said.output
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert [reply["text"] for reply in row["responses"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [({"prompt": "Frage"}, "there is no column 'Frage', but 'x', 'y'"), ({"frage": "x"}, "'frage' is none of")],
)
def test_a_wrong_name_of_a_column_is_refused(columns: dict[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=says):
        list(Reader(tmp_path / "a.csv", columns=columns))


def test_an_error_that_repeats_is_one_line_with_its_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "x,\n" * 7 + "y\n")
    said = CliRunner().invoke(commands, ["check", str(tmp_path / "a.csv")]).output
    assert said.count("field 'completion' must be") == 1 and "(and in 6 more rows)" in said
    assert "a.csv:9: 1 fields where the header names 2" in said


def converted(path: Path, *more: str) -> tuple[str, list[dict[str, Any]]]:
    """(what was said, the rows that were written)."""
    to = path.with_name("out.jsonl")
    to.unlink(missing_ok=True)
    done = CliRunner().invoke(commands, ["convert", str(path), "--to", str(to), *more])
    rows = [json.loads(line) for line in to.read_text().splitlines()] if to.exists() else []
    return done.output + str(done.exception or ""), rows


def test_a_column_whose_name_has_a_comma_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Frage;Gut, neu;schlecht\nx;a;b\n")
    _, (row,) = converted(tmp_path / "a.csv", "--columns", "prompt=Frage,chosen=Gut, neu,rejected=schlecht")
    assert [reply["text"] for reply in row["responses"]] == ["a", "b"]
    said, _ = converted(tmp_path / "a.csv", "--columns", "prompt=Frage,prompt=schlecht")
    assert "a name of ours stands twice" in said


def test_convert_names_no_split_that_the_row_does_not(tmp_path: Path) -> None:
    """A split in every row would keep a run from dividing them."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?", "split": "test"}\n')
    _, rows = converted(tmp_path / "a.jsonl")
    assert [row.get("split") for row in rows] == [None, "test"]


def test_two_columns_that_read_as_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Prompt,prompt,completion\nx,y,z\n")
    with pytest.raises(UserError, match=r":1: two columns read as 'prompt', one of them 'Prompt'; delete one"):
        list(Reader(tmp_path / "a.csv"))


def test_a_day_in_a_workbook_and_a_header_below_the_first_row(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["prompt", "completion"])
    book.active.append(["Which day?", datetime(2026, 11, 29)])
    book.save(tmp_path / "a.xlsx")
    ((_, record),) = list(Reader(tmp_path / "a.xlsx"))
    assert isinstance(record, Demonstration) and record.completion == "2026-11-29"
    book.active.insert_rows(1)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match="no sheet of the workbook has a header in its first row; delete what"):
        list(Reader(tmp_path / "a.xlsx"))
