"""What a worker of Ray does, struck in the middle: in so-manieth call of a stage that does work, as `killed_rank.py`
has it, it sends a signal to itself or to the process that launched it, once: a file says that it was. After one that
asks for an end it waits until that was heard, however quick the run is."""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from killed_rank import kill

from plaudit.launch import ray
from plaudit.run.stopping import STOP

HEARD = 60.0


def strike(whom: str, number: int) -> None:
    os.kill(os.getpid() if whom == "worker" else int(os.environ["LAUNCHER"]), number)
    until = time.monotonic() + HEARD
    while STOP.asked is None and time.monotonic() < until:
        time.sleep(0.05)


def work(config: dict[str, Any]) -> None:
    rank, stage, calls, whom, number = json.loads(os.environ["STRIKE"])
    once = Path(config["scratch"], "struck")
    if int(os.environ["RANK"]) == rank and not once.exists():
        once.touch()
        kill(stage, calls, partial(strike, whom, number))
    REAL(config)


REAL = ray.work
"""Before `launch` is given the one above."""
