"""What every choice of a fast path asks: whether it may be taken, and how far two computations lie apart."""

import os

from torch import Tensor


def libraries_only() -> bool:
    """Whether the libraries' own paths are asked for: the environment variable PLAUDIT_PLAIN is 1."""
    return os.environ.get("PLAUDIT_PLAIN") == "1"


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ over all elements, in float32; NaN, below no bound, where both are zero."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
