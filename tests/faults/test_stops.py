"""What stops a stage changes no weight and leaves its batch; memory that runs out is answered with half the
micro-batch, equal to rounding, or with an estimate."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY, tiny_stage
from plaudit.dist.memory import ran_out
from plaudit.errors import RunStopped
from plaudit.models.roles import Roles
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo import rollout as ppo_rollout
from plaudit.stages.ppo import update as ppo_update
from plaudit.stages.reward import loop as reward
from plaudit.stages.sft import loop as sft
from plaudit.train.optimiser import MasterAdamW
from plaudit.train.run import Run

STAGES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sft": (sft.train, {"epochs": 1, "samples": 0}),
    "reward": (reward.train, {"epochs": 1}),
    "ppo": (ppo.train, {"minibatch_size": 2, "micro_batch_size": 2}),
}


@pytest.fixture
def stage(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> Callable[..., Path]:
    """stage("sft", name="a", epochs=2) -> the folder of the stage, run by itself after those before it."""

    def call(which: str, name: str = "run", **changes: Any) -> Path:
        module, settings = STAGES[which]
        run = tiny_run(tmp_path / name, trained if which != "sft" else None)
        module(*tiny_stage(which, run, **{**settings, **changes}))
        return run.folder.path / which

    return call


class Weights:
    """What an optimiser's parameters were after each of its steps, and now."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.after: list[list[Tensor]] = []
        self.optimiser: MasterAdamW | None = None
        made, step = MasterAdamW.__init__, MasterAdamW.step
        outer = self

        def init(self: MasterAdamW, *arguments: Any, **options: Any) -> None:
            made(self, *arguments, **options)
            outer.optimiser = self
            outer.after.append(outer.now())

        def stepped(self: MasterAdamW, closure: Any = None) -> None:
            step(self, closure)
            outer.after.append(outer.now())

        patch.setattr(MasterAdamW, "__init__", init)
        patch.setattr(MasterAdamW, "step", stepped)

    def now(self) -> list[Tensor]:
        assert self.optimiser is not None
        return [p.detach().clone() for group in self.optimiser.param_groups for p in group["params"]]


# --- acceptance 4: a NaN stops before the step ---


