"""A process that has everything imported and forks a child for every run it is told of; the child may be killed.

One JSON object a line on stdin: {"recipe", "overrides", "options", "kill_at", "kill_in", "kill_after", "with"}; one on
stdout: {"code", "signal", "events", "said", "cpu_s"}. Events are the calls that touch the disk and those that do the
work (sampling, scoring, backward passes, optimiser steps), counted from the start of the child. With `kill_at` the
child sends itself the signal `with` (SIGKILL) in the middle of that one, with `kill_in` of the first one of that name,
with `kill_after` it is sent after so many seconds.
Importing torch takes seconds and a fork does not; the parent computes nothing, so no thread of torch's is lost in the
fork.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import json
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from plaudit.cli import main as cli
from plaudit.rewards import sources as scoring
from plaudit.rewards.sources import RewardSources
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import RunFolder
from plaudit.stages import pipeline, recipe
from plaudit.stages.preferences import sampling as preferences
from plaudit.train import saving
from plaudit.train.optimiser import MasterAdamW

DISK = ("write", "fsync", "replace", "mkdir", "rmdir", "unlink")
WORK: tuple[tuple[Any, str, str], ...] = (
    (InProcessEngine, "_generate_batch", "sample"),
    (RewardSources, "score", "score"),
    (torch.Tensor, "backward", "backward"),
    (MasterAdamW, "step", "step"),
)


def count_events(record: Path, kill_at: int | None, kill_in: str | None, sent: int) -> None:
    """Wrap the calls; their names go to `record`, and the `kill_at`-th, or the first of the name `kill_in`, is cut in
    the middle by the signal."""
    handle = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write, done = os.write, 0

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            write(handle, f"{name}\n".encode())
            if done == kill_at or name == kill_in:
                if name == "write" and sent == signal.SIGKILL:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), sent)
            return real(*arguments, **options)

        return call

    for name in DISK:
        setattr(os, name, watched(name, getattr(os, name)))
    for owner, attribute, name in WORK:
        setattr(owner, attribute, watched(name, getattr(owner, attribute)))


def run(told: dict[str, Any], record: Path, said: Path) -> int:
    """The child: a whole run, by the command line."""
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sent = told.get("with", signal.SIGKILL)
    if told.get("kill_after") is not None:
        threading.Timer(told["kill_after"], os.kill, (os.getpid(), sent)).start()
    # Nothing may depend on a generator's state: every process has another.
    torch.seed()
    np.random.seed()
    random.seed()
    count_events(record, told.get("kill_at"), told.get("kill_in"), sent)
    sys.argv = ["plaudit", "run", told["recipe"], *told["overrides"], *told["options"]]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def main() -> None:
    torch.set_num_threads(1)
    # A child collects garbage after every stage: not through all that was imported. And nobody looks at its plots.
    gc.freeze()
    Figure.savefig = lambda figure, buffer, **_: buffer.write("<svg></svg>")
    torch.set_num_threads = lambda count: None
    assert all(module is not None for module in (pipeline, recipe, scoring))
    # More batches to die in, and a last checkpoint to compare.
    preferences.AT_ONCE, saving.KEEP = 32, 1
    RunFolder.drop_checkpoints = lambda self, name: None
    home = Path(sys.argv[1])
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        record, said = home / "events.txt", home / "said.txt"
        child = os.fork()
        if child == 0:
            try:
                code = run(told, record, said)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 99
            os._exit(code)
        _, status, used = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {
            "code": code,
            "signal": -code if code < 0 else None,
            "events": record.read_text().split(),
            "said": said.read_text(),
            "cpu_s": used.ru_utime + used.ru_stime,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
