"""Attention over packed rows: every example attends to itself alone, at a cost linear in the number of examples.

An example is one sequence, or a prompt and several replies to it (`Segment`): then the prompt's tokens are there once,
every reply attends to the prompt and to itself, and its positions go on where the prompt's end. A causal model gives
each reply the very states it has behind a prompt of its own, because no prompt token ever sees a reply.

transformers can block attention between packed examples with a dense [T, T] mask made from the position ids: on a CPU
that costs T² whatever the examples' lengths, and keeps SDPA from its fast causal kernel. Here a packed row goes
through attention one example at a time instead, under a name of ours in transformers' registry of attention
functions. A GPU would wait for those many small launches: there a row that is not too long goes through at once, under
a mask that is made once a pass. An architecture whose layers do not go through that registry, or that mixes tokens by
other means (a state, a convolution), is found out by a probe and is not packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from plaudit.models.kernels.probe import DECLINES, libraries_only, relative_error
from plaudit.models.kernels.segments import Segment, parts, positions
from plaudit.models.kernels.short_attention import attend
from plaudit.models.kernels.trunk import trunk_of

PACKED = "plaudit_packed"
DENSE = {"cpu": 0, "cuda": 4096}
"""Tokens of a packed row up to which one mask serves all its examples: it takes a byte for each pair of tokens."""


@dataclass(frozen=True)
class Layout:
    """How sequences may lie in a model's rows: several in one without padding, and then a prompt once for all replies
    behind it; or padded, one a row. `reason` says why not the one before."""

    kind: Literal["shared", "packed", "padded"]
    reason: str | None = None

    @property
    def packs(self) -> bool:
        return self.kind != "padded"

    def __str__(self) -> str:
        return self.kind if self.reason is None else f"{self.kind}: {self.reason}"


def prepare_attention(model: PreTrainedModel) -> Layout:
    """Switch `model` to `packed_attention` where it can be, and say what that allows."""
    if libraries_only():
        return Layout("padded", "PLAUDIT_PLAIN=1")
    if not has_torchs_attention(model):
        return Layout("padded", "its attention does more than torch's kernel")
    if (reason := use_packed_attention(model)) is not None:
        return Layout("padded", reason)
    reason = prompt_sharing_refused(model)
    return Layout("shared" if reason is None else "packed", reason)


def has_torchs_attention(model: PreTrainedModel) -> bool:
    """Whether torch's kernel computes its attention. What else a model does there (a cap on the scores, sinks) hardly
    shows in the short texts of a probe, so a path of our own must not be tried."""
    return bool(getattr(model, "_supports_sdpa", False))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of [B, heads, T, D], with `segments` inside each example of the row only; [B, T, heads, D].

    transformers makes no mask for a name that is only in the registry of attention functions, so the sliding window is
    applied here. Without `segments` rows are padded on the right, where a causal pass needs no mask.
    """
    if attention_mask is not None:
        raise TypeError("a mask of their own")
    assert query.shape[2] == key.shape[2], "no cache in training"
    segments = (query.shape[2],) if segments is None else segments
    sizes = [sum(parts(segment)) for segment in segments]
    assert sum(sizes) == query.shape[2], (segments, query.shape)
    alone = len(segments) == 1 and isinstance(segments[0], int)
    if not alone and query.shape[2] <= DENSE.get(query.device.type, 0):
        seen = sees(tuple(segments), sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, seen, **rest)[0], None
    outputs = []
    for segment, *qkv in zip(segments, *(x.split(sizes, 2) for x in (query, key, value)), strict=True):
        (q_prompt, *q_replies), (k_prompt, *k_replies), (v_prompt, *v_replies) = (
            x.split(parts(segment), 2) for x in qkv
        )
        outputs.append(attend(module, q_prompt, k_prompt, v_prompt, sliding_window, **rest))
        for q_reply, k_reply, v_reply in zip(q_replies, k_replies, v_replies, strict=True):
            if q_reply.shape[2] > 0:  # a reply that the length limit cut before its first token
                keys, values = torch.cat([k_prompt, k_reply], dim=2), torch.cat([v_prompt, v_reply], dim=2)
                outputs.append(attend(module, q_reply, keys, values, sliding_window, **rest))
    return torch.cat(outputs, dim=1), None


