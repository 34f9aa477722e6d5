"""A Python function as a reward, in a process of its own that lives as long as the scorer.

What the function does to its process (working directory, threads, random numbers, number formats, signals, streams; a
crash, a leak, an exit) cannot bend the run. Its module is imported once and keeps its globals from call to call. Both
sides talk in lines of JSON over a socket of their own, so the function may print what it likes; the process ends with
the run's, however that ends, because then its socket does.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from plaudit.errors import RunStopped, UserError
from plaudit.rewards.texts.answers import ScoreItem, matched
from plaudit.run.streams import lenient_streams

GIVEN_TO_END = 5.0
"""Seconds that the process gets to end by itself when it is not needed any more."""
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from plaudit.rewards.texts import function as f; "
_CHILD += "f.serve(int(sys.argv[2]), sys.argv[3])"


class FunctionScorer:
    """A Python function on texts: a list of `ScoreItem.as_json()` in, {id: score} or [{id, score}] out."""

    def __init__(self, function: str):
        """`function` is MODULE:NAME of something installed, or FILE.py:NAME; UserError when it cannot be imported."""
        self.name = f"reward function {function}"
        self._process = _Process(function)
        weakref.finalize(self, self._process.end)
        if (ready := self._process.answer()) is None:
            raise UserError(f"{self.name}: its process ended while it was imported ({self._process.how_it_ended()})")
        if "refused" in ready:
            raise UserError(ready["refused"])

    @property
    def process_id(self) -> int:
        return self._process.id

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        answer = self._process.call([item.as_json() for item in items])
        if answer is None:
            raise RunStopped(
                f"{self.name} ended its process ({self._process.how_it_ended()}); let it return scores, or raise an "
                "exception that says why there are none"
            )
        if "stopped" in answer:
            stop = RunStopped(f"{self.name}{answer['stopped']}")
            for note in answer["notes"]:
                stop.add_note(note)
            raise stop
        # Matched by the child already; once more, for nothing that comes from there is trusted.
        return matched(self.name, [item.id for item in items], answer["scores"])


class _Process:
    """The run's side: starts the process, asks it, ends it."""

    def __init__(self, function: str):
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", _CHILD, json.dumps(sys.path), str(theirs.fileno()), function],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Sets of strings are in the same order in every run, so that a resumed one can be the same.
                env={"PYTHONHASHSEED": "0", **os.environ},
            )
        self.id = self._child.pid
        self._lines = self._socket.makefile("rb")
        self._calls = 0
        self._waits = True  # for an answer

    def call(self, items: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What the function answers; None when its process is gone."""
        self._calls += 1
        self._waits = True
        try:
            self._socket.sendall(json.dumps({"call": self._calls, "items": items}).encode() + b"\n")
        except OSError:
            return None
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        """The answer to the last call; None when there will be none."""
        while not select.select([self._lines], [], [], 0.5)[0]:
            # What the function itself has started may hold the socket open.
            if self._child.poll() is not None:
                return None
        try:
            answer: dict[str, Any] = json.loads(self._lines.readline())
        except (OSError, ValueError):
            return None
        # A function that forks and returns twice must not answer the next call with this one's scores.
        assert answer["call"] == self._calls, "one answer a call"
        self._waits = False
        return answer

    def how_it_ended(self) -> str:
        """By which exit code or signal; the process is ended where it has only lost its socket."""
        try:
            code = self._child.wait(GIVEN_TO_END)
        except subprocess.TimeoutExpired:
            self.end()
            return "it closed its connection"
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def end(self) -> None:
        """Let it end, or end it: at once where it is still at work."""
        self._lines.close()
        self._socket.close()
        try:
            self._child.wait(0 if self._waits else GIVEN_TO_END)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


# --- the function's side ---


def serve(file: int, function: str) -> None:
    """The life of the process: import `function`, then answer calls that come by the socket `file` until it closes."""
    # The run itself hears Ctrl-C and SIGTERM, and ends this process when it has saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _unheard)
    lenient_streams()
    ours, connection = os.getpid(), socket.socket(fileno=file)
    name = f"reward function {function}"

    def send(answer: dict[str, Any]) -> None:
        if os.getpid() != ours:
            os._exit(0)  # a copy that the function forked and let return
        connection.sendall(json.dumps(answer).encode() + b"\n")

    try:
        called = _imported(function)
    except UserError as error:
        send({"call": 0, "refused": str(error)})
        return
    send({"call": 0})
    for line in connection.makefile("rb"):
        call = json.loads(line)
        send({"call": call["call"], **_answer(name, called, call["items"])})


def _unheard(_number: int, _frame: object) -> None:
    # Not SIG_IGN, which programs that the function starts would inherit.
    ...


def _answer(name: str, function: Callable[[list[dict[str, Any]]], object], items: list[dict[str, Any]]) -> Any:
    """{"scores"}, or {"stopped": why, as the end of a sentence that begins with the name, "notes"}."""
    ids = [item["id"] for item in items]
    try:
        return {"scores": matched(name, ids, function(items))}
    except RunStopped as error:
        return {"stopped": str(error).removeprefix(name), "notes": []}
    except BaseException as error:
        return {"stopped": _raised(error), "notes": [_traced(error)]}


def _raised(error: BaseException) -> str:
    place = _place(error.__traceback__)
    if isinstance(error, SystemExit):
        return f" called sys.exit({_text(error)}){place}; let it return scores, or raise an exception that says why not"
    text = _text(error)
    return f" raised {type(error).__name__}{': ' if text else ''}{text}{place}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "(its text cannot be shown)"


def _place(trace: TracebackType | None) -> str:
    """The line of the function itself: the frame after ours."""
    frames = traceback.extract_tb(trace)
    return f" ({frames[1].filename}, line {frames[1].lineno})" if len(frames) > 1 else ""


def _traced(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return "(its traceback cannot be shown)"


def _imported(function: str) -> Callable[[list[dict[str, Any]]], object]:
    source, _, name = function.rpartition(":")
    if not source or not name:
        raise UserError(f"reward function {function!r}: write MODULE:NAME, for example rewards:score")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
        found = getattr(module, name, None)
    except BaseException as error:
        raise UserError(
            f"reward function {function!r}: module {source!r} cannot be imported "
            f"({type(error).__name__}: {_text(error)}); put the file beside the recipe, or install the package"
        ) from error
    if found is None:
        public = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(
            f"reward function {function!r}: module {source!r} has no {name!r}; it has {', '.join(public) or 'none'}"
        )
    if not callable(found):
        raise UserError(f"reward function {function!r}: {name!r} is {type(found).__name__}, not a function")
    return found


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file, under a name of its own: a package may have its; its neighbours are importable."""
    name = f"plaudit_reward_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and the like look it up
    sys.path.append(str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module
