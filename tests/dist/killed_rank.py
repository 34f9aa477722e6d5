"""The command line as a rank that torchrun starts, killed in the middle: `killed_rank.py KILLS COMMAND...`.

KILLS is a JSON list with a kill for each time that the ranks are started, [rank, stage, calls, moment]: that rank sends
itself SIGKILL in so-manieth such moment of the stage. Where the list is at its end nobody is killed. The moments:

work   before a backward pass, or a batch is sampled; it is this one where none is named
sum    after the gradients of all ranks are added up, before the optimiser's step
half   in the middle of a checkpoint, of which everything but the manifest is written; the first rank alone writes one
end    when the stage has ended, before it is in the run's manifest
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from plaudit.cli import main as cli
from plaudit.dist.ranks import Ranks
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run import checkpoint
from plaudit.run.folder import FollowedFolder, RunFolder
from plaudit.stages import pipeline

PLACES: dict[str, list[tuple[Any, str]]] = {
    "work": [(torch.Tensor, "backward"), (InProcessEngine, "generate")],
    "sum": [(Ranks, "add_gradients")],
    "half": [(checkpoint, "_write_file")],
    "end": [(RunFolder, "end"), (FollowedFolder, "end")],
}
"""Where each moment comes by."""


def strike() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(stage: str, calls: int, moment: str = "work", strike: Callable[[], None] = strike) -> None:
    """See above; the stage is the one that was begun last."""
    running, done = "", 0
    run_stage = pipeline.run_stage

    def begun(name: str, *rest: Any) -> None:
        nonlocal running
        running = name
        run_stage(name, *rest)

    def comes(*arguments: Any) -> None:
        nonlocal done
        if running != stage or (moment == "half" and arguments[0].name != checkpoint.MANIFEST):
            return
        done += 1
        if done == calls:
            strike()

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if moment != "sum":
                comes(*arguments)
                return real(*arguments, **options)
            real(*arguments, **options)
            comes()
            return None

        return call

    pipeline.run_stage = begun
    for where, name in PLACES[moment]:
        setattr(where, name, counted(getattr(where, name)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    kills, attempt = json.loads(sys.argv.pop(1)), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(kills) and kills[attempt][0] == int(os.environ["RANK"]):
        kill(*kills[attempt][1:])
    cli.main()
