"""`plaudit launch ray`: what it says without Ray, what signals come to; and with Ray, two workers of whom each is
killed in each stage, or told to end, or whose launcher is.

REQUIRE_RAY names a Python that has Ray and Plaudit (of whose code this tree's is taken); without it, and without Ray
here, the run is skipped.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


class Backend:
    """In place of what Ray's workers do at their start."""

    def on_start(self, *_: object) -> None: ...


class Config:
    """In place of Ray's TorchConfig."""

    def __init__(self, backend: str = "") -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type:
        return Backend


def fake_ray(monkeypatch: pytest.MonkeyPatch, address: str) -> SimpleNamespace:
    """A Ray that notes what it is asked for, and says that this machine has `address`."""
    asked = SimpleNamespace(init={}, backend=[], down=0)

    def init(**words: object) -> None:
        asked.init = {**words, "only_here": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}

    def down() -> None:
        asked.down += 1

    def trainer(_work: object, *, torch_config: Config, **_: object) -> SimpleNamespace:
        return SimpleNamespace(fit=lambda: asked.backend.append(torch_config.backend))

    ray, train, torch = ModuleType("ray"), ModuleType("ray.train"), ModuleType("ray.train.torch")
    util = SimpleNamespace(get_node_ip_address=lambda: address)
    ray.__dict__.update(init=init, shutdown=down, util=util, __version__="9.9")
    train.__dict__.update(FailureConfig=dict, RunConfig=dict, ScalingConfig=dict, TrainingFailedError=RuntimeError)
    torch.__dict__.update(TorchConfig=Config, TorchTrainer=trainer)
    for module in (ray, train, torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.mark.parametrize(
    ("cluster", "init", "backend"),
    [
        (launched_by.Cluster(2), {"_node_ip_address": "127.0.0.1", "only_here": "0"}, "gloo"),
        (launched_by.Cluster(2, gpu=True), {"only_here": "0"}, "cpu:gloo,cuda:nccl"),
        (launched_by.Cluster(2, address="auto"), {"address": "auto", "only_here": None}, "gloo"),
    ],
)
def test_what_ray_is_asked_for(
    cluster: launched_by.Cluster,
    init: dict[str, object],
    backend: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of its own listens on this machine alone; a cluster that is there is left as it is. GPUs speak by NCCL."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    asked = fake_ray(monkeypatch, "127.0.0.1" if cluster.address is None else "192.0.2.7")
    launched_by.launch(write_recipe(tmp_path), [], cluster)
    assert {name: asked.init[name] for name in init} == init
    assert (asked.backend, asked.down) == ([backend], 1)


def test_a_ray_that_others_can_reach_is_refused(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reaches it can have it run anything."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    asked = fake_ray(monkeypatch, "192.0.2.7")
    with pytest.raises(UserError, match=r"Ray 9\.9 listens on 192\.0\.2\.7, .* not on 127\.0\.0\.1"):
        launched_by.launch(write_recipe(tmp_path), [], launched_by.Cluster(2))
    assert (asked.backend, asked.down) == ([], 1)


needs_ray = pytest.mark.skipif(
    PYTHON is None, reason="Ray is not installed; pip install 'plaudit[ray]', or REQUIRE_RAY=PYTHON"
)


def launched(home: Path, *more: object, strikes: Sequence[tuple[object, ...]] = ()) -> subprocess.CompletedProcess[str]:
    """`plaudit launch ray` on two workers with a HOME of its own; with `strikes` see `killed_worker.py`."""
    assert PYTHON is not None
    start = "from plaudit.cli.main import main; main()"
    known = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(map(str, (SRC, TESTS / "dist", TESTS)))}
    known["RAY_DEDUP_LOGS"] = "0"  # what workers say again when they are started again is counted
    if strikes:
        start = f"import killed_worker; from plaudit.launch import ray; ray.work = killed_worker.work; {start}"
        start = f"import os; os.environ['LAUNCHER'] = str(os.getpid()); {start}"
        known["STRIKES"] = json.dumps(strikes)
    words = [PYTHON, "-c", start, "launch", "ray", "recipe.yaml", "--workers", "2", *map(str, more)]
    return subprocess.run(words, cwd=home, env=known, text=True, capture_output=True, timeout=1500, check=False)


def ended(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """What was printed by a command that ended with `code`."""
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def unbroken(write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, on two workers; its recipe lies beside it."""
    home = tmp_path_factory.mktemp("unbroken")
    write_recipe(home, checkpoints={"every_steps": 1})
    ended(launched(home))
    return home / "run"


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_each_worker_is_killed_in_each_stage(rank: int, unbroken: Path, tmp_path: Path) -> None:
    """Ray starts both anew each time, and they leave the files of the unbroken run."""
    moments = [("sft", 3), ("preferences", 1), ("reward", 2), ("ppo", 4), ("evaluate", 1)]
    strikes = [(rank, *one, "work", "worker", signal.SIGKILL) for one in moments]
    folder = tmp_path / "run"
    said = ended(launched(unbroken.parent, f"folder={folder}", "--restarts", len(strikes), strikes=strikes))
    assert said.count("The processes were started anew: the run goes on") == len(strikes)
    assert survive.differences(unbroken, folder) == []


RARELY = ("checkpoints.every_steps=null", "checkpoints.every_minutes=100")
"""By the clock nothing is saved in runs with these: what there is to go on from was saved because of the signal."""


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_told_to_end_saves_with_the_other_and_both_go_on(unbroken: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    strikes = [(1, "ppo", 5, "work", "worker", signal.SIGTERM)]
    said = ended(launched(unbroken.parent, f"folder={told}", *RARELY, strikes=strikes))
    assert "The processes were started anew: the run goes on" in said
    assert "Resuming ppo after step " in said
    assert survive.differences(unbroken, told) == []


@needs_ray
@pytest.mark.slow
def test_a_command_that_is_told_to_end_saves_and_goes_on_with_resume(unbroken: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    strikes = [(0, "ppo", 5, "work", "launcher", signal.SIGTERM)]
    said = ended(launched(unbroken.parent, f"folder={stopped}", *RARELY, strikes=strikes), 128 + signal.SIGTERM)
    assert "Stopped: ppo is saved; go on with `plaudit launch ray --workers 2 " in said
    ended(launched(unbroken.parent, f"folder={stopped}", *RARELY, "--resume"))
    assert survive.differences(unbroken, stopped) == []


@needs_ray
@pytest.mark.slow
def test_a_mistake_ends_the_workers_once(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = launched(tmp_path, "ppo.micro_batch_size=2")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Error: ppo.micro_batch_size=2 makes 1 micro-batches of ppo.minibatch_size=2" in done.stderr
    assert not (tmp_path / "run").exists() and not [*tmp_path.glob(".launch-*")]
