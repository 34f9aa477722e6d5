"""Attention over packed rows: every example attends to itself alone, at a cost linear in the number of examples.

transformers can block attention between packed examples with a dense [T, T] mask made from the position ids: on a CPU
that costs T² whatever the examples' lengths, and keeps SDPA from its fast causal kernel. Here a packed row goes
through SDPA one example at a time instead, under a name of ours in transformers' registry of attention functions. An
architecture whose layers do not go through that registry, or that mixes tokens by other means (a state, a
convolution), is found out by a probe and is not packed.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED = "plaudit_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of [B, heads, T, D], with `segments` inside each example of the row only; [B, T, heads, D].

    transformers makes no mask for a name that is only in the registry of attention functions, so the sliding window is
    applied here. Without `segments` rows are padded on the right, where a causal pass needs no mask.
    """
    assert attention_mask is None and query.shape[2] == key.shape[2], "no mask and no cache in training"
    segments = (query.shape[2],) if segments is None else segments
    assert sum(segments) == query.shape[2], (segments, query.shape)
    parts = zip(query.split(segments, 2), key.split(segments, 2), value.split(segments, 2), strict=True)
    outputs = []
    for q, k, v in parts:
        mask = _band(q.shape[2], sliding_window, q.device)
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **rest)[0])
    return torch.cat(outputs, dim=1), None


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """True where query t may see key s: t − window < s ≤ t; None where the causal kernel does that already."""
    if window is None or length <= window:
        return None
    t = torch.arange(length, device=device)
    distance = t[:, None] - t[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def use_packed_attention(model: PreTrainedModel) -> str | None:
    """Switch `model` to `packed_attention` and prove it on a probe; where it fails, switch back and say why."""
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None) is not None:
        return "the model attends in chunks of fixed places"
    usual = model.config._attn_implementation
    trunk = getattr(model, model.base_model_prefix)
    alone = [_probe(model, trunk, [ids], None) for ids in _PROBES]
    AttentionInterface.register(PACKED, packed_attention)
    model.set_attn_implementation(PACKED)
    reason = _differs(model, trunk, alone)
    if reason is not None:
        model.set_attn_implementation(usual)
    return reason


# Ids that every vocabulary has; the first two examples have one length, so that either may stand before the third.
_PROBES = ([5, 17, 9, 30, 11], [8, 2, 21, 14, 3], [12, 7, 25, 4, 19, 6, 28, 10, 15])


@torch.no_grad()
def _probe(
    model: PreTrainedModel, trunk: torch.nn.Module, rows: list[list[int]], segments: tuple[int, ...] | None
) -> Tensor:
    """Last hidden states [T, D] of the examples in one row."""
    ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
    more: dict[str, Any] = {}
    if segments is not None:
        more["position_ids"] = torch.cat([torch.arange(n, device=model.device) for n in segments])[None]
        more["segments"] = segments
    return trunk(input_ids=ids, use_cache=False, **more).last_hidden_state[0]


def _differs(model: PreTrainedModel, trunk: torch.nn.Module, alone: list[Tensor]) -> str | None:
    first, second, third = _PROBES
    segments = (len(first), len(third))
    try:
        one = _probe(model, trunk, [first, third], segments)
        other = _probe(model, trunk, [second, third], segments)
    except TypeError as error:
        return f"its layers do not take packed rows ({error})"
    # The neighbour's tokens changed and nothing else, so not one bit of the third example may.
    if not torch.equal(one[len(first) :], other[len(first) :]):
        return "its tokens see other examples of the row"
    expected = torch.cat([alone[0], alone[2]]).float()
    gap = ((one.float() - expected).norm() / expected.norm()).item()
    # What rounding in another order may cost; a position that is off by one costs far more.
    bound = 1e-4 if one.dtype == torch.float32 else 5e-2
    return None if gap < bound else f"a packed example comes out otherwise than alone (relative error {gap:.1e})"
