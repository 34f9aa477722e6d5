"""The one record PPO works on: what was sampled, and every tensor that is later computed about it.

B replies, T columns; column t describes state t and action token t+1; per-token tensors are zero where the mask is
False. A batch is saved as one safetensors file an update.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from plaudit.data.files import write_bytes
from plaudit.models.tokens import Tokens


@dataclass(frozen=True)
class RolloutBatch:
    """One update's replies, scored and ready to train on; no tensor of it is written to. Without a critic there are
    neither values nor returns."""

    tokens: Tokens
    finished_B: Tensor
    raw_scores_BM: Tensor
    scores_B: Tensor
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    sampler_logprobs_BT: Tensor
    old_entropy_BT: Tensor
    values_BT: Tensor | None
    kl_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor | None
    behaviour_logprobs_BT: Tensor | None = None
    """log-probs of the policy that sampled, by the trainer, where that is not the old one (`rollout.lag: 1`)."""
    last_values_B: Tensor | None = None
    """V(s_T), the state after the last token, where a cut reply is bootstrapped."""
    new_logprobs_BT: Tensor | None = None
    """log π_φ in the last pass that trained on the reply: what its last ratio was made of; the old ones until then."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the log says of the batch; not saved with it."""

    @property
    def mask_BT(self) -> Tensor:
        return self.tokens.mask_BT

    def save(self, path: Path) -> None:
        """All tensors that are there, with their glossary names, in one safetensors file, whole or not at all."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("tokens", "metrics")}
        inner = {one.name: getattr(self.tokens, one.name) for one in fields(self.tokens)}
        tensors = {**own, **inner, "mask_BT": self.mask_BT}
        there = {name: tensor.contiguous().cpu() for name, tensor in tensors.items() if tensor is not None}
        write_bytes(path, save(there))


def minibatches(
    lengths: Sequence[int],
    prompts: Sequence[Hashable],
    order: Sequence[int],
    size: int,
    *,
    rows: int | None = None,
    tokens: int | None = None,
) -> list[list[list[int]]]:
    """The rows of an update in minibatches, and those in micro-batches of at most `rows` rows and `tokens` tokens.

    Minibatches are stretches of `order`, in which the replies to one prompt are moved to the first of them, so that
    they can share its work; their rows do not depend on the micro-batches. Within a minibatch, prompts are sorted by
    their longest row, and rows by length, so that a micro-batch holds little padding; its tokens are rows · longest,
    and a row that is longer than the budget goes alone.
    """
    assert rows is not None or tokens is not None
    alike: dict[Hashable, list[int]] = {}
    for row in order:
        alike.setdefault(prompts[row], []).append(row)
    together = [row for group in alike.values() for row in group]
    found = []
    for start in range(0, len(together), size):
        chosen = together[start : start + size]
        longest: dict[Hashable, int] = {}
        for row in chosen:
            longest[prompts[row]] = max(lengths[row], longest.get(prompts[row], 0))
        first = {prompt: place for place, prompt in enumerate(longest)}
        chosen.sort(key=lambda row: (longest[prompts[row]], first[prompts[row]], lengths[row]))
        parts: list[list[int]] = [[]]
        for row in chosen:
            here = len(parts[-1])
            wide = max((lengths[row], *(lengths[other] for other in parts[-1])))
            full = (rows is not None and here >= rows) or (tokens is not None and (here + 1) * wide > tokens)
            if full and here:
                parts.append([])
            parts[-1].append(row)
        found.append(parts)
    return found


def per_token(rows: Sequence[Sequence[float]], tokens: Tokens) -> Tensor:
    """Put one number per reply token, as a sampler gives them, into the [B, T] layout."""
    out_BT = torch.zeros(tokens.tokens_BT.shape, dtype=torch.float32)
    for row, (numbers, start) in enumerate(zip(rows, tokens.prompt_lengths_B.tolist(), strict=True)):
        out_BT[row, start - 1 : start - 1 + len(numbers)] = torch.tensor(list(numbers), dtype=torch.float32)
    return out_BT.to(tokens.tokens_BT.device)
