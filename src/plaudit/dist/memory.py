"""What happens when memory runs out: the work is tried again with half the micro-batch, or stops with an estimate.

Only an allocator that says so can be answered. Linux itself may kill the process instead (a run then goes on from its
checkpoint with --resume; set a smaller micro-batch first).
"""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from plaudit.dist.machine import peak_rss_mb, release_memory
from plaudit.errors import RunStopped

T = TypeVar("T")
# What torch's CPU allocator and the C++ library say; CUDA's has a type of its own.
SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def halving(attempt: Callable[[], T], smaller: Callable[[str], None]) -> T:
    """`attempt()`; each time memory runs out in it, `smaller` is told how and makes the next attempt need less.

    `smaller` raises (see `too_large`) when it cannot.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        # Beyond the except clause: there the traceback would hold on to the tensors of the attempt.
        release_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller(reason)


def too_large(where: str, reason: str, size: int, change: str) -> RunStopped:
    """The stop when micro-batches of `size` do not fit and no smaller ones can be had, with an estimate of what would
    do."""
    peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else peak_rss_mb()
    asked = re.search(r"allocate (\d+) bytes", reason)
    more = int(asked[1]) / 1e6 if asked else 0.0
    about = f"about {peak + more:,.0f} MB would do" if more else f"more than the {peak:,.0f} MB of its peak is needed"
    return RunStopped(f"{where}: out of memory with micro-batches of {size}; {about}; {change} ({reason})")
