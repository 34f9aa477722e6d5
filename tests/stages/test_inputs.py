"""What the stages that ended read is what is there now, or the run says what has changed and from which stage to go."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import LITTLE, TINY, write_lines
from plaudit.run.folder import STAGES
from plaudit.run.metrics import read_metrics
from plaudit.stages.inputs import changed_inputs
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe
from plaudit.stages.run_data import read_data

GO_ON = [("run", "--resume"), ("run", "--from", "ppo"), ("ppo",), ("evaluate",)]


@pytest.fixture(scope="module")
def labelled(write_recipe: Callable[..., Path], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run on a file of people's rankings, all stages but the report done. Read only; copy it."""
    home = tmp_path_factory.mktemp("labelled")
    little = {**LITTLE, "reward": TINY["reward"]}  # whose epochs the tests change
    recipe = write_recipe(home, **little, preferences={"rankings": "rankings.jsonl"})
    shutil.copy(trained / "preferences/rankings.jsonl", home)
    run_pipeline(load_recipe(recipe), Flags(only=STAGES[:5]))
    return home


@pytest.fixture
def desk(labelled: Path, tmp_path: Path, plaudit: Callable[..., Any]) -> tuple[Path, Callable[..., Any]]:
    """A copy of that run with its files, and `plaudit COMMAND` on it."""
    home = shutil.copytree(labelled, tmp_path / "home", ignore=shutil.ignore_patterns(".lock"))
    resolved = home / "run/recipe.yaml"
    resolved.write_text(resolved.read_text().replace(str(labelled), str(home)))

    def call(command: str, *more: str) -> Any:
        return plaudit(command, home / "recipe.yaml", f"folder={home / 'run'}", *more)

    return home, call


def edit_one_demonstration(home: Path) -> None:
    rows = read_metrics(home / "demonstrations.jsonl")
    rows[3]["completion"] = "It is snowing."
    write_lines(home / "demonstrations.jsonl", rows)