def nan_gradient(patch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th optimiser step finds one gradient with one NaN in it."""
    gather, calls = MasterAdamW.gather, [0]

    def planted(self: MasterAdamW, max_norm: float) -> float:
        calls[0] += 1
        if calls[0] == at:
            first = next(p for p, _ in self._pairs if p.grad is not None)
            assert first.grad is not None
            first.grad.view(-1)[0] = math.nan
        return gather(self, max_norm)

    patch.setattr(MasterAdamW, "gather", planted)


def nan_loss(patch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th pass that learns gives one NaN: at one token (SFT, PPO), or as the score of one reply."""
    forward, calls = Roles.forward, [0]

    def planted(self: Roles, *arguments: Any, **options: Any) -> Any:
        out = forward(self, *arguments, **options)
        if torch.is_grad_enabled():
            calls[0] += 1
            if calls[0] == at:
                for name in ("loss", "logprobs_BT", "scores_BM"):
                    value = getattr(out, name)
                    if value is not None:
                        one = torch.zeros_like(value)
                        one.view(-1)[one.numel() // 2] = math.nan
                        if name == "logprobs_BT":
                            one = torch.where(arguments[0].mask_BT, math.nan, 0.0)
                        object.__setattr__(out, name, value + one)
        return out

    patch.setattr(Roles, "forward", planted)


@pytest.mark.parametrize("fault", [nan_gradient, nan_loss])
@pytest.mark.parametrize("which", ["sft", "reward", "ppo"])
def test_after_a_nan_the_weights_are_those_before_the_step(
    which: str,
    fault: Callable[[pytest.MonkeyPatch, int], None],
    stage: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = Weights(monkeypatch)
    fault(monkeypatch, 3)
    with pytest.raises(RunStopped, match="is nan") as stop:
        stage(which)
    # The third gradient is that of the third step; the third pass that learns is in the second or third.
    assert len(weights.after) >= 2
    assert all(torch.equal(a, b) for a, b in zip(weights.now(), weights.after[-1], strict=True))
    assert all(bool(p.isfinite().all()) for p in weights.now())
    folder = tmp_path / "run/run" / which
    if which == "ppo":  # the whole rollout is stored before it is learnt from: `plaudit inspect` reads it
        assert (folder / "rollouts/00001.safetensors").is_file()
        return
    left = json.loads((folder / "stopped.json").read_text())
    assert str(folder / "stopped.json") in str(stop.value)
    assert left["where"] in str(stop.value)
    assert len(left["batch"]) == (8 if which == "sft" else 4)
    assert ("ids" in left["batch"][0]) == (which == "sft")


@pytest.mark.parametrize("name", ["reference", "policy"])
def test_a_nan_log_probability_stops_before_anything_is_learnt_and_names_the_replies(
    name: str, stage: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token of one reply of the second update."""
    real = ppo_rollout.by_micro_batch

    def planted(trainer: Any, tokens: Any, update: int, role: str) -> dict[str, Tensor]:
        found = real(trainer, tokens, update, role)
        if role == name and update == 1:
            row, column = tokens.mask_BT.nonzero()[3].tolist()
            found["logprobs_BT"][row, column] = math.nan
        return found

    weights = Weights(monkeypatch)
    monkeypatch.setattr(ppo_rollout, "by_micro_batch", planted)
    with pytest.raises(RunStopped, match="nan") as stop:
        stage("ppo")
    assert len(weights.after) == 1 + 2 * 2
    assert all(torch.equal(a, b) for a, b in zip(weights.now(), weights.after[-1], strict=True))
    left = json.loads((tmp_path / "run/run/ppo/stopped.json").read_text())
    assert left["where"] == "PPO update 2"
    assert len(left["batch"]) == 4
    assert {"id", "prompt", "text", "ids"} <= set(left["batch"][0])
    assert "stopped.json" in str(stop.value)


# --- memory ---

CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "2000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def little_memory(patch: pytest.MonkeyPatch, most: int, role: str) -> list[int]:
    """Passes of `role` that learn and hold more than `most` tokens fail as torch's CPU allocator does."""
    forward, failed = Roles.forward, list[int]()

    def planted(self: Roles, tokens: Any, asked: str, *arguments: Any, **options: Any) -> Any:
        out = forward(self, tokens, asked, *arguments, **options)
        if asked == role and torch.is_grad_enabled() and tokens.tokens_BT.numel() > most:
            failed.append(tokens.tokens_BT.numel())
            raise RuntimeError(CPU_SAYS)
        return out

    patch.setattr(Roles, "forward", planted)
    return failed


SMALLER = {"sft": "micro_batch_size", "reward": "rankings_per_micro_batch", "ppo": "micro_batch_size"}


@pytest.mark.parametrize("which", ["sft", "reward", "ppo"])
def test_memory_that_runs_out_halves_the_micro_batch_and_the_result_is_equal_to_rounding(
    which: str, stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, role = SMALLER[which], {"sft": "policy", "reward": "reward", "ppo": "policy"}[which]
    whole = TINY[which][key] if which != "ppo" else STAGES[which][1][key]
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = Roles.forward

        def seen(self: Roles, tokens: Any, asked: str, *arguments: Any, **options: Any) -> Any:
            if asked == role and torch.is_grad_enabled():
                sizes.append(tokens.tokens_BT.numel())
            return forward(self, tokens, asked, *arguments, **options)

        patch.setattr(Roles, "forward", seen)
        plain = stage(which, "plain")
    failed = little_memory(monkeypatch, max(sizes) - 1, role)
    halved = stage(which, "halved")
    assert len(failed) == 1
    (row,) = read_metrics(halved / "memory.jsonl")
    assert [value for name, value in row.items() if name.endswith(key)] == [whole // 2]
    assert "2000000000 bytes" in row["why"]
    ours, theirs = read_metrics(halved / "metrics.jsonl"), read_metrics(plain / "metrics.jsonl")
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss" if "loss" in one else "eval_loss"] == pytest.approx(
            other["loss" if "loss" in other else "eval_loss"], rel=2e-3, abs=1e-4
        )
    assert not (plain / "memory.jsonl").exists()


def test_in_bfloat16_the_first_ratio_is_still_one(
    tmp_path: Path, tiny_run: Callable[..., Run], before_ppo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the first step of an update: the old log-probabilities are computed anew in the smaller
    micro-batches, or the check of the first ratio would stop the run (it allows bf16 no rounding at all)."""
    run = tiny_run(tmp_path, before_ppo("bfloat16"), "bfloat16")
    failed = little_memory(monkeypatch, 1, "policy")
    real = ppo_update.accumulate

    def once(*arguments: Any) -> Any:
        try:
            return real(*arguments)
        finally:
            if failed:
                monkeypatch.undo()

    monkeypatch.setattr(ppo_update, "accumulate", once)
    ppo.train(*tiny_stage("ppo", run, updates=1, batch_size=4, minibatch_size=4, micro_batch_size=4))
    assert len(failed) == 1
    assert len(read_metrics(run.folder.path / "ppo/memory.jsonl")) == 1


@pytest.mark.parametrize("which", ["sft", "reward", "ppo"])
def test_when_one_row_does_not_fit_it_stops_with_an_estimate(
    which: str, stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    little_memory(monkeypatch, 0, "reward" if which == "reward" else "policy")
    with pytest.raises(RunStopped, match=r"out of memory with micro-batches of 1; about [\d,]+ MB would do") as stop:
        stage(which)
    assert int(str(stop.value).split("about ")[1].split(" MB")[0].replace(",", "")) > 2000


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError(CPU_SAYS), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: BaseException, memory: bool) -> None:
    assert ran_out(error) is memory
