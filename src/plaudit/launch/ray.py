"""The run as workers of Ray Train: the same pipeline, on machines that Ray has, started again when one dies.

Ray starts the workers and tells each its rank; from there on they are ranks like those of torchrun (dist/ranks.py),
and those that come back go on from the run's own checkpoints. The run's folder and its data must be on a file system
that every machine sees.

Nobody hands a signal on: whoever stops this command kills the workers, and what they do runs in a thread, which hears
no signal. So this process leaves a file that all of them look for, and the run saves itself before they end. A worker
that gets SIGTERM itself saves too, with all others, and Ray starts them again.

    plaudit launch ray RECIPE --workers 2 --restarts 3
"""

import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from plaudit.dist.meeting import GLOO, LAUNCH, NCCL
from plaudit.errors import RankLost, RunStopped, UserError
from plaudit.run.stopping import SIGNALS, STOP, Interrupted, say_heard
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe

HEARD = 10.0
"""Seconds that a rank waits for the word of the one that stopped all."""
LOOK = 0.5
"""Seconds between two looks for a file, or for the end."""
LOOPBACK, OTHERS = "127.0.0.1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where Ray listens, whom whoever reaches it can have run anything, when it is started on this machine alone; and the
variable that keeps it there. Ray reads it at import, on Linux too; without it takes the machine's address even where it
is given the loopback one (services.resolve_ip_for_localhost)."""
ASKED, TOLD = "asked", "told"
"""Files beside each other: the number of the signal that this process had, and how the workers ended."""


@dataclass(frozen=True)
class Cluster:
    """How many workers there are and on what."""

    workers: int
    restarts: int = 3
    address: str | None = None
    """Of a cluster that is there; auto finds the one that this machine belongs to. None starts one on this machine."""
    gpu: bool = False
    resume: bool = False


def launch(path: Path, overrides: Sequence[str], cluster: Cluster) -> None:
    """Run a recipe on the cluster until it has ended; RankLost when workers died more often than they may."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address is None:
        os.environ[OTHERS] = "0"
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise UserError(f"`plaudit launch ray` needs Ray ({error}): pip install 'plaudit[ray]'") from error
    home = load_recipe(path, overrides).run_folder.absolute().parent
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".launch-") as scratch:
        _start(ray, cluster, f"{scratch}/begun")
        config = {"recipe": str(path.resolve()), "overrides": [*overrides], "folder": str(Path.cwd())}
        trainer = TorchTrainer(
            work,
            train_loop_config={**config, "resume": cluster.resume, "scratch": scratch},
            torch_config=_heard(TorchConfig)(backend=NCCL if cluster.gpu else GLOO),
            scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=cluster.gpu),
            run_config=RunConfig(
                name="plaudit", storage_path=scratch, failure_config=FailureConfig(max_failures=cluster.restarts)
            ),
        )
        told = Path(scratch, TOLD)
        try:
            until_it_ends(trainer.fit, Path(scratch, ASKED))
        except TrainingFailedError as error:
            if not told.is_file():
                raise RankLost(f"the workers of Ray ended ({' '.join(str(error).split())[:300]})") from error
        finally:
            ray.shutdown()
        if told.is_file():
            kind, _, text = told.read_text(encoding="utf-8").partition("\n")
            if kind == Interrupted.__name__:
                raise Interrupted(int(Path(scratch, ASKED).read_text(encoding="utf-8")), text or None)
            raise {"UserError": UserError, "RunStopped": RunStopped}[kind](text)


def _start(ray: Any, cluster: Cluster, begun: str) -> None:
    """Join the cluster, or start one on this machine; UserError where others could reach that. Workers know by the file
    `begun` whether others of this launch had begun."""
    # Workers import Plaudit from where this process has it.
    known = os.pathsep.join(dict.fromkeys([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]))
    own: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        own = {"num_cpus": max(cluster.workers, os.cpu_count() or 1), "_node_ip_address": LOOPBACK}
        own |= {"include_dashboard": False}
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": known, LAUNCH: begun}}, **own)
    if cluster.address is None and (here := ray.util.get_node_ip_address()) != LOOPBACK:
        ray.shutdown()
        raise UserError(
            f"Ray {ray.__version__} listens on {here}, where others could have it run anything, and not on {LOOPBACK}: "
            "take another version, or start a cluster by `ray start --head` and name it by --address"
        )


def until_it_ends(fit: Callable[[], object], asked: Path) -> None:
    """Do what Ray's `fit` does. A first signal is left in the file `asked`, for the workers; a second one leaves at
    once. In a thread of its own: in the main one Ray takes Ctrl-C for itself, and kills."""
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work_on() -> None:
        try:
            fit()
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    def hear(signum: int, _frame: FrameType | None) -> None:
        if asked.exists():
            raise Interrupted(signum)
        _write(asked, str(signum))
        say_heard(signum)

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        threading.Thread(target=work_on, daemon=True).start()
        while True:
            try:
                error = ended.get(timeout=LOOK)
                break
            except queue.Empty:
                continue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if error is not None:
        raise error


def _heard(config: Any) -> Any:
    """The configuration of Ray's workers, whose main thread then hears SIGTERM for the run."""

    class Backend(config().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(hear_sigterm)

    class Config(config):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config


def hear_sigterm() -> None:
    """In a worker's main thread: SIGTERM asks its run to save, where Ray's own handler ends the process."""
    signal.signal(signal.SIGTERM, lambda signum, _frame: setattr(STOP, "asked", signum))


def work(config: dict[str, Any]) -> None:
    """What each worker does: the run, as a rank. A mistake and a guard's stop would be the same a second time: they are
    told by a file, and workers that Ray starts again have nothing to do. They fail all the same: the others wait for
    one whose process lives on, and Ray alone ends them. Where the launching process had a signal, all leave at once."""
    from plaudit.stages.pipeline import run_pipeline

    os.chdir(config["folder"])
    told, asked = Path(config["scratch"], TOLD), Path(config["scratch"], ASKED)
    if told.is_file():
        return
    STOP.asked = None
    with _listening(asked):
        try:
            run_pipeline(load_recipe(Path(config["recipe"]), config["overrides"]), Flags(resume=config["resume"]))
        except (UserError, RunStopped) as error:
            _write(told, f"{type(error).__name__}\n{error}")
            raise
        except Interrupted as stop:
            if not asked.is_file():
                raise RankLost(f"a worker was told to end; {stop.saved or 'nothing was to be saved'}") from stop
            command = f"`plaudit launch ray --workers {os.environ['WORLD_SIZE']}"
            saved = (stop.saved or "").replace("`plaudit run", command)
            _write(told, f"{Interrupted.__name__}\n{saved}")
        except RankLost:
            until = time.monotonic() + HEARD
            while not told.is_file():
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)


@contextmanager
def _listening(asked: Path) -> Iterator[None]:
    """In this block the run is asked to save once the file `asked` is there. What comes later asks nobody any more."""
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(LOOK):
            if asked.is_file():
                STOP.asked = int(asked.read_text(encoding="utf-8"))
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        listener.join()


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
