"""The reward model's settings. What would do nothing beside another setting is refused, with both values named."""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.config import StrictConfig
from plaudit.models.config import LoraSettings


class RewardConfig(StrictConfig):
    """Training of the reward model."""

    loss: Literal["pairs", "plackett_luce", "davidson"] = "pairs"
    """What is learnt of a ranking: its pairs (Bradley-Terry), its whole order, or its pairs with ties as outcomes."""
    ties: Literal["drop", "half"] = "drop"
    """What loss pairs makes of a tie: nothing, or a pair that either side wins with probability one half."""
    soft_labels: bool = False
    """With loss pairs: the probability that a side wins is its share of the votes, where a ranking has votes."""
    margin_coef: float = Field(0.0, ge=0)
    """With loss pairs: scores shall differ by at least this times the stated strength of a preference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """With loss pairs: the chance that a label is turned round."""
    centring_coef: float = Field(0.0, ge=0)
    """Weight of the mean of (r_w + r_l)², which holds the level of the raw scores at 0."""
    epochs: int = Field(1, ge=1)
    """Passes over the training rankings; more than one over-fits quickly."""
    rankings_per_step: int = Field(8, ge=1)
    """Rankings in one optimiser step."""
    rankings_per_micro_batch: int = Field(2, ge=1)
    """Rankings in one forward and backward pass; must divide rankings_per_step. Changes memory, not the result."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW for adapter and head; cosine to a tenth of it."""
    warmup_steps: int = Field(4, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    evaluate_every: int | None = Field(None, ge=1)
    """Optimiser steps between two held-out losses; null is after each epoch. Start and end are always evaluated."""
    evaluate_on: int = Field(100, ge=1)
    """Held-out rankings in such a loss at most; of more, a seeded choice. The test at the end takes all."""
    normalise_on: int = Field(256, ge=2)
    """Replies of the training rankings whose scores get mean 0 and std 1."""
    members: int = Field(1, ge=1)
    """M: reward models trained, each with its own adapter, start and data order; time and scoring cost M times."""
    aggregate: Literal["mean", "min", "mean_minus_std", "pessimistic", "weight_averaged"] = "mean"
    """One score of M: a rule over the members' normalised scores, or one model with the mean of their weights."""
    aggregate_k: float = Field(1.0, ge=0)
    """k of mean_minus_std: mean − k·std of the members."""
    aggregate_beta: float = Field(1.0, gt=0)
    """β of pessimistic: −β·log mean exp(−r/β); small leans to the min, large to the mean."""
    lora: LoraSettings | None = LoraSettings()
    """The reward model's own adapter on the shared base; null trains every weight of a copy (full fine-tuning)."""

    @model_validator(mode="after")
    def _no_dead_option(self) -> "RewardConfig":
        if self.rankings_per_step % self.rankings_per_micro_batch:
            raise ValueError(
                f"rankings_per_micro_batch={self.rankings_per_micro_batch} does not divide "
                f"rankings_per_step={self.rankings_per_step}"
            )
        of_pairs = {"ties": "drop", "soft_labels": False, "margin_coef": 0.0, "label_smoothing": 0.0}
        idle = [f"{name}={getattr(self, name)}" for name, default in of_pairs.items() if getattr(self, name) != default]
        if self.loss != "pairs" and idle:
            raise ValueError(f"{', '.join(idle)} belongs to loss=pairs and does nothing with loss={self.loss}")
        if self.soft_labels and self.margin_coef:
            raise ValueError("soft_labels and margin_coef exclude each other: a margin is for a side that surely won")
        if self.members == 1 and self.aggregate != "mean":
            raise ValueError(f"aggregate={self.aggregate} makes one of several members; members is 1")
        if self.aggregate_k != 1.0 and self.aggregate != "mean_minus_std":
            raise ValueError(f"aggregate_k={self.aggregate_k} belongs to aggregate=mean_minus_std")
        if self.aggregate_beta != 1.0 and self.aggregate != "pessimistic":
            raise ValueError(f"aggregate_beta={self.aggregate_beta} belongs to aggregate=pessimistic")
        if self.lora is None and self.members > 1:
            raise ValueError(f"members={self.members} are adapters on one base; full fine-tuning (lora=null) has one")
        return self
