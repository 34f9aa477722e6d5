"""The in-process engine: transformers' own forward pass with a key-value cache, and sampling by inverse CDF.

It holds a merged copy of the policy (base + adapter in the base's format): unmerged, every decoding step would pay two
more small products in every adapted layer. The copy is the one exception to "the base weights are held once". bf16
rounds small updates of the copy away, so PPO never trains on the sampler's log-probabilities: it recomputes them in the
trainer and checks that the two stay within a stated bound.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from plaudit.models.roles import merge_into
from plaudit.rollout.engine import Sampled


class InProcessEngine:
    """Samples at `temperature` with no other change to the law: no top-k, no top-p, no minimum length."""

    def __init__(
        self, model: PreTrainedModel, *, eos_id: int, pad_id: int, temperature: float = 1.0, batch_rows: int = 64
    ):
        """`model` belongs to the engine from now on: `load_weights` overwrites it."""
        self.model = model
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.temperature = temperature
        self.batch_rows = batch_rows

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        merge_into(self.model, weights)

    def close(self) -> None:
        del self.model

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: np.ndarray, on_rows: Callable[[int], None] | None = None
    ) -> list[Sampled]:
        """See `Engine.generate`. Rows are batched by prompt length, which their own random numbers make harmless."""
        assert len(prompts) == len(uniforms)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: dict[int, Sampled] = {}
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            batch = self._generate_batch([list(prompts[i]) for i in rows], uniforms[rows])
            replies.update(zip(rows, batch, strict=True))
            if on_rows is not None:
                on_rows(len(rows))
        return [replies[i] for i in range(len(prompts))]

    def _generate_batch(self, prompts: list[list[int]], uniforms: np.ndarray) -> list[Sampled]:
        device = self.model.device
        width = max(map(len, prompts))
        # Padding goes left here, so that every row's next token is in the last column; the attention mask and the
        # position ids undo it (correctness.md row 1).
        tokens = torch.tensor([[self.pad_id] * (width - len(p)) + p for p in prompts], device=device)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        draws = torch.from_numpy(uniforms).to(device)
        cache = DynamicCache(config=self.model.config)
        trunk, head_VD = getattr(self.model, self.model.base_model_prefix), self.model.get_output_embeddings().weight
        alive = torch.arange(len(prompts), device=device)
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        for step in range(uniforms.shape[1]):
            hidden_BTD = trunk(
                input_ids=tokens,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            # The LM head is applied to two dimensions: on a sliced [B, 1, D] torch copies its weight B times.
            logits = hidden_BTD[:, -1].contiguous() @ head_VD.T
            sampled, chosen = sample(logits, draws[alive, step], self.temperature)
            for row, token, logprob in zip(alive.tolist(), sampled.tolist(), chosen.tolist(), strict=True):
                if not ids[row] or ids[row][-1] != self.eos_id:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
            ended = torch.tensor([ids[row][-1] == self.eos_id for row in alive.tolist()], device=device)
            if bool(ended.all()):
                break
            if int(ended.sum()) * 4 >= len(ended):
                # A quarter of the rows is done: take them out of the batch and the cache, and decode fewer.
                keep = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, sampled, attention, positions = alive[keep], sampled[keep], attention[keep], positions[keep]
            tokens = sampled[:, None]
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [Sampled(row_ids, row_logprobs) for row_ids, row_logprobs in zip(ids, logprobs, strict=True)]


def sample(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling in float32: token ids [B] and their log-probabilities [B] under softmax(logits/temperature).

    The token is the first whose cumulative probability exceeds u. The last sum is scaled to the row's own total, so
    that rounding of the cumulative sum can never fall off the vocabulary's end.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    cdf_BV = logprobs_BV.exp().cumsum(dim=-1)
    targets_B1 = uniforms_B.float()[:, None] * cdf_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    return tokens_B1.squeeze(1), logprobs_BV.gather(1, tokens_B1).squeeze(1)
