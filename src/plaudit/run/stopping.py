"""Ctrl-C and SIGTERM: a stage that can save itself is asked to save and leave; anything else is left at once.

The second signal leaves at once in any case. Nothing is lost but work since the last checkpoint: checkpoints are whole
or not at all (run/checkpoint.py).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(BaseException):
    """A signal ended the work. Not KeyboardInterrupt: typer ends the process on that one without letting us say what
    is kept. `saved` says what was saved before, where something was."""

    def __init__(self, signum: int, saved: str | None = None):
        super().__init__(signum, saved)
        self.signum, self.saved = signum, saved

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


def say_heard(signum: int) -> None:
    """What is done about the first signal. Not through a console: it may have come while that was writing."""
    text = f"\n{SIGNALS[signal.Signals(signum)]}: saving after this step; once more to leave at once\n"
    os.write(2, text.encode())


class Stop:
    """What the process was asked to do; there is one, `STOP`, because signals belong to the process."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._saves_itself = False

    def hear(self, signum: int, _frame: FrameType | None) -> None:
        """The handler of both signals."""
        if not self._saves_itself or self.asked is not None:
            raise Interrupted(signum)
        self.asked = signum
        say_heard(signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The work in this block looks at `asked` after every step, saves itself and raises Interrupted; what came
        after its last look is raised when it has ended."""
        self._saves_itself = True
        try:
            yield
        finally:
            asked, self.asked, self._saves_itself = self.asked, None, False
        if asked is not None:
            raise Interrupted(asked)


STOP = Stop()


@contextmanager
def signals_heard() -> Iterator[None]:
    """Both signals are heard by `STOP` in this block."""
    before = {number: signal.signal(number, STOP.hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
