"""The reward model's settings. What would do nothing beside another setting is refused, with both values named."""

from typing import Literal

from pydantic import Field, model_validator

from plaudit.config import AutoOrCount, StrictConfig


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
    unpaired_coef: float = Field(1.0, gt=0)
    """λ: what a label of preferences.unpaired weighs, where a ranking weighs 1."""
    annotator_bias: bool = False
    """With preferences.unpaired: how ready each annotator is to like anything is learnt, and kept out of the score."""
    epochs: int = Field(1, ge=1)
    """Passes over the training rankings and labels; more than one over-fits quickly."""
    rankings_per_step: int = Field(8, ge=1)
    """Rankings, and labels, in one optimiser step."""
    rankings_per_micro_batch: AutoOrCount = "auto"
    """Rankings in one forward and backward pass, must divide rankings_per_step; auto: as many as there is memory for.
    Changes memory, not the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW for adapter and head; cosine to a tenth of it."""
    evaluate_every: int | None = Field(None, ge=1)
    """Optimiser steps between two held-out losses; null is after each epoch. Start and end are always evaluated."""
    members: int = Field(1, ge=1)
    """M: reward models trained, each with its own adapter, start and data order; time and scoring cost M times."""
    aggregate: Literal["mean", "min", "mean_minus_std", "pessimistic", "weight_averaged"] = "mean"
    """One score of M: a rule over the members' normalised scores, or one model with the mean of their weights."""
    aggregate_strength: float = Field(1.0, ge=0)
    """Of mean_minus_std k in mean − k·std of the members; of pessimistic β in −β·log mean exp(−r/β), which leans to the
    min where it is small and to the mean where it is large."""

    on_alarm: Literal["warn", "stop"] = "warn"
    """What an alarm of the report card (reward-report.md) does: it is told, or it stops the run before PPO."""

    @property
    def aggregate_k(self) -> float:
        """k of mean_minus_std."""
        return self.aggregate_strength if self.aggregate == "mean_minus_std" else 1.0

    @property
    def aggregate_beta(self) -> float:
        """β of pessimistic."""
        return self.aggregate_strength if self.aggregate == "pessimistic" else 1.0

    @model_validator(mode="after")
    def _no_dead_option(self) -> "RewardConfig":
        many = self.rankings_per_micro_batch
        if many != "auto" and self.rankings_per_step % many:
            raise ValueError(
                f"rankings_per_micro_batch={self.rankings_per_micro_batch} does not divide "
                f"rankings_per_step={self.rankings_per_step}"
            )
        idle = self.given("ties", "soft_labels", "margin_coef", "label_smoothing")
        if self.loss != "pairs" and idle:
            shown = ", ".join(f"{name}={getattr(self, name)}" for name in idle)
            raise ValueError(f"{shown} belongs to loss=pairs and does nothing with loss={self.loss}")
        if self.soft_labels and self.margin_coef:
            raise ValueError("soft_labels and margin_coef exclude each other: a margin is for a side that surely won")
        if self.members == 1 and self.aggregate != "mean":
            raise ValueError(f"aggregate={self.aggregate} makes one of several members; members is 1")
        if self.aggregate_strength != 1.0 and self.aggregate not in ("mean_minus_std", "pessimistic"):
            raise ValueError(
                f"aggregate_strength={self.aggregate_strength} belongs to aggregate=mean_minus_std and "
                f"aggregate=pessimistic, and does nothing with aggregate={self.aggregate}"
            )
        if self.aggregate == "pessimistic" and self.aggregate_strength == 0:
            raise ValueError("aggregate_strength=0: β of aggregate=pessimistic must be above 0")
        return self
