"""The command of docs/distributed.md as it stands: a whole run in two processes, and how a mistake is told."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import plaudit as package
from plaudit import cli
from plaudit.errors import RankLost
from plaudit.run.folder import finished_stages
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import STAGES

PAGE = Path(__file__).resolve().parents[2] / "docs/distributed.md"
SECONDS = 300


def torchrun(home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("$ "))
    launcher, *words = shlex.split(line[2:])
    assert launcher == "torchrun"
    # The package under test, wherever the command is given.
    known = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, *more], cwd=home, env=known, text=True,
        capture_output=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def test_the_command_of_the_page_makes_a_whole_run(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: Path
) -> None:
    """Every stage, once; its PPO is that of the same recipe in one process."""
    write_recipe(tmp_path)
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(finished_stages(tmp_path / "run")) == STAGES
    assert "2 processes share the work of ppo; the first does the rest" in done.stdout
    assert done.stdout.count("Report: ") == 1
    rows = read_metrics(tmp_path / "run/ppo/metrics.jsonl")
    expected = read_metrics(trained / "ppo/metrics.jsonl")
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-3)
    assert [row["grad_norm"] for row in rows] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-3)


def test_a_mistake_is_told_once_and_ends_all(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = torchrun(tmp_path, "ppo.micro_batch_size=2")
    assert done.returncode != 0
    assert done.stderr.count("Error: ppo.micro_batch_size=2 makes 1 micro-batches of ppo.minibatch_size=2") == 1
    assert not (tmp_path / "run").exists()


def test_another_rank_says_which_it_is(plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = plaudit("run", "nowhere.yaml")
    assert done.code == 2
    assert done.err.startswith("Rank 1: Error: nowhere.yaml")


def test_a_lost_rank_has_an_exit_code_of_its_own() -> None:
    assert cli._outcome(RankLost("rank 0: another rank has ended")) == (4, "Stopped: rank 0: another rank has ended")


def test_the_demo_in_several_processes_wants_a_folder(
    plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would look for a free one, and find another."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = plaudit("demo")
    assert done.code == 2
    assert "folder=PATH" in done.err
