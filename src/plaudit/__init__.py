"""Plaudit: classic RLHF, from demonstrations to a policy trained with PPO, on one machine first."""

from importlib.metadata import version

__version__ = version("plaudit")
