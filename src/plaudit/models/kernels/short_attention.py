"""Attention of short sequences on a CPU, where the backward pass of torch's own kernel is slow.

torch's fused CPU kernel never holds the [T, S] weights and computes them again in the backward pass: right for long
sequences, but for 137 tokens in bfloat16 its backward takes four times as long as the products themselves
(docs/benchmarks.md). Here the weights are held and every step is one batched product. Grouped key and value heads are
not repeated: the queries of a group are rows of one product. Softmax and its gradient are in float32.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from plaudit.models.kernels.probe import libraries_only

LONGEST = 320
"""Keys up to which this one is used: it was faster at 64, 137 and 256 and slower at 512; the line was drawn between."""


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> Tensor:
    """Attention of query [B, H, T, D] over key and value [B, KV, S, D]; returns [B, T, H, D].

    `mask` [1, 1, T, S] is True where a query may see a key; None is causal, and then T = S.
    """
    if query.device.type != "cpu" or key.shape[2] > LONGEST or rest.get("dropout") or libraries_only():
        return sdpa_attention_forward(module, query, key, value, mask, **rest)[0]
    if torch.is_autocast_enabled("cpu"):  # full fine-tuning; torch's own kernel is cast the same way
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    scale = rest.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    bias_TS = torch.full((query.shape[2], key.shape[2]), -torch.inf)
    if mask is None:
        bias_TS.triu_(1)  # 0 on and below the diagonal
    else:
        bias_TS.masked_fill_(mask.reshape(bias_TS.shape), 0.0)
    out: Tensor = _Short.apply(query, key, value, bias_TS, scale)
    return out.transpose(1, 2)


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
        grad_weights, p = torch.bmm(g, v.transpose(1, 2)).float(), weights.float()
        grad_weights.mul_(p)
        grad_scores = grad_weights.sub_(p.mul_(grad_weights.sum(dim=-1, keepdim=True))).mul_(ctx.scale).to(q.dtype)
        grad_q = torch.bmm(grad_scores, k)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_q.view(query_shape), grad_k.view(key_shape), grad_v.view(value_shape), None, None
