"""docs/correctness.md, the known ways to be silently wrong, and the marks of the tests that prove its rows.

A test says itself what it proves: `@pytest.mark.row(7)`, `@pytest.mark.row(13, 30)`, `@pytest.mark.proof("a")`. A mark
that is lost, a row without a test and a page that is stale are noticed here. Run as a script, this file writes the
page's table of tests anew:

    .venv/bin/python tests/test_correctness.py
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "correctness.md"
MARK = "<!-- generated below -->\n"
ROWS, PROOFS = range(1, 36), "abcd"
# Rows of which the page says what is not tested; those among them that have no test at all.
NOT_YET, WITHOUT = set[int](), set[int]()

Marks = dict[tuple[str, int | str], set[str]]


def marked(source: str) -> Iterator[tuple[str, int | str, str]]:
    """(kind of mark, its argument, name of the function) of every mark in a file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                match mark:
                    case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="row" | "proof" as kind)):
                        yield from ((kind, ast.literal_eval(argument), node.name) for argument in mark.args)


@cache
def all_marks() -> Marks:
    """(kind, argument) -> the names of the tests that carry it, wherever their file lies."""
    found: Marks = defaultdict(set)
    for file in sorted(TESTS.rglob("test_*.py")):
        for kind, argument, name in marked(file.read_text(encoding="utf-8")):
            found[kind, argument].add(name)
    return dict(found)


def generated(marks: Marks) -> str:
    """The page's table: a row or proof, and the names of its tests."""
    wanted = [("row", row) for row in ROWS] + [("proof", proof) for proof in PROOFS]
    lines = ["| of | tests |", "| --- | --- |"]
    for key in wanted:
        names = "<br>".join(f"`{name}`" for name in sorted(marks.get(key, ())))
        lines.append(f"| {key[0]} {key[1]} | {names or 'none yet'} |")
    return "\n".join(lines) + "\n"


def cells(pattern: str) -> dict[str, str]:
    """First cell -> last cell, of the page's table rows whose first cell is `pattern`."""
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    return dict(re.findall(rf"^\| ({pattern}) \|.* \| ([^|]*) \|$", text, flags=re.MULTILINE))


def test_every_row_and_every_proof_has_tests() -> None:
    marks = all_marks()
    assert set(marks) == {("row", row) for row in ROWS if row not in WITHOUT} | {("proof", proof) for proof in PROOFS}
    assert all(name.startswith("test_") for names in marks.values() for name in names)


def test_a_name_with_a_number_has_its_mark() -> None:
    """`test_row_7_...` carries row 7: a mark that was lost, or put on its neighbour, is noticed."""
    marks = all_marks()
    for file in TESTS.rglob("test_*.py"):
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if said := re.match(r"test_rows?_?(\d+)_(?:(?:and|row)_(\d+)_)?", name):
                assert all(name in marks["row", int(number)] for number in said.groups() if number), name
            if proof := re.match(r"test_proof_(\w)_", name):
                assert name in marks["proof", proof[1]], name


def test_the_page_lists_every_row_once_and_says_what_is_missing() -> None:
    rows = cells(r"\d+")
    assert [int(row) for row in rows] == list(ROWS)
    assert {int(row) for row, holds in rows.items() if "Not tested yet" in holds} == NOT_YET
    text = PAGE.read_text(encoding="utf-8")
    assert [line[2] for line in text.splitlines() if re.match(r"\| [a-d] \|", line)] == list(PROOFS)


def test_the_page_names_exactly_these_tests() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(MARK)[2].strip()
    assert page == generated(all_marks()).strip(), "stale: run .venv/bin/python tests/test_correctness.py"


def test_what_the_code_cites_is_there() -> None:
    """Comments name a page that the repository holds, by its path, and a row that is on it."""
    files = [file for top in ("src", "tests", "benchmarks", "docs") for file in (ROOT / top).rglob("*.py")]
    for file in files:
        text = re.sub(r"\s*\n\s*#?\s*", " ", file.read_text(encoding="utf-8"))
        if file == Path(__file__):
            continue
        for page in re.findall(r"[\w./-]*\b\w+\.md\b", text):
            if page.endswith(("correctness.md", "design.md")):
                assert (ROOT / page).is_file(), f"{file.name} cites {page}"
        for cited in re.findall(r"docs/correctness\.md,? rows? ((?:\d+(?:, | and )?)+)", text):
            assert {int(row) for row in re.findall(r"\d+", cited)} <= set(ROWS), f"{file.name} cites row {cited}"


def test_marks_are_read() -> None:
    source = (
        "@pytest.mark.slow\n@pytest.mark.row(3, 5)\n@pytest.mark.proof('a')\ndef test_x(): ...\n"
        "@pytest.mark.parametrize('row', [1])\ndef test_y(row): ...\n"
    )
    assert list(marked(source)) == [("row", 3, "test_x"), ("row", 5, "test_x"), ("proof", "a", "test_x")]


@pytest.mark.parametrize("lost", [("row", 7), ("proof", "c")])
def test_a_test_that_is_gone_makes_the_page_stale(lost: tuple[str, int | str]) -> None:
    marks = all_marks()
    (gone, *rest) = sorted(marks[lost])
    assert gone in generated(marks)
    assert generated({**marks, lost: set(rest)}) != generated(marks)


if __name__ == "__main__":
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{above}{MARK}\n{generated(all_marks())}", encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")
