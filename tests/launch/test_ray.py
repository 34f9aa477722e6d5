"""`plaudit launch ray`: what it says without Ray, what signals come to; and with Ray, two workers of whom one is killed
or told to end, or whose launcher is.

REQUIRE_RAY names a Python that has Ray and what Plaudit needs; without it, and without Ray here, the run is skipped.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import plaudit as package
import survive
from plaudit.dist.meeting import LAUNCH, met
from plaudit.errors import RankLost, UserError
from plaudit.launch import ray as launched_by
from plaudit.run.stopping import STOP, Interrupted
from plaudit.stages import pipeline

PYTHON = os.environ.get("REQUIRE_RAY") or (sys.executable if importlib.util.find_spec("ray") else None)
SRC, TESTS = Path(package.__file__).resolve().parents[1], Path(__file__).resolve().parents[1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_the_extra_is_named(
    plaudit: Callable[..., SimpleNamespace], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    done = plaudit("launch", "ray", write_recipe(tmp_path), "--workers", 2)
    assert done.code == 2 and "pip install 'plaudit[ray]'" in done.err
    assert not (tmp_path / "run").exists()


def test_workers_that_come_back_know_that_others_had_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file that outlives them; a new launch has a new one."""
    monkeypatch.delenv(LAUNCH, raising=False)
    assert met() is None
    monkeypatch.setenv(LAUNCH, str(tmp_path / "begun"))
    before, after = met(), met()
    assert before is not None and after is not None
    assert not before.begun and not after.begun
    before.begin()
    assert after.begun
    again = met()
    assert again is not None and again.begun
    monkeypatch.setenv(LAUNCH, str(tmp_path / "other"))
    other = met()
    assert other is not None and not other.begun


def test_a_signal_is_left_for_the_workers_and_a_second_one_leaves_at_once(tmp_path: Path) -> None:
    """And the workers, which it does not reach, save: this process ends when they have."""
    asked, heard = tmp_path / "asked", list[str]()
    before = signal.getsignal(signal.SIGTERM)

    def fit() -> None:
        assert threading.current_thread() is not threading.main_thread()
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 30
        while not asked.exists() and time.monotonic() < until:
            time.sleep(0.01)
        heard.append(asked.read_text())

    launched_by.until_it_ends(fit, asked)
    assert heard == [str(int(signal.SIGTERM))]
    assert signal.getsignal(signal.SIGTERM) is before

    def hangs() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    with pytest.raises(Interrupted) as stop:
        launched_by.until_it_ends(hangs, asked)
    assert stop.value.signum == signal.SIGINT

    def breaks() -> None:
        raise RankLost("a worker is gone")

    with pytest.raises(RankLost, match="a worker is gone"):
        launched_by.until_it_ends(breaks, asked)


