"""The library from Python: one tiny run made by it, then its doctests, its page and its notebook on that run."""

import contextlib
import doctest
import io
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import plaudit
from conftest import TINY, leave_plots_undrawn
from plaudit.api import run as api
from plaudit.run.display import console
from plaudit.stages.recipe import load_recipe, recipe_of
from plaudit.view import chat
from test_docs import DOCS, blocks

FIELDS = {"sft": {**TINY["sft"], "epochs": 3}, "reward": {**TINY["reward"], "epochs": 1}}


@pytest.fixture(scope="module")
def made(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with recipe.yaml and runs/demo, which `plaudit.run` made of the recipe's mapping."""
    home = tmp_path_factory.mktemp("api")
    keys = yaml.safe_load(write_recipe(home, name="demo", folder=None, **FIELDS).read_text(encoding="utf-8"))
    with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
        leave_plots_undrawn(patch)
        run = plaudit.run({**keys, "name": "another"}, name="demo")
    assert run.folder == Path("runs/demo") and keys["name"] == "demo"
    return home


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> Path:
    monkeypatch.chdir(made)
    return made


def test_the_names_of_the_package() -> None:
    assert [getattr(plaudit, name) for name in plaudit.__all__] and not hasattr(plaudit, "nothing")
    assert plaudit.algo.advantages.gae and not hasattr(plaudit.algo, "nothing")
    assert plaudit.__version__ == version("plaudit")


def test_a_run_has_its_recipe_its_numbers_and_its_log(here: Path, tmp_path: Path) -> None:
    run = plaudit.Run("runs/demo")
    assert run.summary == json.loads((here / "runs/demo/summary.json").read_text(encoding="utf-8"))
    assert run.recipe["ppo"]["updates"] == 2 and [row["update"] for row in run.metrics("ppo")] == [1, 2]
    half = tmp_path / "half"
    (half / "sft").mkdir(parents=True)
    for name in ("recipe.yaml", "sft/summary.json"):
        shutil.copy(here / "runs/demo" / name, half / name)
    assert plaudit.Run(half).summary == {"sft": run.summary["sft"]}


def test_scores_are_those_of_the_reward_stage_normalised(here: Path) -> None:
    """Against the raw scores and the moments that the stage wrote."""
    folder = here / "runs/demo"
    stored = [json.loads(line) for line in (folder / "reward/scores.jsonl").read_text(encoding="utf-8").splitlines()]
    ranked = [json.loads(line) for line in (folder / "preferences/rankings.jsonl").read_text("utf-8").splitlines()]
    of_id = {row["id"]: row for row in ranked}
    pairs = [
        (of_id[row["id"]]["prompt"], reply["text"], raw)
        for row in stored
        for reply, (raw,) in zip(of_id[row["id"]]["responses"], row["scores"], strict=True)
        if reply["finished"]
    ]
    prompts, texts, raws = (list(column) for column in zip(*pairs, strict=True))
    rules = json.loads((folder / "reward/reward.json").read_text(encoding="utf-8"))
    wanted = [(raw - rules["mean"][0]) / rules["std"][0] for raw in raws]
    assert plaudit.RewardModel(folder).score(prompts, texts) == pytest.approx(wanted, abs=1e-4)


def test_a_policy_replies_alike_for_one_seed_to_texts_and_conversations(here: Path) -> None:
    policy = plaudit.Policy("runs/demo")
    prompts: list[Any] = ["Tell me about tea.", [{"role": "user", "content": "Tell me about tea."}]]
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0}
    first, other = policy.reply(prompts, seed=3, **settings), policy.reply(prompts, seed=4, **settings)
    assert first == policy.reply(prompts, seed=3, **settings) != other
    # Nearly always the likeliest token: both forms of the prompt are one.
    cold = policy.reply(prompts, max_new_tokens=6, temperature=0.01)
    assert cold[0] == cold[1]


def test_what_is_wrong_is_said(here: Path, tmp_path: Path) -> None:
    with pytest.raises(plaudit.UserError, match="no run of Plaudit is here"):
        plaudit.Run(tmp_path)
    with pytest.raises(plaudit.UserError, match="no reward model of Plaudit is here"):
        plaudit.RewardModel(tmp_path)
    with pytest.raises(plaudit.UserError, match="2 prompts and 1 replies"):
        plaudit.RewardModel("runs/demo").score(["a", "b"], ["c"])
    with pytest.raises(plaudit.UserError, match="prompt 1: field 'prompt' must end with a user message"):
        plaudit.Policy("runs/demo").reply([[{"role": "assistant", "content": "Yes."}]])
    with pytest.raises(plaudit.UserError, match="stage 'reward': the policies of a run are those of sft and ppo"):
        plaudit.Run("runs/demo").policy("reward")
    with pytest.raises(plaudit.UserError, match="already holds this run"):
        plaudit.run("recipe.yaml")
    with pytest.raises(plaudit.UserError, match="--from 'pppo': not a stage"):
        plaudit.run("recipe.yaml", start="pppo")
    with pytest.raises(plaudit.UserError, match=r"recipe: unknown key 'ppo.update'; did you mean 'ppo.updates'"):
        plaudit.run({**yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8")), "ppo": {"update": 1}})


def test_overrides_reach_sections_and_dotted_names(here: Path) -> None:
    changes = {"seed": 3, "ppo": {"learning_rate": 1e-5, "updates": 7}, "lora.stages.ppo.r": 2, "folder": Path("x")}
    changes["data"] = {"system": "Be kind: always."}
    recipe = load_recipe(Path("recipe.yaml"), list(api._as_overrides(changes)))
    assert (recipe.seed, recipe.ppo.updates, recipe.ppo.learning_rate, recipe.folder) == (3, 7, 1e-5, Path("x"))
    assert recipe.ppo.batch_size == TINY["ppo"]["batch_size"] and recipe.data.system == "Be kind: always."
    assert (of_ppo := recipe.lora.of("ppo")) is not None and of_ppo.r == 2


def test_a_mapping_is_read_like_a_file_and_stays_as_it_was(here: Path) -> None:
    keys = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))
    before = json.dumps(keys)
    assert recipe_of(keys, here, ["ppo.updates=9"]) == load_recipe(Path("recipe.yaml"), ["ppo.updates=9"])
    assert json.dumps(keys) == before


@pytest.mark.parametrize("module", [api, chat], ids=["api", "chat"])
def test_the_examples_of_the_docstrings_hold(module: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "quiet", True)  # what a run prints is no part of the example
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        failed, tried = doctest.testmod(module, extraglobs={"plaudit": plaudit})
    assert tried > 2 and not failed, printed.getvalue()


def test_the_python_of_the_page_and_of_the_notebook_runs(here: Path) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks((DOCS / "python.md").read_text(encoding="utf-8"), "python")):
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
    notebook = json.loads((DOCS / "notebooks/first.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        assert not cell["outputs"]
        exec(compile("".join(cell["source"]), f"first.ipynb, {cell['id']}", "exec"), names)
    assert len(names["rows"]) == 2 and names["before"] != ""
