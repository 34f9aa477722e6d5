"""SFT's settings. What would do nothing beside another setting is refused, with both values named."""

from pathlib import Path

from pydantic import Field, model_validator

from plaudit.config import AutoOrCount, StrictConfig
from plaudit.data.examples import Learn, TooLong


class SourceConfig(StrictConfig):
    """One source of the mixture."""

    path: Path | None = None
    """Its file; null is data.demonstrations."""
    kind: str | None = Field(None, min_length=1)
    """Take the rows of this kind only; null takes all."""
    label: str | None = Field(None, min_length=1)
    """Count its rows as this kind, whatever they say; null leaves theirs (instruction, if they say none)."""
    weight: float | None = Field(None, gt=0)
    """Its share of an epoch's examples is weight / sum of weights; the first exhausted source ends the epoch."""
    rows: int | None = Field(None, ge=1)
    """Examples an epoch, in place of a weight."""
    repeat: int = Field(1, ge=1)
    """How often an epoch may go through its rows."""

    @model_validator(mode="after")
    def _nothing_dead(self) -> "SourceConfig":
        if self.weight is not None and self.rows is not None:
            raise ValueError(f"weight={self.weight} and rows={self.rows} exclude each other; give one")
        return self


class SFTConfig(StrictConfig):
    """Supervised fine-tuning."""

    skip: bool = False
    """Train nothing: the model is the SFT model as it is, one that was fine-tuned elsewhere."""
    mixture: list[SourceConfig] = Field([])
    """Sources and their shares; empty takes every training demonstration once an epoch."""
    epochs: int = Field(3, ge=1)
    """Passes over the training demonstrations."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps after which training ends, whatever epochs says; null is no limit."""
    batch_size: int = Field(16, ge=1)
    """Demonstrations in one optimiser step."""
    micro_batch_size: AutoOrCount = "auto"
    """Demonstrations in one forward and backward pass, must divide batch_size; auto: as many as there is memory for.
    Changes memory, not the result."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay of matrices; biases and norms are spared."""
    max_length: int = Field(512, ge=8)
    """Longest conversation in tokens."""
    too_long: TooLong = "refuse"
    """What a longer one meets: refuse by name, drop, or left_truncate (its start is cut; a reply never is)."""
    learn: Learn = "last"
    """Which replies of a conversation count in the loss: the last, or those of all assistant turns."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""
    evaluate_every: int | None = Field(None, ge=1)
    """Optimiser steps between two held-out losses; null is after each epoch. The end is always evaluated."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a lower held-out loss; null never stops early."""
    samples: int = Field(2, ge=0)
    """Held-out prompts that are answered at every evaluation, for people to read."""

    @model_validator(mode="after")
    def _divisible(self) -> "SFTConfig":
        if self.micro_batch_size != "auto" and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}")
        return self
