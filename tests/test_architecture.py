"""docs/architecture.md and CONTRIBUTING.md say what the code is: every stop is there, and the layers are the enforced
ones."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import plaudit
from test_imports import LAYERS

SRC = Path(plaudit.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_STOPS, MOST_FILES = 10, 5


def ways() -> dict[str, list[tuple[str, str]]]:
    """Heading -> (file, function) of the stops of the way under it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in PAGE.split("\n## ")[1:]:
        if stops := re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", section, flags=re.MULTILINE):
            found[section.partition("\n")[0].replace("`", "")] = stops
    return found


@cache
def defined(file: str) -> frozenset[str]:
    """Functions, classes and Class.method of a module, by its source."""
    names = set()
    for node in ast.parse((SRC / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(names)


@cache
def called(file: str) -> frozenset[str]:
    """The last names of everything that a module imports from or refers to."""
    found = set()
    for node in ast.walk(ast.parse((SRC / file).read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                found.add(name)
    return frozenset(found)


def test_there_are_three_ways_and_the_shortest() -> None:
    assert list(ways()) == ["From plaudit ppo to the loss", "A token's way", "A label's way", "A run's way"]
    assert all(len(stops) <= MOST_STOPS for stops in ways().values())


@pytest.mark.parametrize(
    ("file", "function"), sorted({stop for stops in ways().values() for stop in stops}), ids=lambda part: part
)
def test_every_stop_is_there(file: str, function: str) -> None:
    assert function in defined(file)


def test_from_the_command_to_the_loss_every_file_names_the_next_function() -> None:
    stops = ways()["From plaudit ppo to the loss"]
    assert len({file for file, _ in stops}) == len(stops) <= MOST_FILES
    for (file, _), (following, function) in pairwise(stops):
        assert function in called(file), f"{file} does not name {function} of {following}"


def test_both_pages_have_the_layers_in_their_order() -> None:
    for page in (PAGE, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        (line,) = re.findall(r"```text\n(errors ─►.*?)```", page, flags=re.DOTALL)
        assert tuple(line.replace("─►", " ").split()) == LAYERS


def test_every_folder_has_its_line() -> None:
    folders = {file.parent.name for file in SRC.glob("*/__init__.py")}
    table = PAGE.partition("## Where things are")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == [name for name in LAYERS if name in folders]
    assert folders <= set(LAYERS)