@lru_cache(maxsize=2)  # all layers of a pass ask for one
def sees(segments: tuple[Segment, ...], window: int | None, device: torch.device) -> Tensor:
    """[1, 1, T, T], True where token t of a packed row may see token s: s is of the same example, of its prompt or of
    t's own reply, and stands before t or is t; inside the sliding window where there is one."""
    example, reply = list[int](), list[int]()
    for number, segment in enumerate(segments):
        for part, length in enumerate(parts(segment)):
            example += [number] * length
            reply += [part] * length
    example_T, reply_T = torch.tensor(example, device=device), torch.tensor(reply, device=device)
    place_T = positions(segments, device)[0]
    distance = place_T[:, None] - place_T[None, :]
    seen = (example_T[:, None] == example_T[None, :]) & (distance >= 0)
    seen &= (reply_T[None, :] == 0) | (reply_T[:, None] == reply_T[None, :])
    return (seen if window is None else seen & (distance < window))[None, None]


def hidden_states(model: PreTrainedModel, tokens_BT: Tensor, segments: Sequence[Segment] | None = None) -> Tensor:
    """The trunk's last hidden states [B, T, D]; `segments` tell a model that packs what lies in its row."""
    packed: dict[str, Any] = {}
    if segments is not None:
        packed = {"position_ids": positions(segments, tokens_BT.device), "segments": segments}
    return trunk_of(model)(input_ids=tokens_BT, use_cache=False, **packed).last_hidden_state


def use_packed_attention(model: PreTrainedModel) -> str | None:
    """Switch `model` to `packed_attention` and prove it on a probe; where it fails, switch back and say why."""
    if getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None:
        return "the model attends in chunks of fixed places"
    usual = model.config._attn_implementation
    alone = [_probe(model, ids) for ids in _PROBES]
    AttentionInterface.register(PACKED, packed_attention)
    model.set_attn_implementation(PACKED)
    if (reason := _differs(model, alone)) is not None:
        model.set_attn_implementation(usual)
    return reason


def prompt_sharing_refused(model: PreTrainedModel) -> str | None:
    """Why a model that packs (`use_packed_attention`) cannot share a prompt between replies; None where it can."""
    prompt, first, second = _PROBES
    shared = _probe(model, prompt + first + second, [(len(prompt), len(first), len(second))])
    alone = [_probe(model, prompt + reply, [len(prompt) + len(reply)]) for reply in (first, second)]
    gap = relative_error(shared, torch.cat([alone[0], alone[1][len(prompt) :]]))
    return None if gap < _bound(shared.dtype) else f"a reply behind a shared prompt comes out otherwise ({gap:.1e})"


# Ids that every vocabulary has; the first two examples have one length, so that either may stand before the third.
_PROBES = ([5, 17, 9, 30, 11], [8, 2, 21, 14, 3], [12, 7, 25, 4, 19, 6, 28, 10, 15])


@torch.no_grad()
def _probe(model: PreTrainedModel, ids: list[int], segments: Sequence[Segment] | None = None) -> Tensor:
    """Last hidden states [T, D] of one row."""
    return hidden_states(model, torch.tensor([ids], device=model.device), segments)[0]


def _differs(model: PreTrainedModel, alone: list[Tensor]) -> str | None:
    first, second, third = _PROBES
    segments = (len(first), len(third))
    try:
        one, other = (_probe(model, before + third, segments) for before in (first, second))
    except DECLINES as error:
        return f"its layers do not take packed rows ({error})"
    # The neighbour's tokens changed and nothing else, so not one bit of the third example may.
    if not torch.equal(one[len(first) :], other[len(first) :]):
        return "its tokens see other examples of the row"
    gap = relative_error(one, torch.cat([alone[0], alone[2]]))
    if gap < _bound(one.dtype):
        return None
    return f"a packed example comes out otherwise than alone (relative error {gap:.1e})"


def _bound(dtype: torch.dtype) -> float:
    # What rounding in another order may cost; a position that is off by one costs far more.
    return 1e-4 if dtype == torch.float32 else 5e-2
