"""The dashboard's numbers by a process of their own, which stays: to begin takes as long as to compute them.

Nobody who labels waits for it, and a while after the last question its memory is free again. A line in asks; a line out
answers: JSON, or after "!" what is wrong.
"""

import json
import os
import select
import subprocess
import sys
import time
import traceback

from plaudit.errors import UserError
from plaudit.label.db.database import open_as_it_is, snapshot
from plaudit.label.db.ledger import read
from plaudit.label.quality.dashboard import dashboard

DATABASE = "PLAUDIT_LABEL_DATABASE"
"""The variable that hands the database over: a password in a command line could be read by other users."""
IDLE_SECONDS = 600.0
_LONGEST_SECONDS = 3600.0
_CHILD = (sys.executable, "-c", "from plaudit.label.quality.process import answer; answer()")


class NumbersProcess:
    """`ask` it for the numbers of a database; one at a time. It is begun by the first question, and again after it has
    ended. `end` it with the server."""

    def __init__(self, database: str):
        self.database = database
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self) -> bytes:
        """The dashboard as JSON; UserError where it cannot be had."""
        line = self._asked() or self._asked()  # it may just have ended, since nobody had asked for long
        if not line:
            raise UserError("the numbers cannot be computed; see what the server printed")
        if line.startswith(b"!"):
            raise UserError(line[1:].decode())
        return line

    def end(self) -> None:
        """Nobody asks any more."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _asked(self) -> bytes:
        """A line of its answer; nothing when it has ended."""
        if self._child is None:
            found = {**os.environ, DATABASE: self.database}
            self._child = subprocess.Popen(_CHILD, env=found, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        asks, answers = self._child.stdin, self._child.stdout
        assert asks is not None and answers is not None
        line = b""
        try:
            asks.write(b"\n")
            asks.flush()
            if select.select([answers], [], [], _LONGEST_SECONDS)[0]:
                line = answers.readline().rstrip()
        except BrokenPipeError:
            line = b""
        if not line:
            self.end()
        return line


def answer() -> None:
    """The process: answers until nobody asks."""
    engine = None
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and sys.stdin.readline():
        try:
            engine = engine or open_as_it_is(os.environ[DATABASE])
            with snapshot(engine) as connection:
                line = json.dumps(dashboard(read(connection, labelled=True), time.time()))
        except UserError as error:
            line = f"!{error}".replace("\n", " ")
        except Exception as error:  # a database that is away may be back for the next question
            traceback.print_exc()
            line = f"!the numbers cannot be computed: {type(error).__name__}; see what the server printed"
        print(line, flush=True)
