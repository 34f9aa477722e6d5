"""The docs say what the code does: names, keys, files, numbers, links, examples and commands are checked.

Run as a script, this file writes the tables of docs/recipe.md anew:

    .venv/bin/python tests/test_docs.py
"""

import ast
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import HTTPServer
from importlib.resources import files
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from safetensors import safe_open

import plaudit as package
from conftest import TINY, command, leave_plots_undrawn
from plaudit.algo.advantages import gae
from plaudit.algo.worked import worked_example
from plaudit.data.audit.problems import LEVELS
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_demonstrations, read_prompts, read_rankings
from plaudit.data.formats.reader import FORMATS, Reader
from plaudit.guard import limits
from plaudit.guard.arithmetic import FAULTS
from plaudit.guard.doctor import FROZEN
from plaudit.guard.limits import WatchConfig
from plaudit.models.heads import load_head
from plaudit.models.load import load_model, load_tokenizer
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message
from plaudit.rewards.config import RewardSource
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.texts.answers import PROBE
from plaudit.rewards.texts.endpoint import EndpointScorer
from plaudit.stages.recipe import MAY_CHANGE, Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SRC = Path(package.__file__).parent
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if path.is_file()]
PAGES += sorted(DOCS.glob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

# The symbols of the design's glossary, in its order.
SYMBOLS = (
    "s_t",
    "a_t",
    "π_φ",
    "π_φold",
    "π_ref",
    "r_θ(x, y)",
    "R_t",
    "V_ψ(s_t)",
    "Â_t",
    "r_t(φ)",
    "γ, λ, ε",
    "S[π](s_t)",
    "D_KL",
    "c1, c2",
    "Ê_t",
    "L",
)

# The formats, in the order of docs/data.md.
FORMATS_IN_ORDER = (
    "prompts",
    "prompt-completion",
    "messages",
    "alpaca",
    "sharegpt",
    "pairs",
    "hh",
    "rankings",
    "votes",
    "strength",
    "winner",
    "unpaired",
)

# --- reading Markdown ---


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """(heading it stands under, rows of cells with the header first) of every table."""
    heading, rows = "", []
    for line in [*prose(text).splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not set("".join(cells)) <= set("-: "):
                rows.append(cells)
            continue
        if rows:
            yield heading, rows
            rows = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- the page of the recipe ---

MARK = "<!-- generated below -->\n"


def recipe_page(page: str) -> str:
    """`page` with everything below the mark rendered from the models."""
    top, nested = [], []
    for name, field in Recipe.model_fields.items():
        (nested if section_of(field) else top).append(name)
    parts = [page.partition(MARK)[0] + MARK, "## The run\n", *table(Recipe, None, "", top)]
    for name in nested:
        field = Recipe.model_fields[name]
        link = f" See [{name}.md]({name}.md)." if (DOCS / f"{name}.md").is_file() else ""
        model = section_of(field)
        assert model is not None
        parts += [f"\n## {name}\n", f"{field.description}{link}\n", *table(model, given(field), f"{name}.")]
    demo = files("plaudit.recipes").joinpath("demo.yaml").read_text(encoding="utf-8")
    parts += ["\n## An example: the demo's recipe\n", f"```yaml\n{demo}```"]
    return "\n".join(parts) + "\n"


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a key that has keys below it."""
    options = [option for option in get_args(field.annotation) or (field.annotation,) if option is not NoneType]
    one = get_origin(field.annotation) is not list and len(options) == 1 and isinstance(options[0], type)
    return options[0] if one and issubclass(options[0], BaseModel) else None


def given(field: FieldInfo) -> BaseModel | None:
    return field.default if isinstance(field.default, BaseModel) else None


def table(
    model: type[BaseModel], defaults: BaseModel | None, prefix: str, names: list[str] | None = None
) -> Iterator[str]:
    if names is None or not prefix:
        yield "| key | default | allowed | what it does |\n| --- | --- | --- | --- |"
    for name in names or model.model_fields:
        field = model.model_fields[name]
        inner = section_of(field)
        if inner is not None:
            yield from table(inner, given(field), f"{prefix}{name}.", list(inner.model_fields))
            continue
        default = getattr(defaults, name) if defaults is not None else field.default
        shown = "required" if field.is_required() else f"`{as_yaml(default)}`"
        help_text = " ".join((field.description or "").split()).replace("|", "\\|")
        assert help_text, f"{prefix}{name} has no help"
        yield f"| `{prefix}{name}` | {shown} | {allowed(field)} | {help_text} |"


def as_yaml(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def allowed(field: FieldInfo) -> str:
    """Type and bounds in words."""
    if get_origin(field.annotation) is dict:
        items = get_args(get_args(field.annotation)[1]) or get_args(field.annotation)[1:]
        keys = next((one for one in items if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if keys is None:
            return "mapping of files" if get_args(field.annotation)[0] is Path else "mapping of names"
        return f"mapping to {{{', '.join(keys.model_fields)}}}"
    words = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        Path: "path",
        list[str]: "list of texts",
        list[Path]: "path or list of paths",
        NoneType: "null",
    }
    if get_origin(field.annotation) is list and field.annotation not in words:
        if get_origin(get_args(field.annotation)[0]) is Literal:
            return f"list of {', '.join(get_args(get_args(field.annotation)[0]))}"
        return f"list of {{{', '.join(get_args(field.annotation)[0].model_fields)}}}"
    options = get_args(field.annotation) if field.annotation not in words else ()
    choices = [kind for option in options for kind in (get_args(option) or (option,))]
    if any(isinstance(choice, str) for choice in choices):
        return ", ".join(choice if isinstance(choice, str) else words[choice] for choice in choices)
    kinds = " or ".join(words[kind] for kind in options or (field.annotation,))
    bounds = []
    for item in field.metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(item, attribute, None) is not None:
                bounds.append(f"{sign} {getattr(item, attribute)}")
        if getattr(item, "min_length", None) == 1:
            bounds.append("not empty")
        if getattr(item, "pattern", None):
            return ", ".join(re.findall(r"\w+", item.pattern))
    return ", ".join([kinds, *bounds])


def test_the_recipe_page_is_in_step_with_the_models() -> None:
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert page == recipe_page(page), "docs/recipe.md is stale: run .venv/bin/python tests/test_docs.py"


def test_every_key_of_a_resolved_recipe_is_on_the_page(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """By another way than the page was made: the keys of a recipe that was loaded."""

    def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict) and name not in ("stages", "formats", "columns", "template_kwargs"):
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    loaded = set(keys(load_recipe(write_recipe(tmp_path)).model_dump()))
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert {quoted(row[0])[0] for _, rows in tables(text) for row in rows[1:]} == loaded


def test_keys_named_in_the_docs_exist() -> None:
    """`ppo.kl_coef` and the like, wherever they stand in backticks."""
    rows = [row for _, rows in tables((DOCS / "recipe.md").read_text(encoding="utf-8")) for row in rows[1:]]
    known = {quoted(row[0])[0] for row in rows}
    sections = {key.split(".")[0] for key in known if "." in key}
    known |= {key.rpartition(".")[0] for key in known}  # a section may be named too
    pattern = re.compile(rf"(?:{'|'.join(sections)})(?:\.[a-z_]+)+")
    for page, name in zip(PAGES, NAMES, strict=True):
        for item in quoted(prose(page.read_text(encoding="utf-8"))):
            key = item.partition("=")[0]
            key = re.sub(r"(?<=\.stages)\..*", "", key)  # an exception of one stage has the keys of its section
            if pattern.fullmatch(key) and not key.endswith((".md", ".yaml", ".json", ".jsonl")):
                assert key in known, f"{name}: {key}"


# --- the glossary ---


def glossary() -> list[list[str]]:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    return [row for _, rows in tables(text) for row in rows[1:]]


@cache
def code_names() -> frozenset[str]:
    """Everything src gives a name to: variables, arguments, fields, functions, keywords, and strings that are names."""
    found = set()
    for file in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=name):
                    found.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Constant(value=str(name)):
                    found.add(name)
    return frozenset(name for name in found if name and name.isidentifier())


def test_the_glossary_has_every_symbol_of_the_design() -> None:
    assert tuple(row[0].replace("\\", "") for row in glossary())[: len(SYMBOLS)] == SYMBOLS


@pytest.mark.parametrize("row", glossary(), ids=[row[0] for row in glossary()])
def test_the_glossary_names_what_is_in_the_code(row: list[str]) -> None:
    _, _, names, places = row
    assert quoted(names) and set(quoted(names)) <= code_names()
    assert quoted(places)
    for place in quoted(places):
        module, _, path = place.partition(":")
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert found is not None


def test_names_that_are_not_in_the_code_are_noticed() -> None:
    assert not {"advantage_BT", "kl_penalty_coefficient"} & code_names()


# --- the worked example ---


def test_the_worked_example_page_has_the_librarys_numbers() -> None:
    text = (DOCS / "worked-example.md").read_text(encoding="utf-8")
    shown = {row[0].partition(" ")[0]: float(row[2]) for _, rows in tables(text) for row in rows[1:]}
    names = {row[0]: float(row[2]) for _, rows in tables(text) for row in rows[1:]}
    assert len(names) == 11
    numbers = worked_example()
    expected = {
        "value V": numbers.value,
        "reward R": numbers.reward,
        "discount γ": numbers.gamma,
        "clip range ε": numbers.clip_range,
        "old probability π_old": numbers.old_probability,
        "probability π": numbers.probability,
        "advantage Â": numbers.advantage,
        "ratio r": numbers.ratio,
        "unclipped": numbers.unclipped,
        "clipped": numbers.clipped,
        "L_CLIP": numbers.l_clip,
    }
    assert names == pytest.approx(expected, abs=1e-12)
    assert shown["L_CLIP"] == 4.2


def test_the_three_token_example_has_the_librarys_numbers() -> None:
    text = (DOCS / "worked-example.md").read_text(encoding="utf-8")

    def numbers(symbol: str) -> torch.Tensor:
        inside = re.search(rf"{symbol} = \(([^)]*)\)", text)
        assert inside is not None
        return torch.tensor([[float(x.replace("−", "-")) for x in inside[1].split(",")]], dtype=torch.float64)

    rewards, values = numbers("R"), numbers("V")
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, numbers("Â"), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, numbers(r"returns = Â \+ V"), rtol=0, atol=1e-12)


# --- PPO by hand ---


def test_ppo_by_hand_is_short_and_its_score_rises(capsys: pytest.CaptureFixture[str]) -> None:
    """The page that a newcomer runs first."""
    script = DOCS / "ppo_by_hand.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 150
    means = runpy.run_path(str(script))["main"]()
    assert len(means) == 10 and means[-1] > 2 * means[0]
    lines = capsys.readouterr().out.splitlines()
    assert [f"score {mean:.3f}" in line for mean, line in zip(means, lines, strict=True)] == [True] * 10
    assert "KL  0.00" in lines[0], "a fresh policy is the reference"


# --- links and examples ---


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert path.is_relative_to(ROOT)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_the_site_has_every_page_once() -> None:
    """`make docs` builds it, strictly; its navigation is in mkdocs.yml."""
    listed = re.findall(r"^ +- ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_example_lines_of_the_data_page_are_read(tmp_path: Path) -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    prompt, demonstration, ranking = blocks(text, "json")
    path = tmp_path / "rows.jsonl"
    path.write_text(prompt, encoding="utf-8")
    assert [(row.kind, row.split) for row in read_prompts(path)] == [("domain", "test")]
    path.write_text(demonstration, encoding="utf-8")
    assert [row.completion for row in read_demonstrations(path)] == [json.loads(demonstration)["completion"]]
    path.write_text(ranking, encoding="utf-8")
    (read,) = read_rankings(path)
    assert read.pairs() == [(0, 2), (1, 2)]
    assert [reply.finished for reply in read.replies] == [True, True, False]


def test_the_formats_of_the_data_page_are_what_is_detected(tmp_path: Path) -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `([\w-]+)`\n(.*?)(?=^##)", text, flags=re.MULTILINE | re.DOTALL)
    assert tuple(name for name, _ in sections) == FORMATS_IN_ORDER and set(FORMATS_IN_ORDER) == set(FORMATS)
    for name, section in sections:
        (block,) = blocks(section, "jsonl")
        path = tmp_path / f"{name}.jsonl"
        path.write_text(block, encoding="utf-8")
        reader = Reader(path)
        assert len(list(reader)) == block.count("\n") and reader.format == name


def test_the_check_on_the_data_page_prints_what_it_says(
    tmp_path: Path, plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    section = text[text.index("## The check") : text.index("## Converting")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name, block in zip(("garden.jsonl", "pairs.jsonl"), blocks(section, "jsonl"), strict=True):
        Path(name).write_text(block, encoding="utf-8")
    done = plaudit("data", "check", "garden.jsonl", "pairs.jsonl")
    (printed,) = blocks(section, "text")
    assert [line.rstrip() for line in done.out.splitlines()] == printed.splitlines()
    assert done.code == 1
    problems = {
        quoted(row[0])[0]: row[1] for heading, rows in tables(text) if heading == "The check" for row in rows[1:]
    }
    assert problems == {kind: level for kind, (level, _) in LEVELS.items()}


def test_the_demos_lines_on_the_data_page_are_real() -> None:
    shipped = files("plaudit.recipes").joinpath("demo")
    prompt, demonstration, _ = blocks((DOCS / "data.md").read_text(encoding="utf-8"), "json")
    assert prompt in shipped.joinpath("prompts.jsonl").read_text(encoding="utf-8")
    assert demonstration in shipped.joinpath("demonstrations.jsonl").read_text(encoding="utf-8")


def test_the_report_card_on_its_page_is_what_its_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "reward-report.md").read_text(encoding="utf-8")
    ((code,), (expected, *_)) = blocks(text, "python"), blocks(text, "text")
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "docs/reward-report.md", "exec"), {})
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == expected.splitlines()


def test_the_alarms_of_the_report_card_are_on_its_page() -> None:
    """Every kind that view/card/alarms.py gives a name to, by its source."""
    calls = [
        node.args[0].value
        for node in ast.walk(ast.parse((SRC / "view/card/alarms.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "_alarm"
        and isinstance(node.args[0], ast.Constant)
    ]
    text = (DOCS / "reward-report.md").read_text(encoding="utf-8")
    listed = [quoted(row[0])[0] for heading, rows in tables(text) if heading == "The alarms" for row in rows[1:]]
    assert sorted(listed) == sorted(set(calls))


def test_the_findings_on_the_doctors_page_are_those_of_the_code() -> None:
    """Every name that a finding can have; and the limits of the symptoms."""
    source = ast.parse((SRC / "guard/symptoms.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and node.args]
    made = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("Finding", "Symptom")]
    given = {node.args[0].value for node in made if isinstance(node.args[0], ast.Constant)} | set(FAULTS)
    given |= {f"{what} sign" for what in ("value loss", "entropy bonus")} | {name for name, _ in FROZEN.values()}
    given |= {"temperature mismatch", "sampling law cut short"}  # gap_pattern of guard/sampler.py
    found = dict(tables((DOCS / "doctor.md").read_text(encoding="utf-8")))
    rows = [*found["Faults: the arithmetic, done again"][1:], *found["Symptoms"][1:]]
    assert sorted(quoted(row[0])[0] for row in rows) == sorted(given)
    shown = {quoted(row[0])[0]: row[1] for row in found["Symptoms"][1:]}
    watch = WatchConfig()
    limits_of = {
        "negative KL": [limits.NEGATIVE_KL],
        "KL runaway": [watch.max_kl],
        "KL over its budget": [limits.KL_BUDGET],
        "learning rate too high": [limits.CLIPPED_MOST, limits.APPROX_KL_MOST, limits.GRAD_NORM_GROWTH],
        "policy does not move": [limits.STANDS_STILL],
        "entropy collapse": [watch.min_entropy],
        "entropy explosion": [limits.ENTROPY_MORE],
        "replies do not end": [limits.ENDING],
        "length drift": [watch.max_length_change],
        "score scale": [limits.SPREAD_LEFT, limits.SPREAD_MOST],
        "sampler and trainer drift apart": [limits.GAP_MOST],
        "repeated text": [watch.max_repetition, limits.REPEATS_THAT_NEVER_COUNT],
        "replies alike": [watch.min_variety],
    }
    for name, values in limits_of.items():
        for value in values:
            text = f"{value:g}".replace("e-07", "e-7").replace("-0", "−0")
            assert re.search(rf"(?<![\d.]){re.escape(text)}\b", shown[name]), (name, text)
    assert (limits.WINDOW, limits.LONG, limits.NEGATIVE_KL_ERRORS) == (3, 10, 4)


def test_the_settings_of_the_watch_are_those_of_its_page() -> None:
    found = dict(tables((DOCS / "doctor.md").read_text(encoding="utf-8")))["The watch against reward hacking"]
    told = {quoted(row[0])[0]: row[1] for row in found[1:]}
    fields = WatchConfig.model_fields
    assert told == {name: f"{field.default:g}" for name, field in fields.items() if name != "enabled"}


def test_the_token_on_the_page_of_inspect_is_what_its_code_prints() -> None:
    text = (DOCS / "inspect.md").read_text(encoding="utf-8")
    ((code,), (expected, *_)) = blocks(text, "python"), blocks(text, "text")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "docs/inspect.md", "exec"), {})
    assert printed.getvalue() == expected


def test_the_keys_that_may_change_are_those_of_the_page() -> None:
    found = dict(tables((DOCS / "resume.md").read_text(encoding="utf-8")))["What may change"]
    told = {".".join(reversed(quoted(row[0]))): row[1] for row in found[1:]}
    assert told == MAY_CHANGE


# --- a finished run, the commands and the files ---

Plaudit = Callable[..., SimpleNamespace]


RUN = ["plaudit", "run", "recipe.yaml"]


@pytest.fixture(scope="session")
def home(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as the docs have it: recipe.yaml with its data, and what RUN left, the finished runs/demo."""
    folder = tmp_path_factory.mktemp("docs") / "home"
    # Every page's commands are run on it: it need not learn much.
    little = {"sft": {**TINY["sft"], "epochs": 2}, "reward": {**TINY["reward"], "epochs": 1}}
    write_recipe(folder, name="demo", folder=None, **little)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        assert command(*RUN[1:]) == 0
    shutil.copytree(folder, folder.with_name("fresh"))
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> Path:
    """That directory, as it was made, as the working directory; the run's recipe holds its path, so it is not moved."""
    shutil.rmtree(home)
    shutil.copytree(home.with_name("fresh"), home)
    (home / "runs/mine").symlink_to("demo")
    monkeypatch.chdir(home)
    return home


def commands(page: Path) -> list[list[str]]:
    """The words of every `$ plaudit` and `$ make` line of a page's console blocks."""
    lines = [line for block in blocks(page.read_text(encoding="utf-8"), "console") for line in block.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if re.match(r"\$ (plaudit|make)\b", line)]


# Read from top to bottom by a test of its own, with the recipe that the page's own `init` writes.
BEGIN = DOCS / "begin.md"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page) and page != BEGIN], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_works(page: Path, here: Path, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block in python_files(page).items():
        (here / name).write_text(block, encoding="utf-8")
    for name in ("rankings.jsonl", "more.jsonl", "gold.jsonl"):
        shutil.copy(here / "runs/demo/preferences/rankings.jsonl", here / name)
    (here / "people.csv").write_text("name,role,quota,fields\ncara,annotator,200,medical 50; law\n", encoding="utf-8")
    # All of `label serve` but the port and the serving itself.
    monkeypatch.setattr("plaudit.label.web.serve.listen", contextlib.nullcontext)
    monkeypatch.setattr("plaudit.label.web.serve.serve", lambda *_: None)
    for words in commands(page):
        if words[0] == "make":
            check_make(words[1:])
        elif (
            words[:2] == RUN[:2] and len(words) == 3
        ):  # pages begin with it: it has been run, and this is what it leaves
            shutil.rmtree(here / "runs")
            shutil.copytree(here.with_name("fresh") / "runs", here / "runs")
            (here / "runs/mine").symlink_to("demo")
        elif words[1:2] == ["demo"] or any(word.startswith("model=") for word in words):
            check_without_weights(words[1:], plaudit)
        else:
            if words[1] == "run" and not {"--resume", "--from"} & set(words) and "folder=" not in " ".join(words):
                shutil.rmtree(here / "runs", ignore_errors=True)
            monkeypatch.setattr("sys.stdin", io.StringIO("Hello there.\n\n"))
            done = plaudit(*words[1:])
            assert done.code == 0, f"{page.name}: {shlex.join(words)}: {done.out}{done.err}"
            if words[1] == "init":  # what follows is done with the small recipe
                shutil.copy(here / "recipe.yaml", here / words[words.index("--to") + 1])


def test_a_csv_becomes_a_model_as_the_first_page_says(
    plaudit: Plaudit,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    """Every command in its order: the page's file with more rows, two people's labels, then more of them."""
    monkeypatch.chdir(tmp_path)
    page = BEGIN.read_text(encoding="utf-8")
    head, *shown = blocks(page, "text")[0].splitlines()
    more = [f"What is plant {n} like?,Plant {n} is green.,Nobody knows.,{'ab'[n % 3 == 0]},anna" for n in range(27)]
    Path("pairs.csv").write_text("\n".join([head, *shown, *more, ""]), encoding="utf-8")
    Path("ben.csv").write_text("\n".join([head, *more[::2], ""]).replace("anna", "ben"), encoding="utf-8")
    monkeypatch.setattr("plaudit.label.web.serve.listen", contextlib.nullcontext)
    monkeypatch.setattr("plaudit.label.web.serve.serve", lambda *_: None)
    (both,) = blocks(page, "yaml")
    model, said = str(tiny_model()), {}
    for words in commands(BEGIN):
        if words[1:] == ["run", "mine.yaml", "--from", "auto"]:
            change_recipe(Path("mine.yaml"), yaml.safe_load(both))
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello there.\n\n"))
        done = plaudit(*(model if word.startswith("wheel:") else word for word in words[1:]))
        assert done.code == 0, f"{shlex.join(words)}: {done.out}{done.err}"
        said[shlex.join(words[1:])] = done.out + done.err
        if words[1] == "init":
            assert "rankings (30 rows, format winner)" in done.out
            change_recipe(
                Path("mine.yaml"), {name: TINY[name] for name in ("dtype", "lora", "sampling", "ppo", "evaluate")}
            )
    assert "annotators agree on 100.0 % of the 14 times" in said["data check pairs.csv ben.csv"]
    assert "from preferences, because of preferences.rankings" in said["run mine.yaml --from auto"]
    assert json.loads(Path("runs/mine/preferences/summary.json").read_text())["rankings"] == 44
    # The same command again where nothing has changed, and where a person has judged more.
    assert "nothing that a stage read has changed" in plaudit("run", "mine.yaml", "--from", "auto").out
    with Path("ben.csv").open("a", encoding="utf-8") as file:
        file.write(more[1].replace("anna", "ben") + "\n")
    refused = plaudit("run", "mine.yaml", "--resume")
    assert refused.code == 2 and "1 added" in refused.err


def change_recipe(path: Path, changes: dict[str, Any]) -> None:
    """Keys of sections that a written recipe has, or new ones."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def python_files(page: Path) -> dict[str, str]:
    """The Python blocks of a page whose first line names a file."""
    found = blocks(page.read_text(encoding="utf-8"), "python")
    return {name[1]: block for block in found if (name := re.match(r"# (\w+\.py)\n", block))}


def check_make(words: list[str]) -> None:
    """Targets and variables of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"\$\({name}\)" if is_variable else rf"^{name}:", makefile, flags=re.MULTILINE), word


def check_without_weights(words: list[str], plaudit: Plaudit) -> None:
    """A command that needs real weights: it exists, and the recipe takes its overrides."""
    assert plaudit(words[0], "--help").code == 0
    recipe = SRC / "recipes" / "demo.yaml" if words[0] == "demo" else Path("recipe.yaml")
    load_recipe(recipe, [word for word in words[1:] if "=" in word and not word.startswith("-")])


def found_keys(path: Path) -> set[str]:
    """The keys of a JSON file, of all rows of a JSONL file, or of the tensors of a safetensors file."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as tensors:
            return set(tensors.keys())
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    keys = {key for row in rows for key in row}
    kinds = "|".join(("instruction", "domain", "safety"))
    return {re.sub(rf"^(gold_(?:sft|ppo))_(?:{kinds})$", r"\1_KIND", key) for key in keys}


KEY_TABLES = [
    (page, quoted(heading)[0], rows)
    for page in PAGES
    for heading, rows in tables(page.read_text(encoding="utf-8"))
    if re.fullmatch(r"`[\w/]+\.(?:jsonl?|safetensors)`", heading)
]


@pytest.mark.parametrize(("page", "name", "rows"), KEY_TABLES, ids=[f"{p.name}:{name}" for p, name, _ in KEY_TABLES])
def test_key_tables_list_exactly_what_a_run_leaves(page: Path, name: str, rows: list[list[str]], here: Path) -> None:
    assert {quoted(row[0])[0] for row in rows[1:]} == found_keys(here / "runs/demo" / name)


def test_every_log_and_summary_of_a_run_has_its_table(here: Path) -> None:
    left = {str(path.relative_to(here / "runs/demo")) for path in (here / "runs/demo").rglob("*.json*")}
    own = {
        re.sub(
            r"/\d{5}\.|^\w+(?=/inputs\.)", lambda m: "sft" if m[0][0] != "/" else "/00000.", name
        )  # a table a series
        for name in left
        if not re.search(r"/(adapter|model)/|^(environment|manifest|micro_batches)\.|^preferences/\w+\.jsonl", name)
    }
    assert own <= {name for _, name, _ in KEY_TABLES}


def test_files_that_the_docs_name_are_there(here: Path) -> None:
    for page in PAGES:
        for _, rows in tables(page.read_text(encoding="utf-8")):
            if rows[0][0] == "file" and page.name != "architecture.md":  # its files are those of src
                for row in rows[1:]:
                    assert (here / "runs/demo" / quoted(row[0])[0]).exists(), f"{page.name}: {row[0]}"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_python_of_the_models_page_runs(here: Path) -> None:
    """In order, in one namespace; its score is the one that the roles give."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, block in enumerate(blocks((DOCS / "models.md").read_text(encoding="utf-8"), "python")):
            exec(compile(block, f"docs/models.md, block {number + 1}", "exec"), names)
    assert "score " in printed.getvalue()

    run = here / "runs/demo"
    chat = ChatFormat(load_tokenizer(str(run / "sft/model")), names["rules"]["system"])
    base = load_model(str(run / "sft/model"), torch.float32, torch.device("cpu"))
    roles = Roles(base, reward=[run / "reward/adapter"])
    load_head(roles.score_heads[0], run / "reward")
    contract = RewardContract.load(run / "reward")
    prompt = chat.prompt_ids((Message("user", "How do I boil an egg?"),))
    tokens = pad_right([prompt], [chat.reply_ids(Completion("Boil it for eight minutes."))], chat.pad_id, base.device)
    raw = roles(tokens, "reward", frozenset({"scores"})).scores_BM.item()
    assert names["score"] == pytest.approx((raw - contract.mean[0]) / contract.std[0], abs=1e-4)
    assert names["policy"].dtype == torch.float32


# --- other rewards ---


def test_the_keys_of_a_reward_source_are_those_of_the_page() -> None:
    found = {heading: rows[1:] for heading, rows in tables((DOCS / "rewards.md").read_text(encoding="utf-8"))}[
        "The keys of a source"
    ]
    fields = RewardSource.model_fields
    wanted = [
        [f"`{name}`", f"`{as_yaml(field.default)}`", " ".join((field.description or "").split())]
        for name, field in fields.items()
    ]
    assert found == wanted


def test_the_recipe_of_the_rewards_page_is_one(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (told,) = blocks((DOCS / "rewards.md").read_text(encoding="utf-8"), "yaml")
    recipe = load_recipe(write_recipe(tmp_path, **yaml.safe_load(told)))
    assert [source.kind for source in recipe.ppo.rewards] == ["trained", "function", "endpoint", "model"]


def test_the_endpoint_of_the_rewards_page_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names: dict[str, Any] = {"__name__": "reward_server"}
    exec(python_files(DOCS / "rewards.md")["reward_server.py"], names)
    names["Handler"].log_message = lambda *_: None
    server = HTTPServer(("127.0.0.1", 0), names["Handler"])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/score"
    scores = EndpointScorer(url, timeout=5, retries=0, batch_size=4).score([PROBE])
    server.shutdown()
    thread.join()
    server.server_close()
    assert scores == {PROBE.id: float(len(PROBE.completion.text))}


def test_the_python_of_the_page_of_losses_runs() -> None:
    (block,) = blocks((DOCS / "reward-losses.md").read_text(encoding="utf-8"), "python")
    assert block.count("assert ") == 8
    exec(compile(block, "docs/reward-losses.md", "exec"), {})


if __name__ == "__main__":
    target = DOCS / "recipe.md"
    target.write_text(recipe_page(target.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {target.relative_to(ROOT)}")
