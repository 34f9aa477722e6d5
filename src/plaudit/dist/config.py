"""Settings of several processes at work on one run."""

from typing import Literal

from plaudit.config import StrictConfig

Shard = Literal["none", "node", "all"]


class DistributedConfig(StrictConfig):
    """How ranks hold the model that they share the work of (distributed.md)."""

    shard: Shard = "none"
    """Who holds the frozen base together in SFT and PPO, each a part: nobody, the ranks of a machine, or all ranks."""
