"""`plaudit check`: all mistakes at once, and what it tells of a run that can begin."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from conftest import CHATML, tiny_rows, write_lines
from plaudit.data.table import DemonstrationTable
from plaudit.records import Demonstration, Message, Prompt
from plaudit.stages.before import estimate
from plaudit.stages.before.estimate import Speed, seconds_of
from plaudit.stages.lengths import Lengths, cut_short, lengths_of, spaced
from plaudit.stages.recipe import load_recipe
from plaudit.stages.run_data import RunData, read_data

Plaudit = Callable[..., SimpleNamespace]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_a_recipe_that_can_run(recipe: Path, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = plaudit("check", recipe)
    assert done.code == 0, done.err
    assert re.search(r"│ prompts +│ 24 +│ 6 +│ 6 +│", done.out)
    assert re.search(r"Time: about \d+ (s|min) on this machine \(sft .*, evaluate .*\)", done.out)
    assert re.search(r"Memory: at least \d\.\d GB; 0\.\d GB of disk", done.out)
    assert f"nothing is wrong; start it with `plaudit run {recipe}`" in done.out
    assert not (recipe.parent / "run").exists()
    # Each long part is told before its result.
    order = [done.out.index(said) for said in ("Trying the model", "│ prompts", "Timing a batch", "Time: about")]
    assert order == sorted(order)


@pytest.mark.parametrize(("settings", "models"), [((), 2), (("ppo.sampling_copy=false",), 1)])
def test_the_memory_is_that_of_as_many_models_as_ppo_holds(
    settings: tuple[str, ...], models: int, recipe: Path, plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], estimate.load_model
    monkeypatch.setattr(estimate, "load_model", lambda *more: loaded.append(more) or load(*more))
    assert plaudit("check", recipe, *settings).code == 0
    assert len(loaded) == models


def test_everything_that_is_wrong_at_once(recipe: Path, plaudit: Plaudit) -> None:
    prompts, demonstrations = tiny_rows()
    write_lines(recipe.parent / "prompts.jsonl", [row for row in prompts if row["split"] != "test"])
    bad = [{**row, "completion": ""} for row in demonstrations[:7]]
    write_lines(recipe.parent / "demonstrations.jsonl", [*bad, *demonstrations[7:]])
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**values, "model": str(recipe.parent), "reward": {"soft_labels": True}}))
    done = plaudit("check", recipe)
    assert done.code == 2
    errors = done.err.splitlines()
    for said in (
        "no prompt has split 'test'",
        "7 bad rows, the first:",
        "field 'completion' must be a non-empty string, found ''; write one or delete the row (and in 6 more rows)",
        "the folder has no config.json",
        "reward.soft_labels=true needs votes",
    ):
        assert sum(said in line for line in errors) == 1, said


def test_a_role_that_the_template_refuses_hides_no_other_mistake(recipe: Path, plaudit: Plaudit) -> None:
    """Rows of that role have no length to count."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role.') }}{% endif %}" + CHATML
    (recipe.parent / "plain.jinja").write_text(refuses, encoding="utf-8")
    values = yaml.safe_load(recipe.read_text())
    values["data"] |= {"chat_template": str(recipe.parent / "plain.jinja")}
    recipe.write_text(yaml.safe_dump(values | {"reward": {"soft_labels": True}}))
    prompts, _ = tiny_rows()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}]
    write_lines(recipe.parent / "prompts.jsonl", [*prompts, {"id": "tea", "split": "test", "prompt": asked}])
    done = plaudit("check", "--quick", recipe)
    assert done.code == 2
    assert "row 'tea': " in done.err and "reward.soft_labels=true needs votes" in done.err


def test_a_missing_file_hides_no_other_mistake(recipe: Path, plaudit: Plaudit) -> None:
    (recipe.parent / "prompts.jsonl").unlink()
    done = plaudit("check", "--quick", recipe, "sft.max_length=8")
    assert done.code == 2
    assert "prompts.jsonl: no such file" in done.err and "more than sft.max_length=8" in done.err
    assert "Timing a batch" not in done.out


