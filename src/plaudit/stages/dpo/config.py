"""DPO's settings. What would do nothing beside another setting is refused, with both values named."""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.config import AutoOrCount, StrictConfig


class DPOConfig(StrictConfig):
    """Direct preference optimisation: the policy learns the rankings without a reward model."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """Of a pair: Bradley-Terry of implicit rewards (DPO), or (h − 1/2β)² of the difference h of log-ratios (IPO)."""
    beta: float = Field(0.1, gt=0)
    """What a nat of log π/π_ref is worth in reward: a smaller one lets the policy go further from the SFT model."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The chance that a label is turned round."""
    ties: Literal["drop", "half"] = "drop"
    """What is learnt of a tie: nothing, or a pair that either side wins with probability one half."""
    epochs: int = Field(1, ge=1)
    """Passes over the training rankings."""
    rankings_per_step: int = Field(8, ge=1)
    """Rankings in one optimiser step."""
    rankings_per_micro_batch: AutoOrCount = "auto"
    """Rankings in one forward and backward pass, must divide rankings_per_step; auto: as many as there is memory for.
    Changes memory, not the result."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW; the adapter, the schedule and the law that is sampled are those of stage ppo."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""

    @model_validator(mode="after")
    def _divisible(self) -> "DPOConfig":
        many = self.rankings_per_micro_batch
        if many != "auto" and self.rankings_per_step % many:
            raise ValueError(
                f"rankings_per_micro_batch={self.rankings_per_micro_batch} does not divide "
                f"rankings_per_step={self.rankings_per_step}"
            )
        return self
