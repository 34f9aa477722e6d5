"""What a worker of Ray does, struck in the middle: in a moment of a stage, as `killed_rank.py` has them, it sends a
signal to itself or to the process that launched it. A file counts the signals. After one that asks for an end it waits
until that was heard, however quick the run is."""

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


def strike(counted: Path, whom: str, number: int) -> None:
    with counted.open("a") as handle:
        handle.write("x")
    os.kill(os.getpid() if whom == "worker" else int(os.environ["LAUNCHER"]), number)
    until = time.monotonic() + HEARD
    while STOP.asked is None and time.monotonic() < until:
        time.sleep(0.05)


def work(config: dict[str, Any]) -> None:
    """STRIKES is a JSON list with a strike for each time that the workers are started, [rank, stage, calls, moment,
    whom, signal]."""
    strikes, counted = json.loads(os.environ["STRIKES"]), Path(config["scratch"], "struck")
    done = counted.stat().st_size if counted.exists() else 0
    if done < len(strikes) and strikes[done][0] == int(os.environ["RANK"]):
        _, stage, calls, moment, whom, number = strikes[done]
        kill(stage, calls, moment, partial(strike, counted, whom, number))
    REAL(config)


REAL = ray.work
"""Before `launch` is given the one above."""
