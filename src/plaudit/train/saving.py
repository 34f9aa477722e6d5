"""How a stage saves itself while it runs, and goes on after a kill as if there had been none.

A stage's state is the tensors and numbers that its next step depends on; random numbers are functions of the seed and
the place (rng.py), so there is no generator to save. Its logs are cut where the checkpoint was made. What it was made
with (recipe, data, code, versions, machine) is in it too, and must be the same when the stage goes on: then every later
bit is. Seconds are apart from the state (times.json), because no two runs share them.

    saver = Saver.open(run, "sft")
    with saver:
        metrics = saver.log("metrics.jsonl")
        for step in range(saver.step, steps):
            ...
            saver.checkpoint(step + 1, lambda: State(tensors, numbers, seconds))
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from plaudit.errors import UserError, writing
from plaudit.run.checkpoint import Checkpoint, Checkpoints
from plaudit.run.display import console
from plaudit.run.folder import CHECKPOINTS, RECIPE
from plaudit.run.metrics import Metrics
from plaudit.run.provenance import differences
from plaudit.run.stopping import STOP, Interrupted
from plaudit.train.micro_batches import STOPPED
from plaudit.train.run import Run

SAVES = "saves.jsonl"
"""In the run folder: what every save of the run cost."""
STATE, TIMES, TENSORS = "state.json", "times.json", "tensors-{:04d}.safetensors"
TENSOR_BYTES = 1 << 28
"""Tensors go into files of about this size, so that saving needs no second copy of all of them in memory."""
KEEP = 2
"""Checkpoints of the running stage that stay; while a new one is written there is one more."""
SHARE = 50
"""By the clock a stage saves at most every so many times the seconds that its last save took."""
ALONE = ("rejection", "dpo")
"""Stages that a command of their own goes on with."""
INEXACT = ("code", "versions", "machine")
"""Parts of what a checkpoint was made with that --inexact lets differ."""


@dataclass(frozen=True)
class State:
    """What a stage's next step depends on: tensors by name and JSON values; `times` are the seconds so far."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, Any] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named prefix/NAME, by NAME."""
        start = f"{prefix}/"
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as prefix/NAME."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


