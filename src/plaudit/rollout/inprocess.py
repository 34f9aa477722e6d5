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
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.models.rounding import Rounding
from plaudit.rollout.engine import Sampled, Weights
from plaudit.rollout.server.plaudit_draws.inverse_cdf import sample
from plaudit.run.display import console

BATCH_ROWS = {"cpu": 64, "gpu": 256}
"""A GPU reads the weights for many rows in the time it takes for one."""


@dataclass
class _Slots:
    """The rows of the batch that is decoded: whose reply each holds, what there is of it, and whether it goes on."""

    rows_b: Tensor
    alive_b: Tensor
    lengths_b: Tensor
    ids_bN: Tensor
    logprobs_bN: Tensor

    @classmethod
    def of(cls, rows: list[int], longest: int, device: torch.device) -> "_Slots":
        count = len(rows)
        return cls(
            torch.tensor(rows, device=device),
            torch.ones(count, dtype=torch.bool, device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
            torch.zeros(count, longest, dtype=torch.int64, device=device),
            torch.zeros(count, longest, device=device),
        )

    def add(self, at_b: Tensor, ids_b: Tensor, logprobs_b: Tensor) -> None:
        """A token in column `at_b` of each row; what has ended grows no more."""
        self.ids_bN.scatter_(1, at_b[:, None], ids_b[:, None])
        self.logprobs_bN.scatter_(1, at_b[:, None], logprobs_b[:, None])
        self.lengths_b += self.alive_b

    def replies(self, chosen_b: Tensor) -> list[tuple[int, Sampled]]:
        """Number and reply of the chosen rows."""
        at = chosen_b.nonzero().squeeze(1)
        columns = (x[at].tolist() for x in (self.rows_b, self.lengths_b, self.ids_bN, self.logprobs_bN))
        return [(row, Sampled(ids[:n], logprobs[:n])) for row, n, ids, logprobs in zip(*columns, strict=True)]

    def take(self, at: Tensor, rows: list[int]) -> None:
        """Other replies in the rows `at`."""
        self.rows_b[at] = torch.tensor(rows, device=at.device)
        self.alive_b[at], self.lengths_b[at] = True, 0

    def of_these(self, at: Tensor) -> "_Slots":
        return _Slots(*(x[at] for x in vars(self).values()))


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

    def take(self, roles: Weights, rounding: Rounding) -> None:
        """Sample from their policy from now on, merged into the copy."""
        self.load_weights(roles.merged_weights("policy", rounding))

    def close(self) -> None:
        """Let go of the copy."""
        del self.model, self.decoder

    @property
    def joins(self) -> FusedDecoder | None:
        """The decoder, where a waiting prompt may take the place of a reply that is done: where no reply depends on
        those beside it, in a single bit."""
        return self.decoder if isinstance(self.decoder, FusedDecoder) and self.decoder.joins else None

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray,
        on_reply: Callable[[int, Sampled], None] | None = None,
    ) -> list[Sampled]:
        """See `Engine.generate`. Prompts come by length, which their own random numbers make harmless; half as many
        at a time from where memory has run out."""
        assert len(prompts) == len(uniforms)
        replies: dict[int, Sampled] = {}
        order = [row for rows in by_length([len(prompt) for prompt in prompts], self.batch_rows) for row in rows]

        def finished(row: int, reply: Sampled) -> None:
            replies[row] = reply
            if on_reply is not None:
                on_reply(row, reply)

        def attempt() -> None:
            try:
                self._generate_batch(prompts, uniforms, [row for row in order if row not in replies], finished)
            finally:
                self.decoder.forget()

        def smaller(told: str) -> None:
            tried = min(self.batch_rows, len(order) - len(replies))
            if tried == 1:
                raise too_large("sampling", told, 1, "lower sampling.max_new_tokens or use a smaller model")
            self.batch_rows = tried // 2
            console.print(f"Sampling: out of memory; going on with {self.batch_rows} rows at a time")

        while len(replies) < len(order):
            halving(attempt, smaller)
        return [replies[i] for i in range(len(prompts))]

    def _generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray,
        waiting: list[int],
        finished: Callable[[int, Sampled], None],
    ) -> None:
        """The first `batch_rows` of the `waiting` replies; all, where a prompt may take the place of one that is done.

        A row that has ended may be decoded on for a while: until a quarter of the rows are, whose places then go to
        waiting prompts, or which are taken out of the batch and the cache.
        """
        longest, device = uniforms.shape[1], self.model.device
        rows, waiting = waiting[: self.batch_rows], waiting[self.batch_rows :] if self.joins else []
        slots = _Slots.of(rows, longest, device)
        draws = torch.from_numpy(uniforms).to(device)
        hidden_bD = self._read([list(prompts[i]) for i in rows])
        while True:
            at_b = slots.lengths_b.clamp(max=longest - 1)
            sampled_b, logprobs_b = sample(self.decoder.logits(hidden_bD), draws[slots.rows_b, at_b], self.temperature)
            slots.add(at_b, sampled_b, logprobs_b)
            ended_b = slots.alive_b & (torch.isin(sampled_b, self.ends_E) | (slots.lengths_b == longest))
            for row, reply in slots.replies(ended_b):
                finished(row, reply)
            slots.alive_b &= ~ended_b
            going = slots.alive_b.nonzero().squeeze(1)
            done = len(slots.alive_b) - len(going)
            if not len(going) and not waiting:
                return
            if waiting and 4 * done >= len(slots.alive_b):
                if len(going):
                    hidden_bD = self.decoder.step(sampled_b)
                free = (~slots.alive_b).nonzero().squeeze(1)[: len(waiting)]
                next_rows, waiting = waiting[: len(free)], waiting[len(free) :]
                slots.take(free, next_rows)
                assert self.joins is not None
                hidden_bD = hidden_bD.index_copy(0, free, self.joins.join(free, [prompts[i] for i in next_rows]))
                continue
            if 4 * done >= len(slots.alive_b):
                self.decoder.keep(going)
                slots, sampled_b = slots.of_these(going), sampled_b[going]
            hidden_bD = self.decoder.step(sampled_b)

    def _read(self, prompts: list[list[int]]) -> Tensor:
        """Read the prompts, each once however many replies it gets; the last hidden states of all rows."""
        different = list(dict.fromkeys(map(tuple, prompts)))
        hidden_bD = self.decoder.start(different)
        if len(different) == len(prompts):
            return hidden_bD
        place = {prompt: row for row, prompt in enumerate(different)}
        rows_B = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=hidden_bD.device)
        self.decoder.keep(rows_B)
        return hidden_bD[rows_B]
