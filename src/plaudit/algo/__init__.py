"""Pure tensor maths: no configuration, no device, no logger. Shapes are in the names: B sequences, T positions."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """`plaudit.algo.losses` needs no import of its own."""
    if find_spec(f"plaudit.algo.{name}") is None:
        raise AttributeError(f"module 'plaudit.algo' has no attribute {name!r}")
    return import_module(f"plaudit.algo.{name}")
