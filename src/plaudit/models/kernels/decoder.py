"""Decoding step by step: what the in-process engine asks of a model, and the way that every architecture can answer.

A decoder holds the keys and values of a batch of growing rows. Prompts are padded on the left, so that every row's next
token goes into the same column; a mask and the rows' own position ids undo the padding (docs/correctness.md, row 1).
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.logits import shaped
from plaudit.models.kernels.merge import merge_into
from plaudit.models.kernels.probe import relative_error
from plaudit.models.kernels.trunk import trunk_of


class Decoder(Protocol):
    """The state of one batch. Hidden states are those that the LM head reads."""

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over named weights of the model."""
        ...

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Forget everything and read the prompts; the last token's hidden state of every row, [B, D]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; a row may be there several times."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to every row; its hidden states [B, D]."""
        ...

    def logits(self, hidden_BD: Tensor) -> Tensor:
        """What the LM head makes of them, [B, V]."""
        ...

    def forget(self) -> None:
        """Let go of the batch's keys and values."""
        ...


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, T], any id where there is padding, and what is real, [B, T] boolean."""
    width = max(map(len, prompts))
    tokens_BT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return tokens_BT, torch.arange(width, device=device) >= width - lengths_B[:, None]


def cache_name(trunk: torch.nn.Module) -> str:
    """What its forward pass calls the cache: transformers 5.24 renamed it, and takes the old name until 5.40."""
    return "cache" if "cache" in signature(trunk.forward).parameters else "past_key_values"


class LibraryDecoder:
    """transformers' own forward pass and cache: every causal model it knows."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.trunk = trunk_of(model)
        self.cache_name = cache_name(self.trunk)

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        merge_into(self.model, weights)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        tokens_BT, real_BT = left_padded(prompts, self.model.device)
        self.attention_BT = real_BT.long()
        self.positions_B1 = self.attention_BT.sum(dim=1, keepdim=True) - 1
        self.cache = DynamicCache(config=self.model.config)
        return self._forward(tokens_BT, (self.attention_BT.cumsum(dim=1) - 1).clamp(min=0))

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # states of recurrent layers included
        self.attention_BT, self.positions_B1 = self.attention_BT[rows], self.positions_B1[rows]

    def step(self, tokens_B: Tensor) -> Tensor:
        self.attention_BT = torch.cat([self.attention_BT, self.attention_BT.new_ones(len(tokens_B), 1)], dim=1)
        self.positions_B1 = self.positions_B1 + 1
        return self._forward(tokens_B[:, None], self.positions_B1)

    def logits(self, hidden_BD: Tensor) -> Tensor:
        return shaped(self.model, self.model.get_output_embeddings()(hidden_BD))

    def forget(self) -> None:
        self.cache = DynamicCache(config=self.model.config)

    def _forward(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        hidden_BTD = self.trunk(
            input_ids=tokens_BT,
            attention_mask=self.attention_BT,
            position_ids=positions_BT,
            use_cache=True,
            **{self.cache_name: self.cache},
        ).last_hidden_state
        # The LM head is applied to two dimensions: on a sliced [B, 1, D] torch copies its weight B times.
        last_BD: Tensor = hidden_BTD[:, -1].contiguous()
        return last_BD


class BorrowingDecoder(LibraryDecoder):
    """Through the very model that is trained, as it is between two updates: no copy, and nothing to take over."""

    def __init__(self, model: PreTrainedModel, ready: Callable[[], None]):
        """Made before the model's attention is changed for training; `ready` makes it the policy."""
        super().__init__(model)
        self.ready = ready
        self.usual = self.between = model.config._attn_implementation

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None: ...

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.ready()
        self.between = self.model.config._attn_implementation
        self.model.set_attn_implementation(self.usual)  # training's own knows neither mask nor cache
        return super().start(prompts)

    def forget(self) -> None:
        super().forget()
        self.model.set_attn_implementation(self.between)


class RereadingDecoder:
    """Reads every row anew at every step: for models whose cache knows no padding or cannot change its rows.

    Rows are padded on the right, where no real token sees it, as in training.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.rows: list[list[int]] = []

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        merge_into(self.model, weights)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.rows = [list(prompt) for prompt in prompts]
        return self._read()

    def keep(self, rows: Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in rows.tolist()]

    def step(self, tokens_B: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens_B.tolist(), strict=True):
            row.append(token)
        return self._read()

    def logits(self, hidden_BD: Tensor) -> Tensor:
        return shaped(self.model, self.model.get_output_embeddings()(hidden_BD))

    def forget(self) -> None:
        self.rows = []

    def _read(self) -> Tensor:
        width = max(map(len, self.rows))
        tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in self.rows], device=self.model.device)
        last_B = torch.tensor([len(row) - 1 for row in self.rows], device=self.model.device)
        states_BTD = hidden_states(self.model, tokens_BT)
        last_BD: Tensor = states_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        return last_BD


PROMPTS = tuple([3 + (7 * t + 11 * row) % 25 for t in range(length)] for row, length in enumerate((40, 3)))
"""What a probe of a decoder reads: two rows of other lengths."""


@torch.no_grad()
def rounding(model: PreTrainedModel) -> float:
    """The relative error that another order of sums may have in a 16-bit format: four times the most that transformers'
    own ways differ by (a prompt with another one beside it and by itself, a step and a whole pass) or that embeddings
    do which are a rounding off, since kernels may make those ways the same to the bit; 0.1 at most."""
    decoder = LibraryDecoder(model)
    both_BD, (long, short) = decoder.start(PROMPTS), PROMPTS
    stepped_BD = decoder.step(torch.tensor([12, 7], device=model.device))
    gaps = []
    for row, prompt, token in ((0, long, 12), (1, short, 7)):
        alone_TD = hidden_states(model, torch.tensor([[*prompt, token]], device=model.device))[0]
        gaps += [relative_error(both_BD[row], alone_TD[-2]), relative_error(stepped_BD[row], alone_TD[-1])]
    tokens_1T = torch.tensor([long], device=model.device)
    exact_TD = hidden_states(model, tokens_1T)[0]
    hook = model.get_input_embeddings().register_forward_hook(_a_rounding_off)
    try:
        gaps.append(relative_error(hidden_states(model, tokens_1T)[0], exact_TD))
    finally:
        hook.remove()
    return min(4 * max(gaps), 1e-1)


def _a_rounding_off(_embed: nn.Module, _tokens: Any, x_ND: Tensor) -> Tensor:
    """Every number up to the distance of two neighbours in its format away; the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    off = torch.rand(x_ND.shape, generator=generator).to(x_ND.device).mul(2).sub(1) * torch.finfo(x_ND.dtype).eps
    return (x_ND.float() * (1 + off)).to(x_ND.dtype)
