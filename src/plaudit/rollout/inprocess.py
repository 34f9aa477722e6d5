"""The in-process engine: a decoder over a merged copy of the policy, and sampling by inverse CDF.

It holds a merged copy of the policy (base + adapter in the base's format): unmerged, every decoding step would pay two
more small products in every adapted layer. The copy is the one exception to "the base weights are held once". bf16
rounds small updates of the copy away, so PPO never trains on the sampler's log-probabilities: it recomputes them in the
trainer and checks that the two stay within a stated bound.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit.data.packing import by_length
from plaudit.dist.memory import halving, too_large
from plaudit.models.kernels.choose import decoder_of
from plaudit.models.kernels.decoder import Decoder
from plaudit.run.display import console

BATCH_ROWS = {"cpu": 64, "gpu": 256}
"""A GPU reads the weights for many rows in the time it takes for one."""
BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first: the cumulative sum runs over blocks, then in one."""


@dataclass(frozen=True)
class Sampled:
    """One sampled reply: its ids, the last one a token that ends it unless the limit cut it, and their log-probs."""

    ids: list[int]
    logprobs: list[float]


class InProcessEngine:
    """Samples at `temperature` with no other change to the law: no top-k, no top-p, no minimum length."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_id: int | Collection[int],
        temperature: float = 1.0,
        batch_rows: int = 0,
        decoder: Decoder | None = None,
    ):
        """`model` belongs to the engine from now on: `load_weights` overwrites it. A reply ends at `eos_id`, or at any
        of several. `batch_rows` rows are decoded at a time, `BATCH_ROWS` where it is 0. `decoder` is the fastest one
        that there is for the model, where nothing is said."""
        self.model = model
        ends = [eos_id] if isinstance(eos_id, int) else sorted(eos_id)
        self.ends_E = torch.tensor(ends, device=model.device)
        self.temperature = temperature
        self.batch_rows = batch_rows or BATCH_ROWS["cpu" if model.device.type == "cpu" else "gpu"]
        self.decoder: Decoder = decoder or decoder_of(model)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over named weights, as `Roles.merged_weights` gives them."""
        self.decoder.load(weights)

    def close(self) -> None:
        """Let go of the copy."""
        del self.model, self.decoder

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: np.ndarray, on_rows: Callable[[int], None] | None = None
    ) -> list[Sampled]:
        """One reply per prompt, in order; `uniforms[i, p]` decides token p of reply i, so its second dimension is the
        longest reply. `on_rows` is called with the number of replies that were just finished. Rows are batched by
        prompt length, which their own random numbers make harmless; half as many from where memory has run out."""
        assert len(prompts) == len(uniforms)
        replies: dict[int, Sampled] = {}
        waiting = [row for rows in by_length([len(prompt) for prompt in prompts], self.batch_rows) for row in rows]

        def attempt() -> list[Sampled]:
            rows = waiting[: self.batch_rows]
            try:
                return self._generate_batch([list(prompts[i]) for i in rows], uniforms[rows])
            finally:
                self.decoder.forget()

        def smaller(told: str) -> None:
            tried = min(self.batch_rows, len(waiting))
            if tried == 1:
                raise too_large("sampling", told, 1, "lower sampling.max_new_tokens or use a smaller model")
            self.batch_rows = tried // 2
            console.print(f"Sampling: out of memory; going on with {self.batch_rows} rows at a time")

        while waiting:
            batch = halving(attempt, smaller)
            replies.update(zip(waiting, batch, strict=False))
            del waiting[: len(batch)]
            if on_rows is not None:
                on_rows(len(batch))
        return [replies[i] for i in range(len(prompts))]

    def _generate_batch(self, prompts: list[list[int]], uniforms: np.ndarray) -> list[Sampled]:
        device, longest = self.model.device, uniforms.shape[1]
        draws = torch.from_numpy(uniforms).to(device)
        ids_BN = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
        logprobs_BN = torch.zeros(ids_BN.shape, device=device)
        lengths_B = torch.full((len(prompts),), longest, device=device)
        alive_b, hidden_bD = self._read(prompts)
        for step in range(longest):
            sampled_b, logprobs_b = sample(self.decoder.logits(hidden_bD), draws[alive_b, step], self.temperature)
            ids_BN[alive_b, step], logprobs_BN[alive_b, step] = sampled_b, logprobs_b
            # A row that has ended may be decoded on for a while; its first end counts.
            ended_b = torch.isin(sampled_b, self.ends_E) | (lengths_B[alive_b] <= step)
            lengths_B[alive_b] = torch.where(ended_b, lengths_B[alive_b].clamp(max=step + 1), lengths_B[alive_b])
            count = int(ended_b.sum())
            if count == len(ended_b) or step + 1 == longest:
                break
            if count * 4 >= len(ended_b):
                # A quarter of the rows is done: take them out of the batch and the cache, and decode fewer.
                going = (~ended_b).nonzero().squeeze(1)
                self.decoder.keep(going)
                alive_b, sampled_b = alive_b[going], sampled_b[going]
            hidden_bD = self.decoder.step(sampled_b)
        rows = zip(ids_BN.tolist(), logprobs_BN.tolist(), lengths_B.tolist(), strict=True)
        return [Sampled(ids[:length], logprobs[:length]) for ids, logprobs, length in rows]

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Read the prompts, each once however many replies it gets; all rows, and their last hidden states."""
        different = list(dict.fromkeys(map(tuple, prompts)))
        hidden_bD = self.decoder.start(different)
        every_B = torch.arange(len(prompts), device=hidden_bD.device)
        if len(different) == len(prompts):
            return every_B, hidden_bD
        place = {prompt: row for row, prompt in enumerate(different)}
        rows_B = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=hidden_bD.device)
        self.decoder.keep(rows_B)
        return every_B, hidden_bD[rows_B]


def sample(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling in float32: token ids [B] and their log-probabilities [B] under softmax(logits/temperature).

    The token is the first whose cumulative probability exceeds u times the total. The sums are those of the row itself,
    and a token is looked for up to the last one that has probability: rounding can neither fall off the vocabulary's
    end nor onto a token that cannot be sampled.
    """
    rows, size = logits_BV.shape
    z_BV = logits_BV.new_full((rows, size + -size % BLOCK), -torch.inf, dtype=torch.float32)
    z_BV[:, :size] = logits_BV
    p_BV = torch.softmax(z_BV if temperature == 1.0 else z_BV.div_(temperature), dim=1)
    blocks_BKV = p_BV.unflatten(1, (-1, BLOCK))
    sums_BK = blocks_BKV.sum(dim=2).cumsum(dim=1)
    target_B1 = uniforms_B.float()[:, None] * sums_BK[:, -1:]
    block_B1 = _first_above(sums_BK, target_B1)
    before_B1 = torch.where(block_B1 > 0, sums_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BV = blocks_BKV[torch.arange(rows, device=block_B1.device), block_B1[:, 0]].cumsum(dim=1)
    tokens_B1 = block_B1 * BLOCK + _first_above(inside_BV, target_B1 - before_B1)
    return tokens_B1.squeeze(1), p_BV.gather(1, tokens_B1).log().squeeze(1)


def _first_above(sums_BN: Tensor, target_B1: Tensor) -> Tensor:
    """The first place [B, 1] where a cumulative sum exceeds its target, at most the last place that adds to it."""
    last_B1 = torch.searchsorted(sums_BN, sums_BN[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(sums_BN, target_B1.contiguous(), right=True), last_B1)
