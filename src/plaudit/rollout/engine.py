"""What a stage asks of whoever samples for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from plaudit.models.rounding import Rounding


@dataclass(frozen=True)
class Sampled:
    """One sampled reply: its ids, the last one a token that ends it unless the limit cut it, and their log-probs."""

    ids: list[int]
    logprobs: list[float]


class Weights(Protocol):
    """Roles whose policy is sampled."""

    def merged_weights(self, adapter: str, rounding: Rounding | None) -> Iterator[tuple[str, Tensor]]:
        """See `Roles.merged_weights`."""
        ...


class Engine(Protocol):
    """Samples replies at one temperature, from one policy after the other."""

    batch_rows: int
    """Replies at a time, where the engine decides that."""

    def take(self, roles: Weights, rounding: Rounding) -> None:
        """Sample from their policy from now on; an engine that merges rounds by `rounding`."""
        ...

    @property
    def joins(self) -> object | None:
        """None where a reply that is done waits for those of its batch; anything else where the next one begins."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray,
        on_reply: Callable[[int, Sampled], None] | None = None,
    ) -> list[Sampled]:
        """One reply per prompt, in order; `uniforms[i, p]` decides token p of reply i, so its second dimension is the
        longest reply. `on_reply` is called with each reply and its number when it is finished."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
