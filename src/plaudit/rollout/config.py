"""Settings of sampling: one law for every stage that samples, so that PPO samples what was ranked."""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.algo.names import SamplerCorrection
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


class RolloutConfig(StrictConfig):
    """Who samples the replies of preferences, PPO and evaluate: the law is the same."""

    engine: Literal["inprocess", "vllm"] = "inprocess"
    """inprocess decodes a merged copy of the policy; vllm asks servers of `plaudit launch vllm` (distributed.md)."""
    urls: list[str] = Field(["http://127.0.0.1:8000"], min_length=1)
    """Where the servers are; each samples its share."""
    sampler_correction: SamplerCorrection = "none"
    """How PPO weighs tokens that its own probability of differs from the sampler's: not at all, by the ratio of the two
    up to 2 (tis), or by the ratio between 0.5 and 5 and otherwise by 0 (icepop)."""
    lag: int = Field(0, ge=0, le=1)
    """How many updates old the policy is that samples for PPO: 0, or 1, and then the servers sample the replies of an
    update while the one before it trains (distributed.md)."""

    @model_validator(mode="after")
    def _possible(self) -> "RolloutConfig":
        if self.lag and self.engine == "inprocess":
            raise ValueError(
                f"lag={self.lag} lets servers sample while PPO trains, and engine=inprocess has none: set engine=vllm, "
                "or lag=0"
            )
        if self.lag and self.sampler_correction == "none":
            raise ValueError(
                f"lag={self.lag} trains on replies of the policy before, and sampler_correction=none takes them for "
                "those of the policy that trains: set sampler_correction=tis or icepop, or lag=0"
            )
        return self

    @model_validator(mode="after")
    def _nothing_dead(self) -> "RolloutConfig":
        if self.engine == "inprocess" and self.given("urls"):
            raise ValueError(f"urls={self.urls} would do nothing beside engine=inprocess: set engine=vllm")
        return self
