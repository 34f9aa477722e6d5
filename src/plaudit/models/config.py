"""Settings of an adapter, and the formats of the base beneath it."""

from typing import Literal

from pydantic import Field

from plaudit.config import StrictConfig, of_stage

AdapterStage = Literal["sft", "reward", "ppo"]
Quantise = Literal["nf4", "int8"]


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
    """Exceptions by stage (sft, reward, ppo), each with these keys; null trains every weight (full fine-tuning)."""

    def of(self, stage: AdapterStage) -> LoraSettings | None:
        if self.stages.get(stage, self) is None:
            return None
        return LoraSettings(**of_stage(self, self.stages.get(stage)).model_dump(exclude={"stages"}))
