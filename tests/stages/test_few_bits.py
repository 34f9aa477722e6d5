"""A whole run on a base of 8 bits: its stages agree about one model, a killed PPO goes on, what cannot be is told."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from conftest import TINY, tiny_stage
from plaudit.errors import UserError
from plaudit.models.quantised import QuantisedLinear
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.model_card import write_card
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.trainer import Trainer
from plaudit.stages.recipe import load_recipe
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run

SHORT = {
    "quantise": "int8",
    "sft": TINY["sft"] | {"epochs": 2, "samples": 0},
    "preferences": TINY["preferences"] | {"train_prompts": 12},
    "reward": TINY["reward"] | {"epochs": 1},
    "ppo": TINY["ppo"] | {"evaluate_every": 2},
}


@pytest.fixture(scope="module")
def run(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_recipe(tmp_path_factory.mktemp("quantised"), **SHORT)
    return run_pipeline(load_recipe(recipe), Flags(only=("sft", "preferences", "reward", "ppo")))


def settings(home: Path, tiny_run: Callable[..., Run], run: Path) -> tuple[Any, Run]:
    config, again = tiny_stage("ppo", tiny_run(home, run), evaluate_every=2)
    return config, replace(again, quantise="int8", checkpoints=CheckpointConfig(every_steps=1))


def test_the_roles_stand_on_few_bits_and_are_the_sft_model(
    run: Path, tmp_path: Path, tiny_run: Callable[..., Run], load: Callable[[Path], PreTrainedModel], ragged: Tokens
) -> None:
    """The SFT model on the disk is the dequantised base with the adapter; the reference has both apart."""
    first = read_metrics(run / "ppo/metrics.jsonl")[0]
    assert first["kl"] == 0
    trainer = Trainer(*settings(tmp_path, tiny_run, run))
    assert isinstance(trainer.roles, Roles)
    assert sum(isinstance(module, QuantisedLinear) for module in trainer.roles.modules()) == 14
    found = trainer.roles(ragged, "reference", frozenset({"logprobs"})).logprobs_BT
    torch.testing.assert_close(found, plain_logprobs(load(run / "sft/model"), ragged, 1.0), rtol=0, atol=5e-5)


def test_a_users_own_sft_model_is_quantised_itself(run: Path, tmp_path: Path, tiny_run: Callable[..., Run]) -> None:
    _, own = settings(tmp_path, tiny_run, run)
    shutil.rmtree(own.folder.path / "sft/adapter")
    with pytest.raises(UserError, match="sft/adapter"):
        own.base()
    (own.folder.path / "sft/summary.json").unlink()
    base, under = own.base()
    assert under is None
    assert sum(isinstance(module, QuantisedLinear) for module in base.modules()) == 14


def test_a_killed_run_goes_on_bit_for_bit(
    run: Path, tmp_path: Path, tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ppo.update

    def killed(trainer: Trainer, batch: Any, number: int, clock: Clock) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return own(trainer, batch, number, clock)

    config, again = settings(tmp_path, tiny_run, run)
    monkeypatch.setattr(ppo, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo.train(config, again)
    monkeypatch.undo()
    ppo.train(config, replace(again, resume=True))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (again.folder.path / "ppo" / name).read_bytes() == (run / "ppo" / name).read_bytes(), name


def test_the_card_says_what_was_merged_into_what(run: Path, tmp_path: Path) -> None:
    write_card(run, "policy", tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "the base was held in int8. The adapters are merged into the weights that those bits stand for" in text


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_base_in_few_bits_does_not_learn(stage: str, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"quantise=int8 holds a base that does not learn, and lora.stages.{stage}"):
        load_recipe(write_recipe(tmp_path), ["quantise=int8", f"lora.stages.{stage}=null"])
