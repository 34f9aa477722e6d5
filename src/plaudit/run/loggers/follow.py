"""The JSON lines of a run, sent on to its loggers while it goes. The lines stay the truth.

A thread of its own reads what the stages have written, once a second, and sends the rows that are new. So a logger that
is slow, or away, holds no stage up; what it missed it gets later. `loggers.json` in the run's folder says how many rows
of every log each logger has had. A resumed run writes the rows after its checkpoint once more, bit for bit the same:
they are counted, not sent, and no step stands twice. A stage that begins anew makes other rows of the same steps, which
no logger could take back: then the logger begins a new run of its own, with all rows that are there.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from plaudit.data.files import read_json, write_json
from plaudit.errors import UserError
from plaudit.run.display import console
from plaudit.run.folder import ORDER, SUMMARY, stages_after
from plaudit.run.loggers.backends import Logger, LoggerName, Opened, opener
from plaudit.run.metrics import is_number

STATE = "loggers.json"
EVERY_S = 1.0
SHARE = 200
"""The thread sleeps at least so many times the seconds that its last look took."""
AT_ONCE = 100
"""Rows that are counted together: writing the count down takes longer than sending one."""
LOGS = {"metrics.jsonl": "", "evaluations.jsonl": "validation/"}
"""The logs of a stage that are sent, and what stands before their names."""


@dataclass
class _Sent:
    """One logger and what it has had: rows a log, by the log's path in the run's folder."""

    name: LoggerName
    id: str
    rows: dict[str, int]
    logger: Logger | None = None
    said: bool = False


@dataclass
class Loggers:
    """Use it as a context manager around the stages. `open_with` gives how a logger is opened, for tests."""

    folder: Path
    names: Sequence[LoggerName]
    recipe: Mapping[str, Any]
    open_with: Callable[[LoggerName], Callable[[Opened], Logger]] = opener
    every_s: float = EVERY_S
    _sent: list[_Sent] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Loggers":
        path = self.folder / STATE
        known = read_json(path) if path.is_file() else {}
        for name in self.names:
            had = known.get(name, {"id": self._new_id(), "rows": {}})
            self._sent.append(_Sent(name, had["id"], had["rows"]))
            self._open(self._sent[-1])
        if self._sent:
            self._thread = threading.Thread(target=self._follow, name="loggers", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self.send()
        for one in self._sent:
            if one.logger is not None:
                self._safely(one, one.logger.close)

    def begin(self, stage: str, *, resume: bool) -> None:
        """A stage is about to begin: where it does so anew, a logger that knows rows of it, or of a later one, goes on
        in a new run."""
        later = () if resume else stages_after(stage)
        for one in self._sent:
            if not any(log.partition("/")[0] in later for log in one.rows):
                continue
            with self._lock:
                if one.logger is not None:
                    self._safely(one, one.logger.close)
                one.id, one.rows = self._new_id(), {}
                self._open(one)

    def send(self) -> None:
        """Send every row that is there and was not sent."""
        with self._lock:
            for one in self._sent:
                self._safely(one, partial(self._send_to, one))

    def _follow(self) -> None:
        took = 0.0
        while not self._done.wait(max(self.every_s, SHARE * took)):
            started = time.thread_time()
            self.send()
            took = time.thread_time() - started

    def _send_to(self, one: _Sent) -> None:
        assert one.logger is not None
        for log, rows in _logs(self.folder):
            new, had = [*rows(one.rows.get(log, 0))], one.rows.get(log, 0)
            for start in range(0, len(new), AT_ONCE):
                part, sent = new[start : start + AT_ONCE], 0
                # Counted first: after a kill between the two rows are missing there rather than twice.
                self._count(one, log, had + start + len(part))
                try:
                    for row in part:
                        _send_row(one.logger, log, row)
                        sent += 1
                finally:
                    if sent < len(part):
                        self._count(one, log, had + start + sent)

    def _count(self, one: _Sent, log: str, rows: int) -> None:
        one.rows[log] = rows
        write_json(self.folder / STATE, {one.name: {"id": one.id, "rows": one.rows} for one in self._sent})

    def _open(self, one: _Sent) -> None:
        opened = Opened(one.id, str(self.recipe["name"]), self.folder, self.recipe)
        try:
            one.logger = self.open_with(one.name)(opened)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"loggers: {one.name} cannot be opened ({error}); mend that, or leave it out") from error

    def _safely(self, one: _Sent, job: Callable[[], None]) -> None:
        """A logger that fails does not end a run of hours; that it fails is said, once."""
        try:
            job()
        except Exception as error:
            if not one.said:
                console.print(f"loggers: {one.name}: {error}; the run goes on, its logs have every row", soft_wrap=True)
            one.said = True

    def _new_id(self) -> str:
        return f"{self.folder.name}-{uuid.uuid4().hex[:8]}"


Rows = Callable[[int], Iterator[Any]]
"""The rows of a log from that one on."""


def _logs(folder: Path) -> Iterator[tuple[str, Rows]]:
    """Everything that is sent: its path in the run's folder, and its rows."""
    for stage in (path for name in ORDER if (path := folder / name).is_dir()):
        for name in LOGS:
            if (file := stage / name).is_file():
                yield f"{stage.name}/{name}", _lines(file)
        for file in sorted(stage.glob("validation/*.jsonl")):
            yield f"{stage.name}/validation/{file.name}", _whole(file)
        if (file := stage / SUMMARY).is_file():
            yield f"{stage.name}/{SUMMARY}", _whole(file)


def _lines(file: Path) -> Rows:
    def rows(start: int) -> Iterator[Any]:
        # A last line without its end is still being written.
        yield from (json.loads(line) for line in file.read_bytes().split(b"\n")[start:-1])

    return rows


def _whole(file: Path) -> Rows:
    """A file that is written at once is one row: its path."""
    return lambda start: iter([file] if start == 0 else [])


def _send_row(logger: Logger, log: str, row: Any) -> None:
    stage, _, name = log.partition("/")
    if name in LOGS:
        step = next(key for key in ("update", "step") if key in row)
        member = f"{row['member']}/" if row.get("member") else ""
        start = f"{stage}/{LOGS[name]}{member}"
        numbers = {
            start + key: float(value) for key, value in row.items() if is_number(value) and key not in (step, "member")
        }
        logger.log(f"{stage}/{step}", row[step], numbers)
    elif name == SUMMARY:
        found = {f"{stage}/summary/{key}": float(value) for key, value in read_json(row).items() if is_number(value)}
        logger.log(f"{stage}/end", 0, found)
    else:
        rows = [json.loads(line) for line in row.read_text(encoding="utf-8").split("\n") if line]
        kept = [
            {"prompt": one["prompt"], "reply": one["text"]} | {key: one[key] for key in one if is_number(one[key])}
            for one in rows
        ]
        logger.replies(f"{stage}/replies", int(row.stem), kept)
