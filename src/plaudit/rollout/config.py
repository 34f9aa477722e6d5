"""Settings of sampling: one law for every stage that samples, so that PPO samples what was ranked."""

from typing import Literal

from pydantic import Field

from plaudit.config import StrictConfig, of_stage

SamplingStage = Literal["sft", "preferences", "ppo", "evaluate"]


class SamplingOfStage(StrictConfig):
    """What is otherwise in one stage; null is as in the others."""

    temperature: float | None = Field(None, gt=0)
    """Sampling temperature."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest reply in tokens."""


class SamplingConfig(StrictConfig):
    """How replies are sampled, in every stage that samples."""

    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities are taken at the same one."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest reply in tokens, its end-of-turn token included."""
    stages: dict[SamplingStage, SamplingOfStage] = Field({})
    """Exceptions by stage (sft, whose samples are for people to read; preferences; ppo; evaluate), each with these
    keys."""

    def of(self, stage: SamplingStage) -> "SamplingConfig":
        return of_stage(self, self.stages.get(stage))
