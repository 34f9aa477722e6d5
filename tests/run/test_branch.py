"""A run that begins with the stages of another one."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plaudit.errors import UserError
from plaudit.run.branch import branch
from plaudit.run.folder import FIRST_READER, finished_stages
from plaudit.stages.recipe import SHARED

Plaudit = Callable[..., SimpleNamespace]
NEEDED = ("sft", "preferences", "reward", "ppo", "evaluate", "report")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run that ended its first two stages."""
    folder = tmp_path / "old"
    stages: dict[str, Any] = {}
    for stage in NEEDED[:3]:
        (folder / stage).mkdir(parents=True)
        (folder / stage / "made.txt").write_text(stage)
        stages[stage] = {"seconds": 1.0, "files": {}}
    del stages["reward"]
    (folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    (folder / "recipe.yaml").write_text("name: old\n")
    return folder


def test_the_stages_before_are_copied_and_no_other(source: Path, tmp_path: Path) -> None:
    branch(source, tmp_path / "new", "reward", NEEDED)
    assert list(finished_stages(tmp_path / "new")) == ["sft", "preferences"]
    assert (tmp_path / "new/preferences/made.txt").read_text() == "preferences"
    assert not (tmp_path / "new/reward").exists() and (source / "sft/made.txt").is_file()
    with pytest.raises(UserError, match="is there already, and --copy-from makes a new run"):
        branch(source, tmp_path / "new", "reward", NEEDED)


def test_the_refusal_names_the_stage_that_works(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 'reward' has not ended there, so --from reward is the latest"):
        branch(source, tmp_path / "new", "evaluate", NEEDED)
    # Where no reward model is trained, PPO needs SFT alone.
    branch(source, tmp_path / "new", "ppo", ("sft", "ppo", "evaluate", "report"))
    assert list(finished_stages(tmp_path / "new")) == ["sft"]


def test_a_branch_runs_and_a_refused_one_leaves_nothing(
    trained: Path, plaudit: Plaudit, tmp_path: Path, undrawn: None
) -> None:
    recipe, new = trained.parent / "recipe.yaml", tmp_path / "new"
    words = ("run", recipe, "--copy-from", trained, f"folder={new}")
    done = plaudit(*words, "--from", "report", "seed=1")
    assert done.code == 2 and "differs in seed: 0 -> 1" in done.err and not new.exists()
    assert "name one after sft" in plaudit(*words).err
    done = plaudit(*words, "--from", "report", "name=other")
    assert done.code == 0, done.err
    assert "Copied from" in done.out and (new / "report.html").is_file() and (trained / "report.html").is_file()


def test_the_first_reader_of_a_shared_section_is_one_that_makes_something_of_it() -> None:
    shared = {section: readers[0] for section, readers in SHARED.items()}
    assert {"rounds": "preferences", **shared} == FIRST_READER  # round 1's SFT and base are those of every round
