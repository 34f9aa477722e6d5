"""Reward functions that a benchmark listens to: asked in its own process, where what they saw can be read afterwards.

Shared by learning.py and long_run.py. A run itself asks a function in a process of its own.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from plaudit.rewards import sources
from plaudit.rewards.texts.answers import ScoreItem, matched


class HereScorer:
    """`MODULE:NAME`, called here."""

    def __init__(self, function: str):
        self.name = f"reward function {function}"
        module, _, name = function.partition(":")
        self._function = vars(importlib.import_module(module))[name]

    def score(self, items: Sequence[ScoreItem]) -> dict[str, float]:
        return matched(self.name, [item.id for item in items], self._function([item.as_json() for item in items]))


@contextmanager
def functions_asked_here() -> Iterator[None]:
    """In this block the functions of a recipe are asked in this process."""
    with patch.object(sources, "FunctionScorer", HereScorer):
        yield
