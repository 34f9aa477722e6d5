"""Settings of an adapter."""

from pydantic import Field

from plaudit.config import StrictConfig


class LoraSettings(StrictConfig):
    """A LoRA adapter (Hu et al. 2021, arXiv:2106.09685): W + (alpha/r)·B·A, B starting at zero."""

    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; all-linear means every linear layer but the LM head."""
