"""The process that holds a run's models: begun with the first question, ended when nobody asks for a while.

The studio's own process loads no model. One run's models are there at a time; a question to another run ends them.
"""

import json
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from plaudit.errors import UserError

IDLE_S = 300.0
ANSWER_S = 900.0
"""The longest that loading and sampling may take."""


class ModelProcess:
    """`ask` it; `close` at the end. A question while another one is answered is refused."""

    def __init__(self, idle_s: float = IDLE_S, answer_s: float = ANSWER_S):
        self.idle_s, self.answer_s = idle_s, answer_s
        self.folder: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def ask(self, folder: Path, question: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The replies, as `Models.answers` (models.py) gives them. UserError with what the process says is wrong."""
        if not self._lock.acquire(blocking=False):
            raise UserError("the models are answering another question; wait for that answer")
        try:
            if self._timer is not None:
                self._timer.cancel()
            told = self._answer(self._running(folder), json.dumps(question).encode() + b"\n")
            self._timer = threading.Timer(self.idle_s, self.close)
            self._timer.daemon = True
            self._timer.start()
        finally:
            self._lock.release()
        if "error" in told:
            raise UserError(told["error"])
        return list(told["replies"])

    def close(self) -> None:
        """End the process, and with it what the models take of the memory. Waits for an answer that is on its way."""
        with self._lock:
            self._end()

    def _running(self, folder: Path) -> subprocess.Popen[bytes]:
        if self.process is not None and (self.process.poll() is not None or folder != self.folder):
            self._end()
        if self.process is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 it is closed where the process is ended
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
            command = [sys.executable, "-m", "plaudit.view.arena.models", str(folder)]
            self.process, self.folder = subprocess.Popen(command, bufsize=0, **pipes), folder
        return self.process

    def _answer(self, process: subprocess.Popen[bytes], question: bytes) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        line = b""
        try:
            process.stdin.write(question)
            while not line.endswith(b"\n"):
                if not select.select([process.stdout], [], [], self.answer_s)[0]:
                    self._end()
                    raise UserError(f"no answer in {self.answer_s:g} s; ask for fewer tokens or fewer policies")
                part = process.stdout.read(1 << 16)
                if not part:
                    raise BrokenPipeError
                line += part
        except BrokenPipeError as error:
            code, said = process.wait(), self._last_line()
            self._end()
            raise UserError(f"the process with the models has ended (code {code}): {said}; ask again") from error
        return dict(json.loads(line))

    def _last_line(self) -> str:
        assert self._said is not None
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _end(self) -> None:
        if self.process is None or self._said is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._said):
            assert pipe is not None
            pipe.close()
        self.process, self._said = None, None
