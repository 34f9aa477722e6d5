"""Which decoder a model gets: the fused one, that of transformers' cache, or the one that reads every row anew.

The first two are tried on a few tokens, beside whole passes over the same rows, one row at a time: a cache may not know
padding (recurrent layers read it as tokens), may keep other rows than it is told, or may not be there at all.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.decoder import BorrowingDecoder, Decoder, LibraryDecoder, RereadingDecoder
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.models.kernels.probe import DECLINES, relative_error

PROMPTS = tuple([3 + (7 * t + 11 * row) % 25 for t in range(length)] for row, length in enumerate((40, 3, 17)))
KEPT = (2, 0, 1, 2)
"""Rows of the probe after its third step, one of them twice."""


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The fastest decoder whose states are the model's own."""
    fused = FusedDecoder.of(model)
    if fused is not None:
        return fused
    return LibraryDecoder(model) if cache_refused(model) is None else RereadingDecoder(model)


def own_decoder(model: PreTrainedModel, ready: Callable[[], None]) -> BorrowingDecoder:
    """The one that samples through the model that is trained, which `ready` makes the policy; UserError where
    transformers' cache cannot be used."""
    if (why := cache_refused(model)) is not None:
        raise UserError(f"ppo.sampling_copy=false decodes by transformers' cache, and {why}; set it to true")
    return BorrowingDecoder(model, ready)


@torch.no_grad()
def cache_refused(model: PreTrainedModel) -> str | None:
    """Why replies cannot be sampled with transformers' cache; None where they can."""
    bound = 1e-3 if model.dtype == torch.float32 else 1e-1
    decoder, rows = LibraryDecoder(model), [list(prompt) for prompt in PROMPTS]
    try:
        found = [("a padded prompt", decoder.start(rows), [*rows])]
        for step in range(6):
            if step == 3:
                decoder.keep(torch.tensor(KEPT, device=model.device))
                rows = [rows[i] for i in KEPT]
            ids = [3 + (5 * step + 7 * i) % 25 for i in range(len(rows))]
            rows = [[*row, token] for row, token in zip(rows, ids, strict=True)]
            hidden_BD = decoder.step(torch.tensor(ids, device=model.device))
            found.append(("a step behind padding" if step < 3 else "a step after a change of rows", hidden_BD, [*rows]))
    except DECLINES as error:
        return f"its cache does not take it ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    whole = {tuple(row): hidden_states(model, torch.tensor([row], device=model.device))[0] for row in found[-1][2]}
    for what, hidden_BD, rows in found:
        own_BD = torch.stack([_state(whole, row) for row in rows])
        gaps = [relative_error(ours, theirs) for ours, theirs in zip(hidden_BD, own_BD, strict=True)]
        other = [gap for gap in gaps if not gap < bound]
        # A few rows may differ by chance in bfloat16: a router that rounding sends to another expert.
        if len(other) > (0 if model.dtype == torch.float32 else len(gaps) // 2):
            return f"{what} gives other states than a whole pass (relative error {other[0]:.1e})"
    return None


def _state(whole: dict[tuple[int, ...], Tensor], row: list[int]) -> Tensor:
    """The state at the end of a row that one of the `whole` rows begins with."""
    return next(states_TD[len(row) - 1] for ids, states_TD in whole.items() if list(ids[: len(row)]) == row)
