"""The command of docs/distributed.md as it stands: two processes, and how a mistake is told."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import plaudit as package
import survive
from plaudit.cli import main as cli
from plaudit.errors import RankLost
from plaudit.run.folder import STAGES, finished_stages
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe

PAGE = Path(__file__).resolve().parents[2] / "docs/distributed.md"
SECONDS = 300
SAVES = "checkpoints.every_steps=1"
LOGS = (
    "sft/metrics.jsonl",
    "preferences/rankings.jsonl",
    "reward/metrics.jsonl",
    "reward/scores.jsonl",
    "ppo/metrics.jsonl",
    "ppo/evaluations.jsonl",
    "evaluate/replies.jsonl",
)


def torchrun(
    home: Path, *more: str, script: Sequence[str] = (), options: Sequence[str] = (), starts: int = 1
) -> tuple[int, str, str]:
    """Exit code and output of the page's command with `more` arguments; `script` stands in for `-m MODULE`. `starts` is
    how often it starts the ranks."""
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("$ torchrun --nproc"))
    words = shlex.split(line.removeprefix("$ torchrun "))
    if script:
        place = words.index("-m")
        words[place : place + 2] = script
    # The package under test, wherever the command is given.
    known = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *words, *more],
        cwd=home,
        env=known,
        text=True,
        capture_output=True,
        timeout=SECONDS * starts,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def both(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of the page's command, and what it printed."""
    home = tmp_path_factory.mktemp("both")
    write_recipe(home)
    code, out, err = torchrun(home, SAVES)
    assert code == 0, out + err
    return home / "run", out


def test_the_command_of_the_page(both: tuple[Path, str], trained: Path) -> None:
    """Every stage's numbers are those of the same recipe in one process: the logs, the sampled replies, the scores."""
    run, out = both
    assert tuple(finished_stages(run)) == STAGES
    assert "2 processes share the work of sft, preferences, reward, ppo, evaluate; the first does the rest" in out
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert f"cpu, float32, {max(1, cores // 2)} threads" in out  # a rank's part of the machine
    assert out.count("Report: ") == 1
    for log in LOGS:
        rows, expected = read_metrics(run / log), read_metrics(trained / log)
        assert len(rows) == len(expected), log
        for row, other in zip(rows, expected, strict=True):
            assert_close(row, other, log)


def assert_close(found: Any, expected: Any, where: str) -> None:
    """Numbers within 1e-5, everything else equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}, {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for value, other in zip(found, expected, strict=True):
            assert_close(value, other, where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), where
    else:
        assert found == expected, where


TRAINED = ("sft", "reward", "ppo")
"""The stages that go on from checkpoints; the others begin anew."""


def killed(both: tuple[Path, str], home: Path, kills: Sequence[tuple[Any, ...]]) -> None:
    """The run of the page's command, in which one rank is killed each time, leaves the files of the unbroken one."""
    unbroken = both[0]
    script = [str(Path(__file__).with_name("killed_rank.py")), json.dumps(kills)]
    changes = [SAVES, f"folder={home / 'run'}"]
    options, starts = ["--max-restarts", str(len(kills))], len(kills) + 1
    code, out, err = torchrun(unbroken.parent, *changes, script=script, options=options, starts=starts)
    assert code == 0, out + err
    assert out.count("The processes were started anew: the run goes on") == len(kills), out
    for stage in TRAINED:  # a kill before the first checkpoint is whole begins the stage anew
        times = sum(kill[1] == stage for kill in kills)
        assert min(times, 1) <= out.count(f"Resuming {stage} after step ") <= times, stage
    assert survive.differences(unbroken, home / "run") == []


def test_ranks_that_are_killed_come_back_and_leave_the_files_of_the_unbroken_run(
    both: tuple[Path, str], tmp_path: Path
) -> None:
    """The first one in SFT, the second in PPO: torchrun starts all anew, and they go on from the checkpoint."""
    killed(both, tmp_path, [(0, "sft", 5), (1, "ppo", 5)])


