"""LoRA layers executed by one autograd function: y = x·Wᵀ + bias + (x·Aᵀ)·(alpha/r·B)ᵀ.

PEFT owns the adapters' format, configuration and initialisation. Its own execution keeps A and B in float32 and so
casts every input and output of a bfloat16 layer to float32 and back, which on a CPU costs as much as the layer's own
product. Here the products run in the layer's format, A and B being rounded to it for the pass, and are added in
place; their gradients come back in float32. In float32 the two are equal but for the order of the sums.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a_RD: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        a_RD, b_OR = a_RD.to(x.dtype), (b_OR * scale).to(x.dtype)
        h_NR = x_ND @ a_RD.T
        y_NO = nn.functional.linear(x_ND, weight, bias).addmm_(h_NR, b_OR.T)
        ctx.save_for_backward(x_ND, weight, h_NR, a_RD, b_OR)
        ctx.scale = scale
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_ND, weight, h_NR, a_RD, b_OR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_NR = grad_NO @ b_OR
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight).addmm_(grad_NR, a_RD).view(*grad.shape[:-1], -1)
        grad_a, grad_b = (grad_NR.T @ x_ND).float(), (grad_NO.T @ h_NR).float() * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.base_layer
    if layer._disable_adapters:
        return base(x)
    (name,) = layer._active_adapter
    a_RD, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoraLinear.apply(x, base.weight, base.bias, a_RD, b_OR, layer.scaling[name])


def fuse(layers: Iterable[LoraLayer]) -> int:
    """Let plain LoRA layers run by the function above; others (GPT-2's transposed ones) stay PEFT's. Returns how many.

    "Plain": a frozen `nn.Linear` without dropout on the adapter, and none of LoRA's variants.
    """
    fused = 0
    for layer in layers:
        base = layer.get_base_layer()
        dropouts = all(isinstance(module, nn.Identity) for module in layer.lora_dropout.values())
        if type(layer) is PeftLinear and type(base) is nn.Linear and dropouts and not layer.lora_variant:
            layer.forward = partial(_forward, layer)
            fused += 1
    return fused
