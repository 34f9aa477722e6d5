"""What every choice of a fast path asks: whether it may be taken, and how far two computations lie apart."""

import os

import torch
from torch import Tensor, nn

DECLINES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the code of a model raises where it was not made for what a probe asks of it."""


def libraries_only() -> bool:
    """Whether the libraries' own paths are asked for: the environment variable PLAUDIT_PLAIN is 1."""
    return os.environ.get("PLAUDIT_PLAIN") == "1"


def damaged(model: nn.Module) -> str | None:
    """The first parameter that holds a NaN or an infinity; None where all are numbers."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            least, most = torch.aminmax(parameter.detach())  # a NaN goes through, and nothing is copied
            if not (torch.isfinite(least) and torch.isfinite(most)):
                return name
    return None


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ over all elements, in float32; NaN, below no bound, where both are zero."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
