"""Settings that the stages which train share."""

from typing import Literal

from pydantic import Field

from plaudit.config import StrictConfig

Schedule = Literal["cosine", "linear", "constant"]


class CheckpointConfig(StrictConfig):
    """How often a running stage saves itself, so that it can go on after a kill."""

    every_minutes: float = Field(0.25, gt=0)
    """Minutes between two saves; stretched where saving would take more than a fiftieth of the time."""
    every_steps: int | None = Field(None, ge=1)
    """Saves also after so many optimiser steps (SFT, reward model), updates (PPO) or batches (sampling)."""
    keep: int = Field(2, ge=1)
    """Checkpoints of the running stage that stay; while a new one is written there is one more."""
    keep_finished: bool = False
    """Keep those of a stage that ended, optimiser and all; otherwise they are deleted."""
