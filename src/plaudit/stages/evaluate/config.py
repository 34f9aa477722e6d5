"""Settings of the held-out comparison."""

from pydantic import Field

from plaudit.config import StrictConfig


class EvaluateConfig(StrictConfig):
    """Held-out comparison of SFT and PPO."""

    replies: int = Field(2, ge=1)
    """Replies sampled from each model for every test prompt, with the same random numbers for both models."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest reply in tokens, its end-of-turn token included."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of both models."""
