"""Numbers that take long: the last ones are there at once, and are computed once for all who ask."""

import io
import threading
from collections.abc import Sequence

import pytest

from plaudit.errors import UserError
from plaudit.label.web.shared import aside
from plaudit.label.web.shared.aside import Jobs, Remembered


def test_who_asks_while_new_numbers_are_made_has_the_old_ones() -> None:
    go, made = threading.Event(), []

    def slow() -> bytes:
        made.append(None)
        if len(made) > 1:
            assert go.wait(10)
        return f"numbers {len(made)}".encode()

    numbers = Remembered(slow, seconds=0, patience=0.01)
    assert numbers.get() == b"numbers 1"
    assert [numbers.get() for _ in range(3)] == [b"numbers 1"] * 3
    threading.Timer(0.05, go.set).start()
    assert numbers.get(wait=True) == b"numbers 2"
    assert len(made) == 2  # three who asked and one who waited: computed once


def test_who_waits_hears_of_an_error_and_the_next_one_is_tried_anew() -> None:
    def make() -> bytes:
        if len(made) < 2:
            made.append(None)
            raise UserError("no such database")
        return b"there"

    made: list[None] = []
    numbers = Remembered(make, seconds=60)
    for _ in range(2):
        with pytest.raises(UserError, match="no such database"):
            numbers.get()
    assert numbers.get() == b"there"


def test_an_export_that_takes_long_is_asked_for_again_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    go, made = threading.Event(), []

    def slow(database: str, arguments: Sequence[str]) -> tuple[io.BytesIO, str]:
        made.append(arguments)
        assert go.wait(10)
        return io.BytesIO(b"rows"), "1 row"

    monkeypatch.setattr(aside, "run", slow)
    jobs = Jobs()
    first, second = (jobs.get("ann", "db", ["export"], 0.01) for _ in range(2))
    assert isinstance(first, float) and isinstance(second, float) and second > first
    go.set()
    done = jobs.get("ann", "db", ["export"], 10)
    assert not isinstance(done, float) and (done[0].read(), done[1]) == (b"rows", "1 row")
    assert len(made) == 1
    jobs.get("ann", "db", ["export"], 10)  # asked for anew: another moment
    assert len(made) == 2


def test_an_export_that_fails_says_so_and_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(database: str, arguments: Sequence[str]) -> tuple[io.BytesIO, str]:
        raise UserError("flag 'x': not in this database")

    jobs = Jobs()
    monkeypatch.setattr(aside, "run", fails)
    with pytest.raises(UserError, match="flag 'x'"):
        jobs.get("ann", "db", ["export"], 10)
    monkeypatch.setattr(aside, "run", lambda *_: (io.BytesIO(b"there"), ""))
    done = jobs.get("ann", "db", ["export"], 10)
    assert not isinstance(done, float) and done[0].read() == b"there"
