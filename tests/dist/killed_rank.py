"""The command line as a rank that torchrun starts, killed in the middle: `killed_rank.py KILLS COMMAND...`.

KILLS is a JSON list with a kill for each time that the ranks are started, [rank, stage, calls]: that rank sends itself
SIGKILL in so-manieth call of the stage that does work (a backward pass, a sampled batch). Where the list is at its end
nobody is killed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from plaudit.cli import main as cli
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.stages import pipeline


def strike() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(stage: str, calls: int, strike: Callable[[], None] = strike) -> None:
    """See above; the stage is the one that was begun last."""
    running, done = "", 0
    run_stage = pipeline.run_stage

    def begun(name: str, *rest: Any) -> None:
        nonlocal running
        running = name
        run_stage(name, *rest)

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += running == stage
            if running == stage and done == calls:
                strike()
            return real(*arguments, **options)

        return call

    pipeline.run_stage = begun
    torch.Tensor.backward = counted(torch.Tensor.backward)  # type: ignore[method-assign]
    InProcessEngine.generate = counted(InProcessEngine.generate)  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    kills, attempt = json.loads(sys.argv.pop(1)), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(kills) and kills[attempt][0] == int(os.environ["RANK"]):
        kill(*kills[attempt][1:])
    cli.main()
