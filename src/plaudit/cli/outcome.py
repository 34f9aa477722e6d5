"""How a command ends: the exit code, and the one line that says why."""

import errno
import os
import select
import sys

from plaudit.data.cache import cache_folder
from plaudit.errors import RankLost, RunStopped, UserError, path_of, system_says
from plaudit.run.stopping import Interrupted

EXPECTED = (UserError, RunStopped, RankLost, OSError, Interrupted)
"""What ends in one line; anything else is our bug and keeps its traceback."""
UNREAD = 141
"""The shell's code for a program that SIGPIPE ended, which is how other tools end when nobody reads them any more. The
signal itself stays ignored: it would also end a run whose endpoint or browser hangs up."""


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and line of one of `EXPECTED`."""
    if isinstance(error, Interrupted):
        return error.exit_code, f"Stopped: {error.saved}." if error.saved else f"Stopped{_go_on(error)}."
    if isinstance(error, RankLost):
        return 4, f"Stopped: {error}"
    if isinstance(error, RunStopped):
        return 3, f"Stopped by a guard: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return 2, f"Error: {_of_cache(error) or system_says(error)}{_go_on(error)}"
    return 2, f"Error: {error}"


def unread_says(error: BaseException | None) -> str | None:
    """What there is to say where nobody reads the output any more: something only where a run was going."""
    return f"Stopped: nobody reads its output any more{_go_on(error)}" if error and _go_on(error) else None


def _go_on(error: BaseException) -> str:
    """What a run that was going says of itself (run/folder.py)."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _of_cache(error: OSError) -> str | None:
    """In the cache no name was chosen by the user, so the fix is another one."""
    cache, path = cache_folder(), path_of(error)
    if path is None:
        return None
    forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    misplaced = error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
    inside = path == cache or cache in path.parents
    if not (inside and (forbidden or misplaced)) and not (forbidden and path in cache.parents):
        return None
    return f"{cache}: the cache cannot be there ({error.strerror}); name another folder in PLAUDIT_CACHE"


def unread(error: BaseException | None) -> bool:
    """Whether output could not be written because its reader has gone; it is then written nowhere, so that the end of
    the process is quiet. `error` is what ended the command."""
    lost, found = isinstance(error, BrokenPipeError), False
    for stream in (sys.stdout, sys.stderr):
        try:
            file = stream.fileno()
        except (OSError, ValueError):  # a test's own stream
            continue
        reader = select.poll()
        reader.register(file, 0)
        try:
            stream.flush()
            # rich, where it prints a help page, has put the null device there already.
            null = os.fstat(file).st_rdev == os.stat(os.devnull).st_rdev
            gone = lost and (null or any(event & select.POLLERR for _, event in reader.poll(0)))
        except BrokenPipeError:
            gone = True
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)
            found = True
    return found
