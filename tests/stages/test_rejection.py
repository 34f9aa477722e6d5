"""Rejection sampling: which reply is learnt, that it is learnt, and that it goes on bit for bit."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import CPU, TINY
from plaudit.data.files import read_demonstrations
from plaudit.errors import UserError
from plaudit.models.load import load_model
from plaudit.models.roles import plain_logprobs
from plaudit.models.tokens import pad_right
from plaudit.records import Completion
from plaudit.rewards.config import RewardSource
from plaudit.run.metrics import read_metrics
from plaudit.run.stopping import STOP
from plaudit.stages.evaluate import judging
from plaudit.stages.rejection import loop as rejection
from plaudit.stages.rejection.config import RejectionConfig
from plaudit.stages.sft.config import SFTConfig
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run

SFT = SFTConfig(**{**TINY["sft"], "samples": 1})
SETTINGS = RejectionConfig(replies=4, train_prompts=12, epochs=2, learning_rate=1e-2)
LETTERS = "def letters(items):\n    return {item['id']: item['completion'].count('e') for item in items}\n"


def test_the_best_whole_reply_is_learnt() -> None:
    replies = [Completion("a", finished=False), Completion("b"), Completion(" "), Completion("c"), Completion("d")]
    assert rejection.best_of(replies, [9.0, 1.0, 8.0, 2.0, 2.0]) == 3
    assert rejection.best_of(replies[:1], [1.0]) is None


@pytest.fixture
def new_run(trained: Path, tmp_path: Path, tiny_run: Callable[..., Run]) -> Callable[..., tuple[Run, RewardSource]]:
    """new_run("name") -> a run with an SFT model, and what pays: the number of letters e."""
    (tmp_path / "letters.py").write_text(LETTERS)
    paying = RewardSource(function=f"{tmp_path / 'letters.py'}:letters", mean=0.0, std=1.0)

    def build(name: str, **changes: Any) -> tuple[Run, RewardSource]:
        run = tiny_run(tmp_path / name)
        shutil.copytree(trained / "sft/model", run.folder.path / "sft/model")
        (run.folder.path / "ppo").mkdir()
        (run.folder.path / "ppo/summary.json").write_text("{}")
        source = {"name": "function", "function": paying.function, "weight": 1.0, "mean": 0.0, "std": 1.0}
        (run.folder.path / "ppo/rewards.json").write_text(f'{{"sources": [{source}]}}'.replace("'", '"'))
        return replace(run, **changes), paying

    return build


def test_the_best_of_its_own_replies_become_likelier(
    new_run: Callable[..., tuple[Run, RewardSource]], chat_of: Callable[..., Any]
) -> None:
    run, paying = new_run("run")
    summary, folder = rejection.train(SETTINGS, SFT, run, [paying]), run.folder.path / "rejection"
    chat = chat_of(run.folder.path / "sft/model")
    rows = read_metrics(folder / "demonstrations.jsonl")
    assert {row["split"] for row in rows} == {"train", "validation"}
    # What was sampled, counted by hand.
    sampled = {row["row"]: chat.completion(row["ids"]) for row in read_metrics(folder / "checkpoints/replies.jsonl")}
    groups = [[sampled[4 * prompt + i] for i in range(4)] for prompt in range(12 + 6)]
    whole = [[reply.text for reply in group if reply.finished and reply.text.strip()] for group in groups]
    most = [max(texts, key=lambda text: text.count("e")) for texts in whole if texts]
    assert [row["completion"] for row in rows] == most
    assert [row["proxy"] for row in rows] == [text.count("e") for text in most]
    known = [group for group, texts in zip(groups, whole, strict=True) if texts]
    assert summary["proxy_chosen"] == pytest.approx(sum(text.count("e") for text in most) / len(most))
    every = [reply.text.count("e") for group in known for reply in group]
    assert summary["proxy_mean"] == pytest.approx(sum(every) / len(every))
    assert summary["trainable_parameters"] > 1000
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    # They are demonstrations in the format that SFT reads, and likelier under the exported policy than under SFT's.
    demonstrations = read_demonstrations(folder / "demonstrations.jsonl")
    assert [row.completion for row in demonstrations] == most
    tokens = pad_right(
        [chat.prompt_ids(row.prompt.messages) for row in demonstrations],
        [chat.reply_ids(Completion(row.completion)) for row in demonstrations],
        chat.pad_id,
        CPU,
    )
    policy, sft = (load_model(str(path / "model"), torch.float32, CPU) for path in (folder, run.folder.path / "sft"))
    assert plain_logprobs(policy, tokens, 1.0).sum() > plain_logprobs(sft, tokens, 1.0).sum() + 10
    assert (folder / "adapter/adapter_model.safetensors").is_file()


def hashes(folder: Path) -> dict[str, str]:
    files = ("model/model.safetensors", "demonstrations.jsonl", "metrics.jsonl", "samples.jsonl")
    return {name: hashlib.sha256((folder / "rejection" / name).read_bytes()).hexdigest() for name in files}


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "every weight"])
def test_killed_after_any_step_it_goes_on_bit_for_bit(
    full: bool,
    new_run: Callable[..., tuple[Run, RewardSource]],
    stopped_after_saves: Callable[[Callable[[], Any]], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it samples, between sampling and learning, and while it learns."""
    monkeypatch.setattr(judging, "SAMPLED", 32)
    monkeypatch.setattr(rejection, "SAMPLED", 32)
    changes: dict[str, Any] = {"lora": None} if full else {}
    learning = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-3 if full else 1e-2})
    whole, paying = new_run("whole", **changes)
    broken, _ = new_run("broken", checkpoints=CheckpointConfig(every_steps=1), resume=True, **changes)
    rejection.train(learning, SFT, whole, [paying])
    steps = stopped_after_saves(lambda: rejection.train(learning, SFT, broken, [paying]))
    # 18 prompts of 4 replies in batches of 32; 12 chosen replies at most in steps of 8.
    assert steps[:3] == [1, 2, 3] and len(steps) > 3 and steps == sorted(set(steps))
    assert hashes(whole.folder.path) == hashes(broken.folder.path)
    assert STOP.asked is None


def test_replies_that_never_end_are_refused(new_run: Callable[..., tuple[Run, RewardSource]]) -> None:
    run, paying = new_run("run")
    short = replace(run, sampling=run.sampling.model_copy(update={"max_new_tokens": 1}))
    few = SETTINGS.model_copy(update={"replies": 2, "train_prompts": 2})
    with pytest.raises(UserError, match=r"replies to prompts of split train is whole.*raise sampling\.max_new_tokens"):
        rejection.train(few, SFT, short, [paying])
