"""Attention of short sequences on a CPU, where the backward pass of torch's own kernel is slow.

torch's fused CPU kernel never holds the [T, S] weights and computes them again in the backward pass: right for long
sequences, but for 137 tokens in bfloat16 its backward takes four times as long as the products themselves
(docs/benchmarks.md). Here the weights are held and every step is one batched product. Grouped key and value heads are
not repeated: the queries of a group are rows of one product. Softmax and its gradient are in float32.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from plaudit.models.kernels.probe import libraries_only

LONGEST = 320
"""Keys up to which this one is used: it was faster at 64, 137 and 256 and slower at 512; the line was drawn between."""


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **rest: Any
) -> Tensor:
    """Causal attention of query [B, H, T, D] over key and value [B, KV, S, D], within a sliding `window` where there is
    one; returns [B, T, H, D]. The queries are those of the last T of the S tokens."""
    T, S = query.shape[2], key.shape[2]
    if query.device.type != "cpu" or S > LONGEST or rest.get("dropout") or libraries_only():
        # The kernel is causal by itself where there is nothing before the queries.
        mask = None if T == S and (window is None or window >= S) else _seen(T, S, window, query.device)
        return sdpa_attention_forward(module, query, key, value, mask, **rest)[0]
    if torch.is_autocast_enabled("cpu"):  # full fine-tuning; torch's own kernel is cast the same way
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    scale = rest.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _Short.apply(query, key, value, _bias(T, S, window), scale)
    return out.transpose(1, 2)


def _seen(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """[1, 1, T, S], True where the query at place t may see the key at place s: t − window < s ≤ t."""
    t, s = torch.arange(S - T, S, device=device), torch.arange(S, device=device)
    distance = t[:, None] - s[None, :]
    return ((distance >= 0) & (distance < (S if window is None else window)))[None, None]


@lru_cache(maxsize=64)  # all layers of a pass ask for the same; 26 MB at most
def _bias(T: int, S: int, window: int | None) -> Tensor:
    """[T, S], 0 where a query may see a key and −∞ elsewhere."""
    return torch.zeros(T, S).masked_fill_(~_seen(T, S, window, torch.device("cpu"))[0, 0], -torch.inf)


class _Short(torch.autograd.Function):
    """softmax(scale·q·kᵀ)·v; dS = P∘(dP − Σ_s dP∘P) with dP = dO·vᵀ (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias_TS: Tensor, scale: float) -> Tensor:
        B, H, T, _ = query.shape
        groups, S = key.shape[1], key.shape[2]
        # [B·KV, (H/KV)·T, D]: the heads that share a key are rows of one product.
        q, k, v = (x.reshape(B * groups, -1, x.shape[3]) for x in (query, key, value))
        # One pass makes float32 of the scores, scales and masks them.
        scores = torch.add(bias_TS, torch.bmm(q, k.transpose(1, 2)).view(-1, T, S), alpha=scale)
        weights = scores.softmax(dim=-1).to(query.dtype).view(len(q), -1, S)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        # Values may be of another size than keys: DeepSeek's latent attention.
        return torch.bmm(weights, v).view(B, H, T, value.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weights = ctx.saved_tensors
        query_shape, key_shape, value_shape = ctx.shapes
        g = grad.reshape(len(v), -1, v.shape[2])
        grad_v = torch.bmm(weights.transpose(1, 2), g)
        grad_weights = torch.bmm(g, v.transpose(1, 2))
        # Sums in float32, rounded once; the products take the scale before they round (at β = 0 what is added to them
        # is not read).
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.baddbmm(q, grad_scores, k, beta=0, alpha=ctx.scale)
        grad_k = torch.baddbmm(k, grad_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        return grad_q.view(query_shape), grad_k.view(key_shape), grad_v.view(value_shape), None, None
