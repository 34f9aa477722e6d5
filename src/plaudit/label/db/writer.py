"""Writes, one transaction for many: threads that take waiting jobs together, commit once, and then answer each.

A commit costs a write through to the disk. SQLite takes one writer at a time, so its one thread puts up to `GROUP` jobs
that wait into one transaction, each behind a savepoint of its own: what fails is undone alone. PostgreSQL commits
several sessions' work in one go by itself; there each of a few threads does a job a transaction.

Nobody hears of a job's result before its commit. When a commit fails nobody knows whether it happened: every job of it
is reported as failed, and whoever asks again with the same client id gets what is stored.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from plaudit.label.db.database import Raced, writing

GROUP = 64
WAITING_MOST = 2_000
CHECKPOINT_SECONDS = 5.0
"""How long what was committed to SQLite may be in the -wal file alone: a copy of the .sqlite then has nearly all."""
ANSWER_SECONDS = 10.0
_TRIES = 8
T = TypeVar("T")
Job = Callable[[Connection], T]


class Busy(RuntimeError):
    """The database did not answer in time, or too many wait: to be tried again."""


_Waiting = tuple[Job[Any], Future[Any]]


class Writer:
    """`run` a job and wait for its commit; `close` at the end."""

    def __init__(self, engine: Engine):
        self.engine = engine
        sqlite = engine.dialect.name == "sqlite"
        self.group = GROUP if sqlite else 1
        self.sqlite = sqlite
        self._jobs: queue.Queue[_Waiting | None] = queue.Queue(WAITING_MOST)
        self._written = 0.0  # since when something waits to leave the -wal file
        count = 1 if sqlite else 4
        self._threads = [threading.Thread(target=self._work, name=f"writer-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def run(self, job: Job[T]) -> T:
        """The job's result, after the commit. Busy or the database's error when it cannot be had."""
        answer: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, answer))
        except queue.Full as error:
            raise Busy("too many requests wait for the database") from error
        try:
            return answer.result(ANSWER_SECONDS)
        except FutureTimeout as error:
            # It may still be written, and then a second try finds it; if it has not begun, it need not begin.
            answer.cancel()
            raise Busy("the database does not answer") from error

    def close(self) -> None:
        """Finish what waits, and stop."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if self.sqlite:
            self._checkpoint("TRUNCATE")

    def _checkpoint(self, how: str) -> None:
        """Move what is in the -wal file into the database's own; a reader that is in the way only delays it."""
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.connection.execute(f"PRAGMA wal_checkpoint({how})")
        except DBAPIError:
            return

    def _next(self) -> _Waiting | None:
        """The next job, None at the end."""
        while self.sqlite and self._written:
            left = self._written + CHECKPOINT_SECONDS - time.monotonic()
            try:
                return self._jobs.get(timeout=max(0.0, left)) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                self._checkpoint("PASSIVE")
                self._written = 0.0
        return self._jobs.get()

    def _work(self) -> None:
        while (first := self._next()) is not None:
            group = [first]
            while len(group) < self.group and not self._jobs.empty():
                other = self._jobs.get()
                if other is None:
                    self._jobs.put(None)
                    break
                group.append(other)
            self._written = self._written or time.monotonic()
            group = [(job, answer) for job, answer in group if answer.set_running_or_notify_cancel()]
            for (_, answer), result in zip(group, self._results(group) if group else (), strict=True):
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def _results(self, group: list[_Waiting]) -> list[Any]:
        try:
            return self._transaction(group)
        except (IntegrityError, Raced) as error:
            # One job broke a rule of the schema; the others of its group must not suffer for it.
            return [error] if len(group) == 1 else [self._results([waiting])[0] for waiting in group]
        # Whatever it was, those who wait must hear of it, and this thread must live.
        except Exception as error:
            return [error] * len(group)

    def _transaction(self, group: list[_Waiting]) -> list[Any]:
        for again in range(_TRIES, 0, -1):
            try:
                with writing(self.engine) as connection:
                    if len(group) == 1:
                        return [group[0][0](connection)]
                    return [_behind_savepoint(connection, job) for job, _ in group]
            except (IntegrityError, OperationalError, Raced) as error:
                # Another session was first; what it wrote can be seen in the next try.
                if not again - 1 or len(group) > 1 or not _raced(error):
                    raise
        raise AssertionError("unreachable")


def _raced(error: DBAPIError | Raced) -> bool:
    """A unique value that somebody else took, or PostgreSQL's serialisation failure or deadlock."""
    if isinstance(error, Raced):
        return True
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(error, IntegrityError) if state is None else state in ("23505", "40001", "40P01")


def _behind_savepoint(connection: Connection, job: Job[Any]) -> Any:
    """The result, or the exception, of a job that is undone alone when it fails."""
    savepoint = connection.begin_nested()
    try:
        result = job(connection)
    except (DBAPIError, Raced):
        raise  # the transaction is in doubt: undo it whole
    except Exception as error:
        savepoint.rollback()
        return error
    savepoint.commit()
    return result
