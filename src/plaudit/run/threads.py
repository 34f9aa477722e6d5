"""Work beside the main thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begun(work: Callable[[], T], name: str) -> Future[T]:
    """`work`, begun in a thread of its own that the process does not wait for when it ends; whatever goes wrong in it,
    an exit too, those who ask for its result hear of it."""
    going: Future[T] = Future()

    def do() -> None:
        try:
            going.set_result(work())
        except BaseException as error:
            going.set_exception(error)

    threading.Thread(target=do, daemon=True, name=name).start()
    return going