@pytest.fixture
def at_work(write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a worker is given; the stage that it runs goes on until it is asked to end, and says that it was saved."""

    def run(*_: object) -> None:
        until = time.monotonic() + 30
        while STOP.asked is None and time.monotonic() < until:
            time.sleep(0.01)
        asked, STOP.asked = STOP.asked, None
        assert asked is not None
        raise Interrupted(asked, "ppo is saved; go on with `plaudit run runs/x/recipe.yaml --resume`")

    monkeypatch.setattr(pipeline, "run_pipeline", run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    recipe = str(write_recipe(tmp_path))
    return {"recipe": recipe, "overrides": [], "folder": str(tmp_path), "resume": False, "scratch": str(scratch)}


def test_workers_save_where_their_launcher_was_told_to_end(at_work: dict[str, object]) -> None:
    """They end in peace, so that Ray does not start them again, and say what is saved and how to go on."""
    scratch = Path(str(at_work["scratch"]))
    (scratch / "asked").write_text(str(int(signal.SIGTERM)))
    launched_by.work(at_work)
    go_on = "ppo is saved; go on with `plaudit launch ray --workers 2 runs/x/recipe.yaml --resume`"
    assert (scratch / "told").read_text() == f"Interrupted\n{go_on}"


def test_a_mistake_is_told_once_and_workers_that_are_started_again_for_it_do_nothing(
    at_work: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker fails, or the others would wait for it for ever: its process lives on, and no connection is closed."""

    def mistaken(*_: object) -> None:
        raise UserError("ppo.micro_batch_size=2 is none")

    scratch = Path(str(at_work["scratch"]))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_pipeline", mistaken)
        with pytest.raises(UserError):
            launched_by.work(at_work)
        assert (scratch / "told").read_text() == "UserError\nppo.micro_batch_size=2 is none"
        launched_by.work(at_work)


def test_a_run_that_has_ended_hears_nothing_any_more(
    at_work: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its process does next would be stopped in its place."""
    monkeypatch.setattr(pipeline, "run_pipeline", lambda *_: None)
    monkeypatch.setattr(launched_by, "LOOK", 0.01)
    launched_by.work(at_work)
    Path(str(at_work["scratch"]), "asked").write_text(str(int(signal.SIGTERM)))
    time.sleep(0.2)
    assert STOP.asked is None


def test_a_worker_that_is_told_to_end_saves_and_is_started_again(at_work: dict[str, object]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        launched_by.hear_sigterm()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(RankLost, match="a worker was told to end; ppo is saved"):
            launched_by.work(at_work)
    finally:
        signal.signal(signal.SIGTERM, before)
    scratch = Path(str(at_work["scratch"]))
    assert not (scratch / "told").exists()


def launched(home: Path, *more: object, strike: tuple[object, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`plaudit launch ray` on two workers with a HOME of its own; with `strike` see `killed_worker.py`."""
    assert PYTHON is not None
    start = "from plaudit.cli.main import main; main()"
    known = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(map(str, (SRC, TESTS / "dist", TESTS)))}
    if strike:
        start = f"import killed_worker; from plaudit.launch import ray; ray.work = killed_worker.work; {start}"
        start = f"import os; os.environ['LAUNCHER'] = str(os.getpid()); {start}"
        known["STRIKE"] = json.dumps(strike)
    words = [PYTHON, "-c", start, "launch", "ray", "recipe.yaml", "--workers", "2", *map(str, more)]
    return subprocess.run(words, cwd=home, env=known, text=True, capture_output=True, timeout=1500, check=False)


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="Ray is not installed; pip install 'plaudit[ray]', or REQUIRE_RAY=PYTHON")
def test_two_workers_that_are_killed_or_told_to_end_leave_the_files_of_the_unbroken_run(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe(tmp_path, checkpoints={"every_steps": 1})
    done = launched(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "killed"
    done = launched(tmp_path, f"folder={folder}", strike=(1, "ppo", 5, "worker", signal.SIGKILL))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "The processes were started anew: the run goes on" in done.stdout + done.stderr
    assert survive.differences(tmp_path / "run", folder) == []

    # By the clock nothing is saved in these: what there is to go on from was saved because of the signal.
    rarely, told = ("checkpoints.every_steps=null", "checkpoints.every_minutes=100"), tmp_path / "told"
    done = launched(tmp_path, f"folder={told}", *rarely, strike=(1, "ppo", 5, "worker", signal.SIGTERM))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "The processes were started anew: the run goes on" in done.stdout + done.stderr
    assert survive.differences(tmp_path / "run", told) == []
    stopped = tmp_path / "stopped"
    done = launched(tmp_path, f"folder={stopped}", *rarely, strike=(0, "ppo", 5, "launcher", signal.SIGTERM))
    assert done.returncode == 128 + signal.SIGTERM, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Stopped: ppo is saved; go on with `plaudit launch ray --workers 2 " in done.stderr
    done = launched(tmp_path, f"folder={stopped}", *rarely, "--resume")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert survive.differences(tmp_path / "run", stopped) == []


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="Ray is not installed; pip install 'plaudit[ray]', or REQUIRE_RAY=PYTHON")
def test_a_mistake_ends_the_workers_once(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = launched(tmp_path, "ppo.micro_batch_size=2")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Error: ppo.micro_batch_size=2 makes 1 micro-batches of ppo.minibatch_size=2" in done.stderr
    assert not (tmp_path / "run").exists() and not [*tmp_path.glob(".launch-*")]