@torch.no_grad()
def load_parameters(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Put saved weights into the parameters of the same names."""
    assert parameters.keys() == saved.keys(), parameters.keys() ^ saved.keys()
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


class Saver(ExitStack[bool | None]):
    """The checkpoints and logs of one stage. `state` is what it goes on from, None where it begins; `step` is how many
    steps were done then."""

    def __init__(self, run: Run, stage: str, inputs: Mapping[str, str]):
        """Of a stage that begins; `open` is for one that may go on."""
        super().__init__()
        self._stage, self._run, self._config, self._ranks = stage, run.folder.path, run.checkpoints, run.ranks
        self._folder = run.folder.stage(stage)
        # As it comes back from a file: tuples and paths are lists and texts there.
        self._made_with = json.loads(json.dumps({**run.made_with, "inputs": dict(inputs)}))
        self._logs: dict[str, tuple[Metrics, bool]] = {}
        self._starts: dict[str, int] = {}
        self._checkpoints = Checkpoints(self._run / stage / CHECKPOINTS, KEEP, _say)
        self.state: State | None = None
        self.step = 0
        self._saved: int | None = None
        self._since, self._cost = time.monotonic(), 0.0

    @classmethod
    def open(cls, run: Run, stage: str, inputs: Mapping[str, str] | None = None) -> "Saver":
        """Clear away what an earlier try left half-written or is not asked to go on from, and read what it is to.

        `inputs` are hashes of what the stage works on, beyond what the run knows. Of the ranks that do the stage
        together the first one writes, and all go on from the checkpoint that it names. UserError when that was made
        with anything else.
        """
        saver, ranks = cls(run, stage, inputs or {}), run.ranks
        if ranks.first and run.resume:
            saver._checkpoints.clear()  # a stage whose last step is saved saves no more, and would leave it
        elif ranks.first:
            shutil.rmtree(run.folder.path / stage / CHECKPOINTS, ignore_errors=True)
        (saver._folder / STOPPED).unlink(missing_ok=True)
        if run.resume and (found := saver._found()) is not None:
            saver.state, saver.step = saver._restored(found, run), found.step
            saver._saved = found.step
        return saver

    def _found(self) -> Checkpoint | None:
        """The newest checkpoint by the first rank's word: the others read that one."""
        newest = self._checkpoints.newest() if self._ranks.first else None
        step = json.loads(self._ranks.from_first(json.dumps(newest and newest.step)))
        if self._ranks.first or step is None:
            return newest
        return self._checkpoints.at(step)

    def __enter__(self) -> "Saver":
        self.enter_context(STOP.deferred())
        return self

    def log(self, name: str, *, timed: bool = False) -> Metrics:
        """The log of this name in the stage's folder, cut where the checkpoint was made; `timed` for one that holds
        seconds, whose length no two runs share. Asked again, it is the same; it is closed with the saver."""
        if name in self._logs:
            return self._logs[name][0]
        # The logs of the other ranks are thrown away, and have no beginning here.
        metrics = Metrics(self._folder / name, self._starts.get(name, 0) if self._ranks.first else 0)
        self._logs[name] = self.enter_context(metrics), timed
        return metrics

    def checkpoint(self, step: int, state: Callable[[], State], *, last: bool = False) -> None:
        """Save `state()` after `step` when it is due, when the stage was asked to stop, and after the `last` step.

        Raises Interrupted when it was asked to stop.
        """
        # The signal that any rank has had, 0 for none: all leave after the same step.
        asked = max(int(text) for text in self._ranks.gathered(str(STOP.asked or 0)))
        by_steps = self._config.every_steps is not None and step % self._config.every_steps == 0
        by_time = time.monotonic() - self._since >= max(60 * self._config.every_minutes, SHARE * self._cost)
        if self._ranks.first and step != self._saved and (last or asked or by_steps or by_time):
            self._save(step, state())
        if asked:
            path, command = self._run / RECIPE, self._stage if self._stage in ALONE else "run"
            raise Interrupted(asked, f"{self._stage} is saved; go on with `plaudit {command} {path} --resume`")

    def _save(self, step: int, state: State) -> None:
        written = self._checkpoints.save(step, self._files(state))
        row = {"stage": self._stage, "step": step, "bytes": written.bytes, "seconds": round(written.seconds, 3)}
        # A history of what was written, by every process of the run: it is not cut when the stage goes on.
        path = self._run / SAVES
        with writing(path), path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self._saved, self._cost, self._since = step, written.seconds, time.monotonic()

    def _files(self, state: State) -> Iterator[tuple[str, bytes]]:
        ends = {timed: {n: log.end() for n, (log, of) in self._logs.items() if of is timed} for timed in (False, True)}
        yield STATE, _json({"values": state.values, "logs": ends[False], "made_with": self._made_with})
        yield TIMES, _json({"values": state.times, "logs": ends[True]})
        part: dict[str, Tensor] = {}
        number = size = 0
        for name, tensor in state.tensors.items():
            part[name] = tensor.detach().cpu().contiguous()
            size += tensor.numel() * tensor.element_size()
            if size >= TENSOR_BYTES:
                yield TENSORS.format(number), save(part)
                part, number, size = {}, number + 1, 0
        if part:
            yield TENSORS.format(number), save(part)

    def _restored(self, found: Checkpoint, run: Run) -> State:
        state, times = json.loads(found.read(STATE)), json.loads(found.read(TIMES))
        self._check(found, state["made_with"], inexact=run.inexact)
        self._starts = {**state["logs"], **times["logs"]}
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(found.names) - {STATE, TIMES}):
            tensors |= load(found.read(name))
        _say(f"Resuming {self._stage} after step {found.step} ({found.path})")
        return State(tensors, state["values"], times["values"])

    def _check(self, found: Checkpoint, then: Mapping[str, Any], *, inexact: bool) -> None:
        changed = differences(then, self._made_with)
        soft = [text for key, text in changed.items() if key.partition(".")[0] in INEXACT]
        hard = [text for text in changed.values() if text not in soft]
        again = f"or run the stage again with --from {self._stage}"
        if hard:
            raise UserError(f"{found.path} was made with {_listed(hard)}; undo the change, {again}")
        if soft and not inexact:
            raise UserError(
                f"{found.path} was made with {_listed(soft)}: the result would no longer be the unbroken run's, bit "
                f"for bit; use what it was made with, accept that with --inexact, {again}"
            )
        if soft:
            _say(f"Going on with {_listed(soft)}: from here the run is not bit for bit the unbroken one")


def _listed(changes: list[str]) -> str:
    more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
    return "; ".join(changes[:5]) + more


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, allow_nan=False) + "\n").encode()


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)