MOMENTS = {
    "sft": [("sft", 3), ("sft", 4), ("sft", 2, "sum"), ("sft", 1, "end")],
    "preferences": [("preferences", 1), ("preferences", 1, "end")],
    "reward": [("reward", 2), ("reward", 2, "sum"), ("reward", 1, "end")],
    "ppo": [("ppo", 4), ("ppo", 9), ("ppo", 2, "sum"), ("ppo", 1, "end")],
    "evaluate": [("evaluate", 1), ("evaluate", 1, "end")],
}
"""When a rank is killed (killed_rank.py): at work; after the sum of the gradients by which the other one takes its
step; when the stage has ended and is not yet in the manifest. With the four below 34 kills."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", MOMENTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_is_killed_in_each_stage(rank: int, stage: str, both: tuple[Path, str], tmp_path: Path) -> None:
    killed(both, tmp_path, [(rank, *moment) for moment in MOMENTS[stage]])


@pytest.mark.slow
def test_the_first_rank_is_killed_while_it_writes_a_checkpoint(both: tuple[Path, str], tmp_path: Path) -> None:
    """All go on from the one before, the rank as well that was one step further."""
    kills = [(0, "sft", 2, "half"), (0, "reward", 2, "half"), (0, "ppo", 2, "half"), (0, "ppo", 1, "half")]
    killed(both, tmp_path, kills)


@pytest.mark.slow
def test_two_processes_make_the_round_that_one_makes(both: tuple[Path, str], tmp_path: Path) -> None:
    """The policy of round 1 and the SFT model answer in shares, the reward model learns from both rounds' rankings."""
    for name in ("alone", "together"):
        shutil.copytree(both[0], tmp_path / name, ignore=shutil.ignore_patterns(".lock"))
    rounds = ["rounds={count: 2, start: last, earlier: 0.5}", "--resume", f"folder={tmp_path / 'together'}"]
    code, out, err = torchrun(both[0].parent, SAVES, *rounds)
    assert code == 0, out + err
    changes = [SAVES, rounds[0], f"folder={tmp_path / 'alone'}"]
    run_pipeline(load_recipe(both[0].parent / "recipe.yaml", changes), Flags(resume=True))
    second = tmp_path / "together/round-2"
    assert tuple(finished_stages(second)) == STAGES
    for log in LOGS[1:]:
        for row, other in zip(read_metrics(second / log), read_metrics(tmp_path / "alone/round-2" / log), strict=True):
            assert_close(row, other, log)


@pytest.mark.slow
def test_two_machines_by_two_agents_on_one(both: tuple[Path, str], tmp_path: Path) -> None:
    """Each agent has one rank, which is its first; the second one's is killed, and both agents start theirs anew."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    home = both[0].parent
    script, kills = str(Path(__file__).with_name("killed_rank.py")), json.dumps([(1, "ppo", 5)])
    known = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    agents = []
    for node in ("0", "1"):
        where = ["--nnodes", "2", "--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port]
        words = [*where, "--nproc-per-node", "1", "--max-restarts", "2", script, kills]
        words += ["run", "recipe.yaml", SAVES, f"folder={tmp_path / 'run'}"]
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        agents.append(
            subprocess.Popen(command, cwd=home, env=known, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    said = [agent.communicate(timeout=3 * SECONDS)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert said[0].count("The processes were started anew: the run goes on") == 1, said[0]
    assert survive.differences(both[0], tmp_path / "run") == []


def test_a_mistake_is_told_once_and_ends_all(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    code, _, err = torchrun(tmp_path, "ppo.micro_batch_size=2")
    assert code != 0
    assert err.count("Error: ppo.micro_batch_size=2 makes 1 micro-batches of ppo.minibatch_size=2") == 1
    assert not (tmp_path / "run").exists()


def test_another_rank_says_which_it_is(
    plaudit: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
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
