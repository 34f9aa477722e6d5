"""`plaudit init`: what files hold decides where they go, and what is written can be run."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from plaudit.stages.recipe import load_recipe

Plaudit = Callable[..., SimpleNamespace]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pairs.csv, ideal.csv and ask.txt in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"Name thing {i}.", f"Thing {i}, gladly.", "No.") for i in range(40)]
    Path("pairs.csv").write_text("prompt,chosen,rejected\n" + "".join(f'"{a}","{b}",{c}\n' for a, b, c in rows))
    Path("ideal.csv").write_text("prompt,completion\n" + "".join(f'"{a}","{b}"\n' for a, b, _ in rows))
    Path("ask.txt").write_text("".join(f"What is thing {i}?\n" for i in range(40)))
    return tmp_path


def init(plaudit: Plaudit, model: Path, *words: str) -> SimpleNamespace:
    return plaudit("init", *words, "--model", model)


def test_three_files_become_a_recipe_that_passes_the_check(
    files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]
) -> None:
    done = init(plaudit, tiny_model(), "pairs.csv", "ideal.csv", "ask.txt", "--to", "sub/mine.yaml")
    assert done.code == 0, done.err
    assert "ask.txt: prompts (40 rows" in done.out and "ideal.csv: demonstrations (40 rows" in done.out
    text = Path("sub/mine.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=plaudit.schema.json\n")
    assert Path("sub/plaudit.schema.json").is_file()
    values = yaml.safe_load(text)
    assert values["data"]["prompts"] == "../ask.txt" and values["data"]["demonstrations"] == "../ideal.csv"
    assert values["preferences"] == {"rankings": "../pairs.csv"} and values["name"] == "mine"
    assert plaudit("check", "--quick", "sub/mine.yaml").code == 0


def test_pairs_alone_skip_sft(files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]) -> None:
    assert init(plaudit, tiny_model(), "pairs.csv").code == 0
    recipe = load_recipe(Path("mine.yaml"))
    assert recipe.sft.skip and recipe.data.demonstrations is None
    assert recipe.data.prompts.name == "pairs.csv" and [p.name for p in recipe.preferences.rankings] == ["pairs.csv"]
    done = plaudit("check", "--quick", "mine.yaml")
    assert done.code == 0, done.err


def test_replies_that_people_liked_or_not_are_labels(
    files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]
) -> None:
    labels = "".join(f"Name thing {i}.,Thing {i}!,{'true' if i % 2 else 'false'}\n" for i in range(40))
    Path("thumbs.csv").write_text("prompt,completion,label\n" + labels)
    assert init(plaudit, tiny_model(), "thumbs.csv", "ideal.csv").code == 0
    recipe = load_recipe(Path("mine.yaml"))
    assert recipe.preferences.unpaired is not None and recipe.preferences.unpaired.name == "thumbs.csv"
    done = plaudit("check", "mine.yaml")
    assert done.code == 0, done.err
    assert "labels" in done.out and "Time: about" in done.out
    assert not re.search(r"preferences \d", done.out), "nothing is sampled to be ranked"
    assert init(plaudit, tiny_model(), "thumbs.csv", "thumbs.csv", "--to", "two.yaml").code == 2


def test_without_rankings_people_are_asked(files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]) -> None:
    assert init(plaudit, tiny_model(), "ideal.csv").code == 0
    assert load_recipe(Path("mine.yaml")).preferences.annotator == "human"
    assert init(plaudit, tiny_model(), "ideal.csv", "--to", "try.yaml", "--ranked-by", "simulated").code == 0
    assert load_recipe(Path("try.yaml")).preferences.annotator == "simulated"


def test_columns_of_other_names_are_written_down(
    files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]
) -> None:
    Path("own.csv").write_text("Frage,Gut,Schlecht\n" + "".join(f"Was ist {i}?,Ding {i}.,Nein.\n" for i in range(40)))
    assert "says: own.csv" not in init(plaudit, tiny_model(), "own.csv").err
    assert init(plaudit, tiny_model(), "own.csv").code == 2
    columns = "prompt=Frage,chosen=Gut,rejected=Schlecht"
    done = init(plaudit, tiny_model(), "own.csv", "--columns", columns)
    assert done.code == 0, done.err
    named = load_recipe(Path("mine.yaml")).data.columns
    assert named == {(files / "own.csv"): {"prompt": "Frage", "chosen": "Gut", "rejected": "Schlecht"}}


def test_nothing_is_replaced_or_guessed(files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path]) -> None:
    Path("mine.yaml").write_text("name: kept\n")
    assert "the file is there already" in init(plaudit, tiny_model(), "pairs.csv").err
    assert Path("mine.yaml").read_text() == "name: kept\n"
    done = plaudit("init", "pairs.csv", "--to", "new.yaml")
    assert done.code == 2 and "--model is missing" in done.err
    assert init(plaudit, tiny_model(), "ask.txt", "ask.txt", "--to", "new.yaml").code == 2
    Path("bad.csv").write_text("prompt,completion\nHi,\nHo,Yes\n")
    assert "bad.csv: 1 bad rows" in init(plaudit, tiny_model(), "bad.csv", "--to", "new.yaml").out


def test_a_person_at_a_terminal_is_asked(
    files: Path, plaudit: Plaudit, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["pairs.csv ideal.csv", str(tiny_model())])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("plaudit.cli.begin.console.input", lambda question: next(answers))
    assert plaudit("init").code == 0
    assert load_recipe(Path("mine.yaml")).model == str(tiny_model())
