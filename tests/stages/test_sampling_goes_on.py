"""Sampling many replies: written down one by one, and after a kill those that are missing, the very same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from conftest import CPU
from plaudit import rng
from plaudit.models.load import load_model
from plaudit.records import Completion
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import CHECKPOINTS
from plaudit.run.metrics import Metrics
from plaudit.stages.evaluate.loop import Judged
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run
from plaudit.train.sampling import sample_in_batches
from plaudit.train.saving import Saver, State

COUNT, SIZE, LENGTH = 22, 4, 12
ENDS = set(range(0, 300, 20))
PROMPTS = [[(7 * t + 11 * row) % 290 + 3 for t in range(1 + (5 * row) % 13)] for row in range(COUNT)]
UNIFORMS = rng.uniforms(0, "sampling", 0, list(range(COUNT)), LENGTH)


def sampled(run: Run) -> tuple[list[list[int]], int]:
    """The replies, and at which batch it began."""
    model = load_model(run.model, torch.float32, CPU)
    engine = InProcessEngine(model, eos_id=ENDS, batch_rows=SIZE)
    counted = [0]

    def advance(note: str = "", count: int = 1) -> None:
        counted[0] += count

    with Saver.open(run, "preferences") as saver:
        log = saver.log(f"{CHECKPOINTS}/replies.jsonl")
        settings: dict[str, Any] = {"ranks": run.ranks, "saver": saver, "log": log, "done": 0, "state": State()}
        found = sample_in_batches(engine, PROMPTS, UNIFORMS, SIZE, **settings, advance=advance)
        assert counted == [COUNT]
        return found, saver.step


@pytest.mark.parametrize("plain", ["", "1"])
def test_sampling_that_was_killed_goes_on_with_the_same_replies(
    plain: str, tmp_path: Path, tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the tenth reply, with eight in the last checkpoint; by a decoder whose places are taken again, and by
    transformers', which decodes batch by batch."""
    monkeypatch.setenv("PLAUDIT_PLAIN", plain)
    expected, _ = sampled(tiny_run(tmp_path / "whole"))
    assert len({len(reply) for reply in expected}) > 2 and max(map(len, expected)) == LENGTH
    run = replace(tiny_run(tmp_path / "killed"), checkpoints=CheckpointConfig(every_steps=1), resume=True)
    with monkeypatch.context() as patch:
        log, count = Metrics.log, [0]

        def killed(self: Metrics, **row: Any) -> None:
            count[0] += 1
            if count[0] == 10:
                raise KeyboardInterrupt
            log(self, **row)

        patch.setattr(Metrics, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            sampled(run)
    found, began = sampled(run)
    assert began == 2
    assert found == expected


def test_a_single_reply_of_the_model_that_is_its_own_reference_is_kept(tmp_path: Path) -> None:
    """One held-out prompt: its log-probability under the model and under the reference is one array."""
    own, other = np.array([-3.5]), np.array([0.25])
    judged = Judged([Completion("So.")], [[5, 6]], other, None, own, own, -own, np.array([2]))
    (tmp_path / "state").write_bytes(save(dict(judged.as_state().tensors)))
    back = Judged.before(State(load_file(tmp_path / "state"), judged.as_state().values))
    assert back is not None and back.gold is None and back.replies == judged.replies
    assert (back.logprob_sum, back.ref_logprob_sum, back.ref_nll_sum) == ([-3.5], [-3.5], [3.5])
