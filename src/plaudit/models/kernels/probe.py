"""How far two computations of the same thing lie apart: what every choice of a fast path by a probe compares."""

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ over all elements, in float32; NaN, below no bound, where both are zero."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
