"""What the system says of a path, in one line with path and fix; advice about a run only where one was going."""

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import make_tokenizer, tiny_rows, write_lines
from plaudit.algo import worked
from plaudit.data import files
from plaudit.data.cache import cache_folder
from plaudit.data.files import whole_folder, write_text
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError, system_says, writing
from plaudit.guard import doctor
from plaudit.records import Demonstration, Message, Prompt
from plaudit.run.checkpoint import Checkpoints
from plaudit.run.metrics import Metrics
from plaudit.run.stopping import Interrupted
from plaudit.stages import pipeline

Plaudit = Callable[..., SimpleNamespace]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with everything that is no file."""
    home = tmp_path / "odd"
    (home / "folder").mkdir(parents=True)
    (home / "file").write_text("x")
    (home / "nowhere").symlink_to("gone")
    (home / "loop").symlink_to("loop")
    (home / "device").symlink_to("/dev/zero")
    (home / "deep").symlink_to("folder/../pipe")
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        # The address of a socket is short, the test's folder is not.
        here = Path.cwd()
        os.chdir(home)
        one.bind("socket")
        os.chdir(here)
    return home


NO_FILE = "is a pipe, a socket or a device, not a file; give a file"
ODD = {
    "missing": "no such {}; check the name",
    "nowhere": "is a link to gone, which is not there; give a file",
    "loop": "is a link that leads back to itself; give what it should lead to",
    "pipe": NO_FILE,
    "deep": NO_FILE,
    "socket": NO_FILE,
    "device": NO_FILE,
    "file/x": "a part of this path is a file, where a folder is needed; give another path",
    "x" * 300: "the name is longer than the file system allows; give a shorter one",
}


@pytest.fixture
def soon() -> Iterator[None]:
    """What waits for a pipe is ended."""
    signal.alarm(300)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("name", "says"), ODD.items(), ids=[name[:9] for name in ODD])
def test_what_is_no_file_is_named_wherever_one_is_read(name: str, says: str, odd: Path, plaudit: Plaudit) -> None:
    path = odd / name
    for arguments, what in (
        (("run", path), "recipe file"),
        (("data", "check", path), "file"),
        (("data", "convert", path, "--to", odd / "to.jsonl"), "file"),
        (("label", "add", path, "--database", odd / "labels.sqlite"), "file or folder"),
    ):
        done = plaudit(*arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith(f"Error: {path}: {says.format(what)}"), done.err


@pytest.mark.usefixtures("soon")
def test_a_pipe_among_the_data_of_a_recipe_is_named(
    write_recipe: Callable[..., Path], odd: Path, plaudit: Plaudit
) -> None:
    recipe = write_recipe(odd / "desk")
    for key in ("prompts", "demonstrations"):
        done = plaudit("run", recipe, f"data.{key}={odd / 'pipe'}")
        assert (done.code, done.err) == (2, f"Error: {odd / 'pipe'}: {NO_FILE}\n")


@pytest.mark.parametrize("name", ["folder", "pipe", "device", "socket"])
def test_what_is_no_file_is_not_replaced_by_one(name: str, odd: Path) -> None:
    """`--html /dev/stdout` by root would leave a file in the place of the device."""
    before = os.lstat(odd / name)
    with pytest.raises(UserError, match=f"{odd / name}: is a .*; give a file"):
        write_text(odd / name, "new")
    assert os.lstat(odd / name) == before
    assert not list(odd.glob("*.part"))


Failing = Callable[[int, object], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """failing(errno, path): the disk does that to every command below, and to the stage of a run."""

    def fail(code: int, path: object) -> None:
        def call(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code), None if path is None else str(path))

        monkeypatch.setattr(worked, "worked_example", call)
        monkeypatch.setattr(doctor, "examine", call)
        monkeypatch.setattr(files, "convert", call)
        monkeypatch.setattr(pipeline, "run_stage", call)

    return fail


CACHES = {
    "a file": ("file", "File exists"),
    "below a file": ("file/cache", "Not a directory"),
    "a long name": ("x" * 300, "File name too long"),
    "a link to itself": ("loop", "File exists"),
}


@pytest.mark.parametrize(("name", "says"), CACHES.values(), ids=list(CACHES))
def test_a_cache_that_cannot_be_is_named_with_its_variable(
    name: str,
    says: str,
    odd: Path,
    plaudit: Plaudit,
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(odd / "desk")
    monkeypatch.setenv("PLAUDIT_CACHE", str(odd / name))
    done = plaudit("run", recipe)
    fix = "name another folder in PLAUDIT_CACHE"
    assert (done.code, done.err) == (2, f"Error: {odd / name}: the cache cannot be there ({says}); {fix}\n")


@pytest.mark.parametrize("below", ["", "rows.tmp"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_not_be_written_is_named(code: int, below: str, plaudit: Plaudit, failing: Failing) -> None:
    failing(code, cache_folder() / below)
    assert f"Error: {cache_folder()}: the cache cannot be there ({os.strerror(code)})" in plaudit("worked-example").err


FULL = {
    errno.ENOSPC: "No space left on device; free some",
    errno.EDQUOT: "this user's share of the disk is used up; free some",
    errno.EROFS: "is on a disk that can only be read; give another path",
    errno.EIO: "the disk fails to read or write it",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
    errno.EACCES: "this user may not read or write it; change its permissions, or give another path",
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
}


@pytest.mark.parametrize(("code", "says"), FULL.items(), ids=[errno.errorcode[code] for code in FULL])
def test_a_disk_that_fails_gives_advice_about_a_run_only_where_one_was_going(
    code: int, says: str, plaudit: Plaudit, failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    failing(code, tmp_path / "some")
    for arguments in (("worked-example",), ("doctor", tmp_path), ("data", "convert", "a", "--to", "b")):
        done = plaudit(*arguments)
        assert (done.code, done.err) == (2, f"Error: {tmp_path / 'some'}: {says}\n")
    done = plaudit("run", write_recipe(tmp_path))
    kept = "checkpoints and the stages that ended are kept"
    how = f"go on with `plaudit run {tmp_path / 'run/recipe.yaml'} --resume`"
    assert (done.code, done.err) == (2, f"Error: {tmp_path / 'some'}: {says}; {kept}; {how}\n")


def test_a_disk_that_fails_before_a_run_begins_gives_no_advice_about_it(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "read_data", call)
    done = plaudit("run", write_recipe(tmp_path))
    assert (done.code, done.err) == (2, "Error: No space left on device; free some\n")


def test_a_signal_gives_advice_about_a_run_only_where_one_was_going(
    plaudit: Plaudit, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(worked, "worked_example", call)
    monkeypatch.setattr(pipeline, "run_stage", call)
    assert (plaudit("worked-example").code, plaudit("worked-example").err) == (143, "Stopped.\n")
    done = plaudit("run", write_recipe(tmp_path))
    assert (done.code, done.err.startswith("Stopped; checkpoints"), "--resume" in done.err) == (143, True, True)


@pytest.mark.parametrize("code", sorted(set(errno.errorcode) - {errno.EPIPE, errno.EINTR}))
def test_no_number_of_the_system_is_shown_as_it_is(code: int, plaudit: Plaudit, failing: Failing) -> None:
    failing(code, "/some/path")
    done = plaudit("worked-example")
    assert (done.code, done.err.count("\n"), "Errno" in done.err, "--resume" in done.err) == (2, 1, False, False)
    failing(code, None)
    assert "None" not in plaudit("worked-example").err


def test_a_name_that_is_bytes_or_two_is_shown(plaudit: Plaudit, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: object) -> None:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", b"/a.part", None, b"/a")

    monkeypatch.setattr(worked, "worked_example", call)
    assert plaudit("worked-example").err == "Error: /a: is a folder, where a file is needed; give a file\n"
    monkeypatch.setattr(worked, "worked_example", lambda: os.stat(999_999))
    assert plaudit("worked-example").err == "Error: Bad file descriptor\n"


def test_a_data_file_that_is_a_folder_and_a_folder_that_is_a_file(odd: Path, plaudit: Plaudit) -> None:
    data = write_lines(odd / "data.jsonl", tiny_rows()[1])
    done = plaudit("data", "convert", data, "--to", odd / "file" / "to.jsonl")
    assert (
        done.err == f"Error: {odd / 'file'}: is a file, where a folder is needed; give another path, or move the file\n"
    )
    assert plaudit("run", odd / "folder").err.startswith(
        f"Error: {odd / 'folder'}: is a folder, where a file is needed"
    )


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """`ulimit -f`: what a full disk does, by a limit that needs no disk of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log_rows(path: Path) -> None:
    with Metrics(path) as log:
        log.log(text="x" * 2000)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: write_text(path, "x" * 2000),
    "log": log_rows,
    "checkpoint": lambda path: Checkpoints(path, 1, print).save(1, [("state.json", b"x" * 2000)]),
    "tokenizer": lambda path: save(path, make_tokenizer().save_pretrained),
    "tensors": lambda path: save(path, lambda part: save_file({"weight": torch.zeros(1000)}, part / "m.safetensors")),
    "demonstrations": lambda path: DemonstrationTable.of([Demonstration(PROMPT, "x" * 20_000)]),
}
PROMPT = Prompt("a", (Message("user", "hello"),), "kind", "train")


def save(path: Path, write: Callable[[Path], Any]) -> None:
    with whole_folder(path) as part:
        write(part)


@pytest.mark.parametrize("what", WRITERS)
def test_what_takes_no_more_is_named_whoever_writes_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "some"))
    with pytest.raises(OSError, match="File too large") as found, files_of_at_most(1000):
        WRITERS[what](tmp_path / "some")
    assert system_says(found.value).startswith(str(tmp_path / "some"))
    assert system_says(found.value).endswith(FULL[errno.EFBIG])


def test_a_connection_that_breaks_while_a_file_is_written_is_not_said_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError) as found, writing(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert system_says(found.value) == "Connection reset by peer"
