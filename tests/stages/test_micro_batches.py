"""Passes that are chosen for the memory there is: what a run begins with it keeps, and how a step is divided by it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit.dist import machine
from plaudit.errors import RunStopped
from plaudit.stages.prepare import MICRO_BATCHES, _micro_batches
from plaudit.train.micro_batches import MicroBatches
from plaudit.train.run import Run

WHOLE, HALF = {"tokens": 800, "step": 800}, {"tokens": 400, "step": 800}


def test_a_run_that_goes_on_keeps_its_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a fuller machine it says so, on an emptier one there is nothing to say; a stage with other steps, or one that
    the run has not had, is chosen anew."""
    assert _micro_batches(tmp_path, {"sft": WHOLE, "ppo": HALF}) == {"sft": 800, "ppo": 400}
    assert "ppo 400 of 800" in capsys.readouterr().out
    assert _micro_batches(tmp_path, {"sft": HALF, "ppo": WHOLE}) == {"sft": 800, "ppo": 400}
    said = " ".join(capsys.readouterr().out.split())
    assert "sft stays at passes of 800 tokens, as the run began, though there is room for 400 now" in said
    assert "ppo stays" not in said
    more = {"tokens": 600, "step": 1200}
    assert _micro_batches(tmp_path, {"ppo": more, "evaluate": WHOLE}) == {"sft": 800, "ppo": 600, "evaluate": 800}
    assert json.loads((tmp_path / MICRO_BATCHES).read_text()) == {"sft": WHOLE, "ppo": more, "evaluate": WHOLE}


@pytest.fixture
def run(tmp_path: Path, tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(tmp_path)


def sizes(micro: MicroBatches, lengths: list[int], *, packed: bool = True) -> list[list[int]]:
    return [sorted(lengths[i] for i in group) for group in micro.groups(lengths, packed=packed)]


def test_a_step_in_the_passes_that_were_chosen(run: Run) -> None:
    lengths = [5, 5, 4, 4]
    assert sizes(MicroBatches(run, "sft", "micro_batch_size", "auto"), lengths) == [[4, 4, 5, 5]]
    half = replace(run, micro_batches={"sft": 10, "ppo": 3})
    assert sizes(MicroBatches(half, "sft", "micro_batch_size", "auto"), lengths) == [[4, 5], [4, 5]]
    assert sizes(MicroBatches(half, "sft", "micro_batch_size", "auto"), lengths, packed=False) == [[4, 4], [5, 5]]
    assert sizes(MicroBatches(half, "sft", "micro_batch_size", 3), lengths) == [[4, 5], [4, 5]]
    assert MicroBatches(half, "ppo", "micro_batch_size", "auto").bounds(8) == (8, 3)
    assert MicroBatches(half, "ppo", "micro_batch_size", 4).bounds(8) == (4, None)
    assert MicroBatches(half, "ppo", "micro_batch_tokens", "auto", tokens=70).bounds(8) == (8, 70)


def test_where_memory_runs_out_a_chosen_pass_is_halved(run: Run) -> None:
    """Of 16 tokens there are no more than 4 to be had: two halvings, then a row of any length goes alone."""
    micro = MicroBatches(replace(run, micro_batches={"reward": 16}), "reward", "rankings_per_micro_batch", "auto")

    def attempt() -> list[list[int]]:
        groups = sizes(micro, [3, 2, 2, 1])
        if max(map(sum, groups)) > 4:
            raise torch.OutOfMemoryError("planted")
        return groups

    assert micro.fit("step 1", attempt, lambda: None) == [[1, 3], [2, 2]]
    rows = [json.loads(line) for line in (run.folder.path / "reward/memory.jsonl").read_text().splitlines()]
    assert [row["reward.rankings_per_micro_batch (tokens)"] for row in rows] == [8, 4]
    with pytest.raises(RunStopped, match="micro-batches of 1"):
        micro.fit("step 2", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("planted")), lambda: None)


@pytest.mark.parametrize(
    ("limit", "current", "cached", "free"),
    [
        ("max", "0", "0", 6000.0),
        ("3000000000", "2500000000", "0", 500.0),
        ("3000000000", "2500000000", "200000000", 700.0),
    ],
)
def test_what_is_free_by_hand(
    limit: str, current: str, cached: str, free: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6,000 MB of the machine, less where its container is given less; pages of files come back."""
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(current)
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    meminfo, fields = tmp_path / "meminfo", machine._fields
    meminfo.write_text("MemTotal:       9000000 kB\nMemAvailable:   5859375 kB\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_fields", lambda file, by: fields(meminfo if file.name == "meminfo" else file, by))
    assert machine.free_mb() == free
