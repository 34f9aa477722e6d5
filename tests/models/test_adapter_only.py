"""A model without a sequence classifier in transformers goes through the whole pipeline: its reward model is an adapter
and a head, and nothing is looked for that is not there."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from test_families import Family, built

from conftest import CPU, make_tokenizer
from plaudit.rewards.saved import load_reward_model


def test_it_runs_to_the_end_and_its_reward_model_loads(
    tmp_path: Path, write_recipe: Callable[..., Path], plaudit: Callable[..., SimpleNamespace]
) -> None:
    tokenizer = make_tokenizer()
    built(Family("ernie4_5", {"vocab_size": len(tokenizer)})).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(tmp_path, model=str(tmp_path / "base"), folder=str(tmp_path / "run"))
    done = plaudit("run", recipe)
    assert done.code == 0, done.err
    assert "no sequence classifier for 'ernie4_5'" in done.out
    run = tmp_path / "run"
    assert not (run / "reward/model").exists() and (run / "ppo/model/config.json").is_file()
    load_reward_model(run / "reward", torch.float32, CPU)  # which compares its golden scores
    refused = plaudit("export", run, "--role", "reward", "--to", tmp_path / "out")
    assert refused.code != 0 and "adapter and head" in refused.err