def remove_20_rankings(home: Path) -> None:
    rows = read_metrics(home / "rankings.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    gone = [row["id"] for row in train[:20]]
    write_lines(home / "rankings.jsonl", [row for row in rows if row["id"] not in gone])


def made(home: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in (home / "run").rglob("*") if file.name != ".lock"}


@pytest.mark.parametrize("command", GO_ON, ids=" ".join)
def test_an_edited_demonstration_is_refused(command: tuple[str, ...], desk: Any) -> None:
    home, plaudit = desk
    edit_one_demonstration(home)
    before = made(home)
    done = plaudit(*command)
    assert done.code == 2
    assert f"{home / 'demonstrations.jsonl'}: 1 changed, of 36 rows" in done.err
    assert "--from sft" in done.err
    assert made(home) == before


@pytest.mark.parametrize("command", GO_ON, ids=" ".join)
def test_rankings_that_went_are_refused(command: tuple[str, ...], desk: Any) -> None:
    home, plaudit = desk
    remove_20_rankings(home)
    done = plaudit(*command)
    assert (done.code, "20 removed, of 36 rows" in done.err) == (2, True)
    assert "--from preferences" in done.err


def test_a_key_of_an_earlier_stage_names_the_stage_to_go_from(desk: Any) -> None:
    _, plaudit = desk
    done = plaudit("run", "reward.epochs=1", "--from", "ppo")
    assert (done.code, "reward.epochs: " in done.err, "--from reward" in done.err) == (2, True, True)


def test_a_key_that_only_the_recipe_in_the_folder_has_is_refused(desk: Any) -> None:
    """A run with another key was stopped before its stage began: the folder's recipe has it, the model has not."""
    home, plaudit = desk
    copied = home / "run/recipe.yaml"
    recipe = load_recipe(copied, ["reward.epochs=1", f"folder={home / 'run'}"])
    copied.write_text(json.dumps(recipe.model_dump(mode="json")))
    done = plaudit("run", "reward.epochs=1", "--from", "ppo")
    assert (done.code, "reward.epochs: " in done.err, "--from reward" in done.err) == (2, True, True)


@pytest.mark.parametrize(
    ("change", "keys", "start", "why"),
    [
        (edit_one_demonstration, (), "sft", "1 changed"),
        (remove_20_rankings, (), "preferences", "20 removed"),
        (lambda _: None, ("reward.epochs=1",), "reward", "reward.epochs: "),
        (lambda _: None, ("ppo.gamma=0.5",), "ppo", "ppo.gamma: "),
    ],
)
def test_auto_goes_from_the_first_stage_whose_inputs_changed(
    change: Callable[[Path], None], keys: tuple[str, ...], start: str, why: str, desk: Any, undrawn: None
) -> None:
    home, plaudit = desk
    change(home)
    before = made(home)
    done = plaudit("run", *keys, "--from", "auto")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert f"--from auto: from {start}, because of" in said
    assert why in said
    kept = [f"{home / 'run' / stage}/" for stage in STAGES[: STAGES.index(start)]]
    assert all(made(home)[name] == when for name, when in before.items() if name.startswith(tuple(kept)))
    assert made(home)[str(home / "run/ppo/summary.json")] > before[str(home / "run/ppo/summary.json")]
    again = plaudit("run", *keys, "--from", "auto")
    assert (again.code, "nothing that a stage read has changed" in " ".join(again.out.split())) == (0, True)


def test_the_rule_is_printed(desk: Any, undrawn: None) -> None:
    _, plaudit = desk
    done = plaudit("run", "--resume")
    assert (
        "Going on from the files as they are now: sft, preferences, reward, ppo, evaluate read the same."
        in " ".join(done.out.split())
    )


def test_a_file_that_was_mended_meanwhile_is_read_anew(
    write_recipe: Callable[..., Path], trained: Path, tmp_path: Path, plaudit: Callable[..., Any]
) -> None:
    """Set aside as a bad row, then mended: the run reads it, and no list of bad rows is left."""
    recipe = write_recipe(
        tmp_path,
        preferences={"rankings": "rankings.jsonl"},
        data={"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl", "on_bad_row": "quarantine"},
    )
    good = (trained / "preferences/rankings.jsonl").read_text()
    (tmp_path / "rankings.jsonl").write_text(good.replace("\n", "\n{}\n", 1))
    folder = run_pipeline(load_recipe(recipe), Flags(only=("sft",)))
    assert (folder / "data/quarantine.jsonl").is_file()
    (tmp_path / "rankings.jsonl").write_text(good)
    assert plaudit("preferences", recipe).code == 0
    assert (folder / "preferences/rankings.jsonl").read_text() == good
    assert not (folder / "data/quarantine.jsonl").exists()


def test_only_what_a_stage_reads_counts(desk: Any) -> None:
    """With a file of rankings a test prompt is read by `evaluate` alone, so PPO may be run again after it changed."""
    home, _ = desk
    rows = read_metrics(home / "prompts.jsonl")
    rows[next(i for i, row in enumerate(rows) if row["split"] == "test")]["prompt"] = "Speak of ice."
    write_lines(home / "prompts.jsonl", rows)
    recipe = load_recipe(home / "recipe.yaml", [f"folder={home / 'run'}"])
    data = read_data(recipe)
    found = {stage: changed_inputs(stage, recipe, data, home / "run") for stage in STAGES[:5]}
    assert [stage for stage, changes in found.items() if changes] == ["evaluate"]
    assert "1 changed, of 6 rows" in found["evaluate"][0]


def test_the_manifest_holds_the_hash_of_what_was_read(labelled: Path) -> None:
    stages = json.loads((labelled / "run/manifest.json").read_text())["stages"]
    for stage in STAGES[:5]:
        assert f"{stage}/inputs.json" in stages[stage]["files"]
