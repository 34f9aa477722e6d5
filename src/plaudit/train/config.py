"""Settings that the stages which train share."""

from typing import Any, Literal

from pydantic import Field, model_validator

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


class RoundsConfig(StrictConfig):
    """Rounds: the policy's own replies are ranked, the reward model learns from all rankings so far, PPO again."""

    count: int = Field(1, ge=1)
    """How many rounds; `rounds: 3` says the same. `plaudit round RUN` adds one to a run that ended."""
    number: int = Field(1, ge=1)
    """Which round a recipe is of: Plaudit writes it into the recipe of a round's folder."""
    prompts: Literal["new", "same"] = "new"
    """Training prompts of a round: those that no round has had replies to, as far as there are some, or round 1's."""
    earlier: float = Field(0.25, ge=0, le=1)
    """Share of a round's replies that the SFT model and the policies before the last one write; the last policy writes
    the others."""
    start: Literal["sft", "last"] = "sft"
    """Where PPO starts in a round: the SFT model again, or the policy that the round before kept."""
    reference: Literal["sft", "last"] = "sft"
    """What the KL penalty holds it to: the SFT model, or (with start=last) the policy that it starts from."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_alone(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _nothing_dead(self) -> "RoundsConfig":
        if self.number > self.count:
            raise ValueError(f"number={self.number} is beyond count={self.count}")
        if self.count == 1 and (dead := self.given()):
            raise ValueError(f"{', '.join(dead)} would do nothing with count=1: round 1 has no round before it")
        if self.reference == "last" and self.start == "sft":
            raise ValueError(
                "reference=last with start=sft would fine PPO for where it starts; set start=last too, or reference=sft"
            )
        return self

    @property
    def goes_on(self) -> bool:
        """Whether PPO starts from the policy of the round before."""
        return self.number > 1 and self.start == "last"

    @property
    def moves_reference(self) -> bool:
        """Whether that policy is the reference too."""
        return self.number > 1 and self.reference == "last"
