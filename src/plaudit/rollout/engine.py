"""What a rollout engine must do; swapping it is how sampling moves to another process or library."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sampled:
    """One sampled reply: its ids, the last one the end-of-turn token unless the limit cut it, and their log-probs."""

    ids: list[int]
    logprobs: list[float]


class Engine(Protocol):
    """Samples replies from its own copy of the policy."""

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: np.ndarray, on_rows: Callable[[int], None] | None = None
    ) -> list[Sampled]:
        """One reply per prompt, in order; `uniforms[i, p]` decides token p of reply i, so its second dimension is the
        longest reply. `on_rows` is called with the number of replies that were just finished."""
        ...

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over named weights, as `Roles.merged_weights` gives them."""
        ...

    def close(self) -> None:
        """Let go of the copy."""
        ...
