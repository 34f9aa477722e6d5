"""A model without a sequence classifier in transformers goes through the whole pipeline: its reward model is an adapter
and a head, and nothing is looked for that is not there."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import Family, built

from conftest import CPU, LITTLE, make_tokenizer
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.saved import load_reward_model
from plaudit.rewards.texts.answers import ScoreItem


def test_it_runs_to_the_end_and_its_reward_model_loads(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    plaudit: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    tokenizer = make_tokenizer()
    built(Family("ernie4_5", {"vocab_size": len(tokenizer)})).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(tmp_path, model=str(tmp_path / "base"), folder=str(tmp_path / "run"), **LITTLE)
    done = plaudit("run", recipe)
    assert done.code == 0, done.err
    assert "no sequence classifier for 'ernie4_5'" in done.out
    run = tmp_path / "run"
    assert not (run / "reward/model").exists() and (run / "ppo/model/config.json").is_file()
    load_reward_model(run / "reward", torch.float32, CPU)  # which compares its golden scores
    exported = plaudit("export", run, "--role", "reward", "--to", tmp_path / "out")
    assert exported.code == 0, exported.err
    reward = load_reward_model(tmp_path / "out/reward", torch.float32, CPU)
    assert "reward/README.md" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    # The note's own lines, without Plaudit, give the score that Plaudit gives.
    monkeypatch.chdir(tmp_path / "out/reward")
    note = Path("README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(note, found)
    asked = Prompt("egg", (Message("user", "How do I boil an egg?"),), "instruction", "test")
    item = ScoreItem("egg", asked, Completion("Boil it for eight minutes."))
    assert found["score"].item() == pytest.approx(reward.score([item])["egg"], abs=1e-4)
