"""Settings that the stages which train share."""

from typing import Literal

from pydantic import Field

from plaudit.config import StrictConfig, of_stage

Schedule = Literal["cosine", "linear", "constant"]
TrainingStage = Literal["sft", "reward", "ppo"]


class OptimiserOfStage(StrictConfig):
    """What is otherwise in one stage; null is as in the others."""

    schedule: Schedule | None = None
    """How the learning rate moves after the warm-up."""
    warmup_steps: int | None = Field(None, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float | None = Field(None, gt=0)
    """The gradient is scaled down to this norm."""


class OptimiserConfig(StrictConfig):
    """What AdamW does alike in SFT, the reward model and PPO; their learning rates are their own."""

    schedule: Schedule = "cosine"
    """After the warm-up the rate falls to a tenth of its peak on a half cosine or a line, or it stays."""
    warmup_steps: int = Field(4, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    stages: dict[TrainingStage, OptimiserOfStage] = Field({})
    """Exceptions by stage (sft, reward, ppo), each with these keys."""

    def of(self, stage: TrainingStage) -> "OptimiserConfig":
        return of_stage(self, self.stages.get(stage))


class CheckpointConfig(StrictConfig):
    """How often a running stage saves itself, so that it can go on after a kill."""

    every_minutes: float = Field(0.25, gt=0)
    """Minutes between two saves; stretched where saving would take more than a fiftieth of the time."""
    every_steps: int | None = Field(None, ge=1)
    """Saves also after so many optimiser steps (SFT, reward model), updates (PPO) or batches (sampling)."""
