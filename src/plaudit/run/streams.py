"""What a process prints must never end it: a terminal that lacks a character shows another in its place."""

import contextlib
import io
import os
import sys
from typing import TextIO


def lenient_streams() -> None:
    """Standard output and error replace what their encoding cannot show, standard input what it cannot read; one that
    the caller closed is the null device, so that no file that is opened later takes its number."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), "r" if name == "stdin" else "w"))
        elif hasattr(stream, "reconfigure"):  # a test's or a notebook's own stream may have nothing to set
            with contextlib.suppress(io.UnsupportedOperation):  # standard input that was read from already
                stream.reconfigure(errors="replace")
