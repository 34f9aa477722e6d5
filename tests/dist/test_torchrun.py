"""The command of docs/distributed.md as it stands: two processes, and how a mistake is told."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import plaudit as package
from plaudit.cli import main as cli
from plaudit.errors import RankLost
from plaudit.run.folder import finished_stages
from plaudit.run.metrics import read_metrics
from plaudit.run.folder import STAGES

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
    )


def test_the_command_of_the_page_from_ppo_on(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: Path
) -> None:
    """What is divided and what comes after it, once each; PPO's numbers are those of the same recipe in one process."""
    write_recipe(tmp_path)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    told = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(told.replace(str(trained.parent), str(tmp_path)), encoding="utf-8")
    begun = (run / "ppo/summary.json").stat().st_mtime_ns
    done = torchrun(tmp_path, "--from", "ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(finished_stages(run)) == STAGES
    assert "2 processes share the work of ppo; the first does the rest" in done.stdout
    assert done.stdout.count("Report: ") == 1
    assert (run / "ppo/summary.json").stat().st_mtime_ns > begun
    rows, expected = read_metrics(run / "ppo/metrics.jsonl"), read_metrics(trained / "ppo/metrics.jsonl")
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)


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
    assert cli._outcome(RankLost("another rank has ended")) == (4, "Stopped: another rank has ended")


def test_the_demo_in_several_processes_wants_a_folder(
    plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would look for a free one, and find another."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = plaudit("demo")
    assert done.code == 2
    assert "folder=PATH" in done.err
