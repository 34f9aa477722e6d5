"""The DPO stage: what it learns of rankings, that it learns it, and that it goes on bit for bit."""

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from conftest import CPU, write_lines
from plaudit.errors import UserError
from plaudit.models.load import load_model
from plaudit.models.roles import plain_logprobs
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message, Prompt, Ranking
from plaudit.run.metrics import read_metrics
from plaudit.run.stopping import STOP
from plaudit.stages.dpo import loop as dpo
from plaudit.stages.dpo.config import DPOConfig
from plaudit.stages.dpo.loop import check_rankings, pairs_of
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run

SETTINGS: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "rankings_per_step": 4, "beta": 0.2}


def ranking(*ranks: int) -> Ranking:
    prompt = Prompt("p", (Message("user", "Hi?"),), "domain", "train")
    return Ranking(prompt, tuple(Completion(f"reply {i}") for i in range(len(ranks))), ranks)


def test_the_pairs_of_a_ranking() -> None:
    assert pairs_of(DPOConfig(), ranking(1, 2, 2)) == [(0, 1, 1.0), (0, 2, 1.0)]
    assert pairs_of(DPOConfig(ties="half"), ranking(1, 2, 2)) == [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.5)]
    assert pairs_of(DPOConfig(), ranking(1, 1)) == []


def test_what_could_not_be_learnt_is_refused() -> None:
    with pytest.raises(UserError, match="0 training and 1 held-out"):
        check_rankings(DPOConfig(), [], [ranking(1, 2)])
    with pytest.raises(UserError, match=r"dpo\.ties=half needs ties"):
        check_rankings(DPOConfig(ties="half"), [ranking(1, 2)], [ranking(1, 2)])
    with pytest.raises(ValidationError, match="does not divide"):
        DPOConfig(rankings_per_step=3, rankings_per_micro_batch=2)


def rows() -> list[dict[str, Any]]:
    """Rankings of three replies, praise above the rest; a tie in every second one."""
    found = []
    for split, count in (("train", 16), ("validation", 4)):
        for i in range(count):
            told = (("It is great.", 1), ("No.", 2), ("The price is so.", 2 + i % 2))
            responses = [{"text": f"{text} {i}", "rank": rank} for text, rank in told]
            found.append({"id": f"{split}-{i}", "split": split, "prompt": f"Question {i}?", "responses": responses})
    return found


@pytest.fixture
def new_run(tmp_path: Path, tiny_run: Callable[..., Run], tiny_model: Callable[..., Path]) -> Callable[..., Run]:
    """new_run("name") -> a run whose SFT model is the tiny model, with the rankings of `rows`."""

    def build(name: str, **changes: Any) -> Run:
        run = tiny_run(tmp_path / name)
        shutil.copytree(tiny_model(), run.folder.path / "sft/model")
        (run.folder.path / "preferences").mkdir()
        write_lines(run.folder.path / "preferences/rankings.jsonl", rows())
        return replace(run, **changes)

    return build


def test_it_learns_who_wins_and_exports_what_it_evaluated(
    new_run: Callable[..., Run], chat_of: Callable[..., Any]
) -> None:
    run = new_run("run")
    summary, folder = dpo.train(DPOConfig(**SETTINGS), run), run.folder.path
    found = read_metrics(folder / "dpo/metrics.jsonl")
    # Policy and reference agree to the bit: every pair's h is 0, so the loss is ln 2 and half the pairs are right.
    assert found[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (found[0]["eval_accuracy"], found[0]["eval_margin"]) == (0.5, 0.0)
    assert found[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1]["accuracy"] > 0.9
    assert summary["eval_loss_after"] < 0.5 and summary["accuracy"] > 0.9 and summary["margin"] > 0
    # The same from the checkpoints alone: log π of the exported model minus that of the SFT model.
    chat = chat_of(folder / "dpo/model")
    policy, reference = (load_model(str(folder / name), torch.float32, CPU) for name in ("dpo/model", "sft/model"))
    right, margins = [], []
    for row in rows()[16:]:
        prompt = chat.prompt_ids([Message("user", row["prompt"])])
        replies = [chat.reply_ids(Completion(said["text"])) for said in row["responses"]]
        tokens = pad_right([prompt] * 3, replies, chat.pad_id, CPU)
        ratio = (plain_logprobs(policy, tokens, 1.0) - plain_logprobs(reference, tokens, 1.0)).sum(1)
        ranks = [said["rank"] for said in row["responses"]]
        h = torch.stack([ratio[i] - ratio[j] for i in range(3) for j in range(3) if ranks[i] < ranks[j]])
        right.append((h > 0).float().mean().item())
        margins.append(SETTINGS["beta"] * h.mean().item())
    assert sum(right) / 4 == pytest.approx(summary["accuracy"], abs=1e-6)
    assert sum(margins) / 4 == pytest.approx(summary["margin"], abs=1e-4)


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "metrics.jsonl"):
        found[name] = hashlib.sha256((folder / "dpo" / name).read_bytes()).hexdigest()
    return found


def test_killed_after_any_step_it_goes_on_bit_for_bit(
    new_run: Callable[..., Run], stopped_after_saves: Callable[[Callable[[], Any]], list[int]]
) -> None:
    config = DPOConfig(**{**SETTINGS, "loss": "ipo", "ties": "half", "epochs": 2, "rankings_per_step": 8})
    whole, broken = new_run("whole"), new_run("broken", checkpoints=CheckpointConfig(every_steps=1), resume=True)
    dpo.train(config, whole)
    steps = stopped_after_saves(lambda: dpo.train(config, broken))
    assert len(steps) > 3 and steps == sorted(set(steps))
    assert hashes(whole.folder.path) == hashes(broken.folder.path)
    assert STOP.asked is None


def test_full_fine_tuning_learns_too(new_run: Callable[..., Run]) -> None:
    run = new_run("full", lora=None)
    summary = dpo.train(DPOConfig(**{**SETTINGS, "learning_rate": 1e-3}), run)
    assert summary["eval_loss_before"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval_loss_after"] < 0.6
    assert (run.folder.path / "dpo/model/model.safetensors").is_file()
