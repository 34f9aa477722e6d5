"""The exceptions that are one line for the user: the one they can cause, and the two that end a run; and what the
system says of a path, as a sentence.

Everything that a recipe, a file, a model folder or the machine can get wrong is raised as `UserError` with a
message that names the place, the value and the fix. The command line prints it as one line and exits with 2; what a
guard stops, and the loss of another process of the run, are one line too. Any other exception is our bug and keeps its
traceback.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class UserError(ValueError):
    """A mistake in what the user gave us; the message says where it is and how to mend it."""


class RankLost(RuntimeError):
    """Another process of this run has ended or fallen silent; its own message says why."""


class EngineLost(RankLost):
    """The servers that sample for this run are gone and do not come back."""


class RunStopped(RuntimeError):
    """A run-time guard found a number that must hold and does not; the message names it, its value and its bound."""


class Mistakes:
    """Checks that do not need each other, each in a `with` of its own: the first UserError stops them, or with `gather`
    all are found and the block ends at its own."""

    def __init__(self, *, gather: bool = False):
        self.gather = gather
        self.found: list[str] = []

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> bool:
        if not self.gather or not isinstance(error, UserError):
            return False
        self.found.append(str(error))
        return True


_SAYS = {
    errno.ENOENT: "no such file or folder; check the name",
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed; give another path",
    errno.EEXIST: "is a file, where a folder is needed; give another path, or move the file",
    errno.EISDIR: "is a folder, where a file is needed; give a file",
    errno.ENOTEMPTY: "is a folder that is not empty; give another one",
    errno.EACCES: "this user may not read or write it; change its permissions, or give another path",
    errno.EPERM: "this user may not do that to it; change its permissions, or give another path",
    errno.ENAMETOOLONG: "the name is longer than the file system allows; give a shorter one",
    errno.ELOOP: "is a link that leads back to itself; give what it should lead to",
    errno.ENXIO: "is a pipe, a socket or a device, not a file; give a file",
    errno.ENOSPC: "No space left on device; free some",
    errno.EDQUOT: "this user's share of the disk is used up; free some",
    errno.EROFS: "is on a disk that can only be read; give another path",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
    errno.EIO: "the disk fails to read or write it",
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    errno.ENFILE: "this machine has too many open files; close some programs",
}

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def path_of(error: OSError) -> Path | None:
    """The path that the system names: of two, the one that was meant; of an open file, none."""
    named = error.filename2 or error.filename
    return Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that takes no more, or fails, in the block is told of with `path`: of an open file the system names none,
    and libraries in Rust (safetensors, tokenizers) raise what is no OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_DISKS and path_of(error) is None:
            error.filename = str(path)
        raise
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told and (code := int(told[1])) in _OF_DISKS:
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def system_says(error: OSError) -> str:
    """What went wrong and how to mend it, after the path where the system names one."""
    path, says = path_of(error), _SAYS.get(error.errno or 0, error.strerror or str(error))
    if path is None:
        return f"a file {says}" if says.startswith("is ") else says
    if error.errno == errno.ENOENT and path.is_symlink():
        says = _leads_nowhere(path)
    return f"{path}: {says}"


def no_file(path: Path, what: str = "file") -> str | None:
    """Why `path` is no file (called `what`) whose end can be read, with the fix; None when it is one. A pipe would be
    waited for."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return _leads_nowhere(path) if path.is_symlink() else f"no such {what}; check the name"
        return _SAYS.get(error.errno or 0, str(error))
    except ValueError:  # a NUL
        return f"no such {what}; check the name"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return _SAYS[errno.EISDIR]
    return _SAYS[errno.ENXIO]


def _leads_nowhere(link: Path) -> str:
    return f"is a link to {os.readlink(link)}, which is not there; give a file"
