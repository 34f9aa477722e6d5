"""Settings of an adapter."""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.config import StrictConfig, of_stage

AdapterStage = Literal["sft", "reward", "ppo"]


class LoraSettings(StrictConfig):
    """A LoRA adapter (Hu et al. 2021, arXiv:2106.09685): W + (alpha/r)·B·A, B starting at zero."""

    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; all-linear means every linear layer but the LM head."""


class LoraOfStage(StrictConfig):
    """What is otherwise in one stage; null is as in the others."""

    r: int | None = Field(None, ge=1)
    """Rank of the update."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update."""
    target_modules: str | list[str] | None = None
    """Names of the layers that get an adapter."""


class LoraConfig(LoraSettings):
    """The adapters that SFT (merged at its end), the reward model and the policy train on the shared base."""

    stages: dict[AdapterStage, LoraOfStage | None] = Field({})
    """Exceptions by stage (sft, reward, ppo), each with these keys; null for sft or reward trains every weight (full
    fine-tuning)."""

    @model_validator(mode="after")
    def _policy_is_an_adapter(self) -> "LoraConfig":
        if self.stages.get("ppo", self) is None:
            raise ValueError("stages.ppo=null: the policy is an adapter beside its reference; give keys of its own")
        return self

    def of(self, stage: AdapterStage) -> LoraSettings | None:
        if self.stages.get(stage, self) is None:
            return None
        return LoraSettings(**of_stage(self, self.stages.get(stage)).model_dump(exclude={"stages"}))
