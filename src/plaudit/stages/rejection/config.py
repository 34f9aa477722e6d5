"""Rejection sampling's settings; what SFT's section says of batches, decay and evaluations holds here too."""

from pydantic import Field

from plaudit.config import StrictConfig


class RejectionConfig(StrictConfig):
    """Rejection sampling: SFT on the reply with the highest score of several to each prompt."""

    replies: int = Field(16, ge=2)
    """n: replies of the SFT model to a prompt, of which the best is learnt."""
    train_prompts: int = Field(128, ge=1)
    """How many prompts of split train get replies (validation prompts do too, to choose what is kept)."""
    epochs: int = Field(3, ge=1)
    """Passes over the best replies."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW; the adapter, the schedule and the law that is sampled are those of stage ppo."""
