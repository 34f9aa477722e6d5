"""Plaudit: classic RLHF, from demonstrations to a policy trained with PPO, on one machine first.

    run = plaudit.run("recipe.yaml")
    run.policy().reply(["Tell me about tea."])
    run.reward_model().score(["Tell me about tea."], ["It is a leaf."])

What has weight is imported when it is first used. The types of these names are in __init__.pyi.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from plaudit.errors import UserError

__all__ = ["Policy", "RewardModel", "Run", "UserError", "algo", "run"]
_API = "plaudit.api.run"


class _Called(ModuleType):
    """The folder `plaudit.run`, whose name `plaudit.run(recipe)` has to share."""

    def __call__(self, *recipe: Any, **overrides: Any) -> Any:
        return import_module(_API).run(*recipe, **overrides)


import_module("plaudit.run")
sys.modules["plaudit.run"].__class__ = _Called


def __getattr__(name: str) -> Any:
    if name == "__version__":  # the metadata of packages takes longer to import than all of this
        return import_module("importlib.metadata").version("plaudit")
    if name == "algo":
        return import_module("plaudit.algo")
    if name in __all__:
        return getattr(import_module(_API), name)
    raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
