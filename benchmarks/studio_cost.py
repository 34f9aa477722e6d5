"""By how much a studio slows the trainer that it watches.

A trainer loses to it in two ways, and both are measured:

- Where it has all cores, it loses the time that the studio itself takes: a second, and an update that is logged. A page
  is open on the curves, as a browser holds it.
- Where cores are free, it loses what the studio throws out of their shared caches and takes of the memory's bandwidth.
  That is too little to be seen beside the noise of any machine. So the studio is asked again and again, which keeps it
  busy all the time: what a second of its work costs the trainer beside it is what the trainer's own processor time says
  of updates with such a studio and without one. Which of two updates in a row is the one with it is drawn.

    python benchmarks/studio_cost.py RUN [--pairs 150] [KEY=VALUE ...]

RUN is a finished run; its PPO is run again in a scratch folder, with KEY=VALUE changed (ppo.batch_size=32, say). The
intervals are of 95 %, by resampling the pairs. Only processor time is counted, so other work beside it does no harm.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plaudit.label.web.serve import Place, listen
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.ppo import loop
from plaudit.stages.recipe import load_recipe
from plaudit.view.studio.server import serve

CALM_S = 30
"""How long the studio is watched while nothing is logged."""
WARM, FEW = 3, 30
"""Updates in which buffers and caches grow, and those with a page that only looks on."""
ASKING = 4
"""Questions at a time, which is enough to keep the studio busy."""
EVERY_S = (1, 2, 5)
"""For how many seconds an update the sum is said."""


def train(run: Path, keys: list[str], told: Connection) -> None:
    """PPO that waits for its turn before every update, and says what the one before took of the processor."""
    with (run.parent / "said.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    began = time.process_time()

    def turn() -> None:
        nonlocal began
        told.send(time.process_time() - began)
        told.recv()
        began = time.process_time()

    loop.release_memory = turn  # what the loop calls once an update, when all of it is written
    run_pipeline(load_recipe(run / "recipe.yaml", [f"folder={run}", *keys]), Flags(start="ppo"))


def studio(run: Path, told: Connection) -> None:
    with listen(Place(port=0)) as listening:
        serve([run], listening, told.send)


def visit(link: str, told: Connection) -> None:
    """A page on the curves: what it asks once, then the stream of new rows. Once told to, it asks again and again."""
    url = f"{link.partition('/open/')[0]}/api/runs"
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    opener.open(link).read()

    def follow() -> None:
        logs = json.load(opener.open(f"{url}/run/curves"))["logs"]
        at = urllib.parse.quote(json.dumps({log: one["end"] for log, one in logs.items()}))
        with opener.open(f"{url}/run/live?at={at}") as stream:
            while stream.readline():
                continue

    def hammer() -> None:
        while opener.open(url).read() and opener.open(f"{url}/run/curves").read():
            continue

    threading.Thread(target=follow, daemon=True).start()
    told.send(os.getpid())
    told.recv()
    for _ in range(ASKING):
        threading.Thread(target=hammer, daemon=True).start()
    threading.Event().wait()


def processor_seconds(pid: int) -> float:
    """User and system time of a process, by the kernel's count of ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def update(trainer: Connection) -> float:
    trainer.send("go")
    return float(trainer.recv())


def looks_on(trainer: Connection, server: int) -> tuple[float, float]:
    """Seconds of the studio that a second costs in which nothing is logged, and what an update costs on top."""
    before, began = processor_seconds(server), time.monotonic()
    time.sleep(CALM_S)
    second = (processor_seconds(server) - before) / (time.monotonic() - began)
    before, began = processor_seconds(server), time.monotonic()
    for _ in range(FEW):
        update(trainer)
    took = processor_seconds(server) - before - second * (time.monotonic() - began)
    return second, max(0.0, took / FEW)


def beside(trainer: Connection, server: int, page: int, pairs: int) -> np.ndarray:
    """Of every pair: seconds of the trainer without and with a busy studio, and those that the studio had."""
    draw, rows = np.random.default_rng(0), []
    for _ in range(pairs):
        row = [0.0, 0.0, 0.0]
        for busy in draw.permutation(2):
            for pid in (server, page):
                os.kill(pid, signal.SIGCONT if busy else signal.SIGSTOP)
            before = processor_seconds(server)
            row[busy] = update(trainer)
            row[2] += processor_seconds(server) - before
        rows.append(row)
    return np.array(rows)


def report(second: float, each: float, rows: np.ndarray) -> None:
    draws = np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))
    without, busy, studio = rows[draws].sum(axis=1).T
    low, high = np.quantile((busy - without) / studio, (0.025, 0.975))
    cost = (rows[:, 1] - rows[:, 0]).sum() / rows[:, 2].sum()
    print(f"the studio takes {1000 * second:.2f} ms a second, and {1000 * each:.2f} ms an update")
    print(f"{len(rows)} pairs of an update of {rows[:, 0].mean():.2f} s, the studio busy for {rows[:, 2].mean():.2f} s")
    print(f"a second of it costs a trainer beside it {1000 * cost:.0f} ms ({1000 * low:.0f} to {1000 * high:.0f})")
    for every in EVERY_S:
        taken = 100 * (second + each / every)
        beside = f"{taken * cost:.3f} % ({taken * low:.3f} to {taken * high:.3f})"
        print(f"an update every {every} s: slowed by {beside} where cores are free,", end=" ")
        print(f"by {taken * (1 + cost):.2f} % of one core (at most {taken * (1 + high):.2f}) where none is")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=150)
    asked, changed = parser.parse_known_args()
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None  # what a second thread takes is no studio's doing
    begun: list[Any] = []

    def begin(work: Any, *given: Any) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        begun.append(multiprocessing.get_context("fork").Process(target=work, args=(*given, theirs), daemon=True))
        begun[-1].start()
        theirs.close()  # so that one that ends is heard
        return ours

    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        shutil.copytree(asked.run, run, ignore=shutil.ignore_patterns(".lock", "ppo", "evaluate"))
        try:
            trainer = begin(train, run, [f"ppo.updates={WARM + FEW + 2 * asked.pairs + 1}", *changed])
            trainer.recv()
            for _ in range(WARM):
                update(trainer)
            link = begin(studio, run).recv().split()[-1]
            server = begun[-1].pid
            page = begin(visit, link)
            pid = page.recv()
            time.sleep(5)  # the first answers, which a page asks for once
            second, each = looks_on(trainer, server)
            page.send("ask")
            report(second, each, beside(trainer, server, pid, asked.pairs))
        except EOFError:
            raise SystemExit((run.parent / "said.txt").read_text()[-2000:]) from None
        finally:
            for process in reversed(begun):  # who asks ends before who answers
                process.kill()
                process.join()


if __name__ == "__main__":
    main()
