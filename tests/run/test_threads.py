"""Work beside the main thread: its result, and whatever goes wrong in it, reach those who wait."""

import sys
import threading

import pytest

from plaudit.run.threads import begun


def test_a_result_comes_from_a_thread_that_nobody_waits_for_at_the_end() -> None:
    at_work = begun(threading.current_thread, "aside")
    assert at_work.result(timeout=10).daemon and at_work.result().name == "aside"


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_errors_and_exits_are_heard_of(error: type[BaseException]) -> None:
    def fails() -> None:
        sys.exit(3) if error is SystemExit else int("x")

    with pytest.raises(error):
        begun(fails, "aside").result(timeout=10)
