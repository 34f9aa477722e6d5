"""Checkpoints under a disk that fills up, fails or changes a byte, and under a kill: an older whole one is always
there, and nothing with a final name is partial."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plaudit.run import checkpoint
from plaudit.run.checkpoint import Checkpoint, Checkpoints

Files = list[tuple[str, bytes]]


class Killed(BaseException):
    """What a SIGKILL does to the code after it: none of it runs."""


def files_of(step: int) -> Files:
    return [("state.json", json.dumps({"step": step}).encode()), ("tensors.bin", bytes([step % 251]) * 1000)]


def checkpoints(folder: Path, keep: int = 2) -> tuple[Checkpoints, list[str]]:
    said: list[str] = []
    return Checkpoints(folder, keep, said.append), said


def contents(found: Checkpoint | None) -> tuple[int, Files] | None:
    return None if found is None else (found.step, [(name, found.read(name)) for name in found.names])


def whole_by_hand(folder: Path) -> bool:
    """Whether a folder with a final name holds all that its manifest lists; by another way than the code's."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    there = {file.name for file in folder.iterdir()} - {"manifest.json"}
    return there == set(listed) and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"] for name, entry in listed.items()
    )


def final_folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.name.isdigit())


TOUCHES_THE_DISK = ("write", "fsync", "replace", "mkdir", "rmdir", "unlink")


@contextmanager
def failing(at: int | None, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """The names of the calls that touch the disk; the `at`-th raises. After a kill all later ones raise too: a process
    that is dead cleans nothing up."""
    calls: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if at is not None and (len(calls) == at or (error is Killed and len(calls) > at)):
                raise error()
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "BLOCK", 300)
        for name in TOUCHES_THE_DISK:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield calls


def disk_full() -> BaseException:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_fails() -> BaseException:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def second_save(folder: Path, keep: int, at: int | None, error: Callable[[], BaseException]) -> list[str]:
    """Save step 1, then step 2 with the fault; the calls of the second."""
    saves, _ = checkpoints(folder, keep)
    saves.save(1, files_of(1))
    with failing(at, error) as calls:
        if at is None:
            saves.save(2, files_of(2))
        else:
            with pytest.raises((OSError, Killed)):
                saves.save(2, files_of(2))
    return calls


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("error", [disk_full, disk_fails, Killed], ids=["ENOSPC", "EIO", "kill"])
def test_at_every_call_that_touches_the_disk_a_whole_checkpoint_survives(
    tmp_path: Path, error: Callable[[], Any], keep: int
) -> None:
    """For every k: whatever fails at the k-th call, the newest whole one is the old or the new, and no other."""
    total = len(second_save(tmp_path / "count", keep, None, error))
    new_ones = 0
    for k in range(1, total + 1):
        folder = tmp_path / f"at-{k}"
        second_save(folder, keep, k, error)
        assert all(whole_by_hand(one) for one in final_folders(folder)), f"call {k}"
        again, said = checkpoints(folder, keep)
        found = contents(again.newest())
        assert found in ((1, files_of(1)), (2, files_of(2))), f"call {k}"
        assert said == []
        new_ones += found == (2, files_of(2))
        again.save(3, files_of(3))  # and the folder works on
        assert contents(again.newest()) == (3, files_of(3))
        assert {one.name for one in folder.iterdir()} <= {"00000001", "00000002", "00000003"}
        assert len(final_folders(folder)) <= keep
    assert 0 < new_ones < total


def test_the_injector_sees_every_write_and_every_flush(tmp_path: Path) -> None:
    calls = second_save(tmp_path, 1, None, disk_full)
    blocks = [-(-file.stat().st_size // 300) for file in (tmp_path / "00000002").iterdir()]
    assert calls.count("write") == sum(blocks) >= 6
    assert calls.count("fsync") == 3 + 2  # the files, their folder, its parent
    assert calls.count("replace") == 2  # the new one's, and the old one's that goes
    assert calls.count("unlink") == 3 + 1  # the old one's files, and one that shows what mode new files get


def test_the_files_come_back_byte_for_byte_and_the_cost_is_told(tmp_path: Path) -> None:
    saves, said = checkpoints(tmp_path)
    written = saves.save(7, files_of(7))
    assert contents(saves.newest()) == (7, files_of(7))
    assert written.bytes == sum(len(data) for _, data in files_of(7))
    assert written.seconds > 0
    assert said == []


@pytest.mark.parametrize("name", ["state.json", "tensors.bin", "manifest.json"])
def test_a_flipped_byte_in_any_file_is_refused_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    """Every byte of the small files, every 97th of the large one; every bit of it in turn."""
    saves, _ = checkpoints(tmp_path)
    saves.save(1, files_of(1))
    saves.save(2, files_of(2))
    file = tmp_path / "00000002" / name
    good = file.read_bytes()
    for place in range(0, len(good), 1 if len(good) < 500 else 97):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        file.write_bytes(bad)
        again, said = checkpoints(tmp_path)
        assert contents(again.newest()) == (1, files_of(1)), f"byte {place}"
        assert len(said) == 1
        assert name in said[0]
        assert "00000002" in said[0]
    file.write_bytes(good)
    assert contents(checkpoints(tmp_path)[0].newest()) == (2, files_of(2))


@pytest.mark.parametrize("name", ["state.json", "tensors.bin", "manifest.json"])
def test_a_missing_or_shorter_file_is_refused(tmp_path: Path, name: str) -> None:
    for shorter in (True, False):
        folder = tmp_path / str(shorter)
        saves, said = checkpoints(folder)
        saves.save(1, files_of(1))
        saves.save(2, files_of(2))
        file = folder / "00000002" / name
        file.write_bytes(file.read_bytes()[:-1]) if shorter else file.unlink()
        assert contents(saves.newest()) == (1, files_of(1))
        assert name in said[0]


def test_a_torn_one_is_replaced_when_its_step_comes_again_and_never_kept_in_place_of_a_whole_one(
    tmp_path: Path,
) -> None:
    saves, _ = checkpoints(tmp_path)
    for step in (1, 3, 5):
        saves.save(step, files_of(step))
    (tmp_path / "00000005" / "state.json").write_text("{}")
    again, said = checkpoints(tmp_path)
    assert contents(again.newest()) == (3, files_of(3))
    assert len(said) == 1
    again.save(4, files_of(4))
    assert [one.name for one in final_folders(tmp_path)] == ["00000003", "00000004"]
    again.save(5, files_of(5))
    assert contents(again.newest()) == (5, files_of(5))


def test_nothing_whole_is_nothing(tmp_path: Path) -> None:
    saves, said = checkpoints(tmp_path / "none")
    assert saves.newest() is None
    saves.save(1, files_of(1))
    (tmp_path / "none/00000001/state.json").unlink()
    assert saves.newest() is None
    assert "state.json is missing" in said[0]


def test_another_process_waits_for_the_step_that_the_first_one_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a newer one; and no longer than a shared folder may take to show it."""
    monkeypatch.setattr(checkpoint, "WAIT", 0.0)
    saves, _ = checkpoints(tmp_path)
    for step in (1, 2):
        saves.save(step, files_of(step))
    assert contents(saves.at(1)) == (1, files_of(1))
    with pytest.raises(OSError, match="00000003 is whole for the first process and not for this one"):
        saves.at(3)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_as_asked_are_kept(tmp_path: Path, keep: int) -> None:
    saves, _ = checkpoints(tmp_path, keep)
    for step in range(1, 6):
        saves.save(step, files_of(step))
    assert [int(one.name) for one in final_folders(tmp_path)] == list(range(6 - keep, 6))