def chat_of_words() -> Any:
    """A chat format whose tokens are words, one more for the end."""
    return SimpleNamespace(
        prompt_ids=lambda messages: messages[-1].content.split(), reply_ids=lambda reply: [*reply.text.split(), "end"]
    )


def test_ideal_replies_that_the_policy_may_not_write(recipe: Path) -> None:
    rows = [
        Demonstration(Prompt(str(i), (Message("user", "a b"),), "k", "train"), "w " * (20 if i < 7 else 3))
        for i in range(100)
    ]
    lengths = lengths_of(chat_of_words(), RunData([], DemonstrationTable.of(rows), {}, None, None))
    assert sorted(lengths.demonstrations) == [4] * 93 + [21] * 7
    said = cut_short(load_recipe(recipe), lengths)  # max_new_tokens is 8
    assert said is not None and said.startswith(
        "7% of the ideal replies have more tokens than sampling.max_new_tokens=8"
    )
    assert "95 % of them fit in 21" in said
    assert cut_short(load_recipe(recipe, ["sampling.max_new_tokens=21"]), lengths) is None
    assert cut_short(load_recipe(recipe), Lengths([], [4] * 96 + [21] * 4, [], [])) is None


def test_a_run_says_at_its_start_that_replies_will_be_cut(recipe: Path, plaudit: Plaudit) -> None:
    done = plaudit("run", recipe, "sampling.max_new_tokens=2", "sft.max_length=8")
    assert done.code == 2  # SFT refuses the lengths
    assert "Warning: 100% of the ideal replies have more tokens than sampling.max_new_tokens=2" in done.out


def test_rows_that_are_looked_at_are_spaced_evenly() -> None:
    assert spaced(range(10), 4) == [0, 2, 5, 7]
    assert spaced(range(3), 4) == [0, 1, 2] and spaced([], 4) == []


def test_the_time_of_a_run_by_hand(recipe: Path) -> None:
    """Prompts of 10 tokens and replies of 5; one second a token of whatever is done, the rest free."""
    settings = load_recipe(recipe)
    data, lengths = read_data(settings), Lengths([10], [5], [], [])
    only_sampled = seconds_of(settings, data, lengths, Speed(1, 0, 0, {}))
    # 24 + 12 prompts of 3 replies; 2 updates of 4 replies and looks at 6 prompts at 0, 1 and 2; 6 prompts, two models.
    assert only_sampled == {"sft": 0, "preferences": 36 * 3 * 5, "reward": 0, "ppo": (8 + 18) * 5, "evaluate": 12 * 5}
    only_learnt = seconds_of(settings, data, lengths, Speed(0, 0, 1, {}))
    # Six epochs of 24 demonstrations; two of 108 replies; two updates of 4 replies, twice each.
    assert [only_learnt[stage] for stage in ("sft", "reward", "ppo")] == [6 * 24 * 15, 2 * 108 * 15, 2 * 4 * 2 * 15]


def test_the_schema_knows_every_key_and_its_help(plaudit: Plaudit, tmp_path: Path) -> None:
    schema = json.loads(plaudit("schema").out)
    ppo = schema["$defs"]["PPOConfig"]["properties"]
    assert ppo["kl_coef"]["description"].startswith("β: KL penalty per token")
    assert schema["additionalProperties"] is False and {"model", "data", "name"} == {*schema["required"]}
    done = plaudit("schema", "--to", tmp_path / "s.json")
    assert "# yaml-language-server: $schema=s.json" in done.out
    assert json.loads((tmp_path / "s.json").read_text()) == schema


def test_the_version_and_the_environment(plaudit: Plaudit) -> None:
    assert re.fullmatch(r"plaudit \d+\.\d+\.\d+\n", plaudit("--version").out)
    said = plaudit("env").out
    assert re.search(r"^torch \d", said, flags=re.MULTILINE) and "extra label" in said
    assert str(Path.home()) not in said and str(Path.cwd()) not in said and "/" not in said.replace("\n", "")
