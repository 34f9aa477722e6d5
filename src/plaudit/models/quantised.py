"""The frozen base in few bits. Every product is with the plain weights that the bits stand for, so the base is exactly
those: adapters learn on them, and are merged into them.

    nf4     4 bits a weight and a scale for 64 of them (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3), by
            bitsandbytes: 0.56 bytes a weight
    int8    8 bits and a scale a row, a power of two, so that bfloat16 holds what they stand for: 1 byte a weight

The linear layers that a pass calls are quantised; the embedding, the LM head and the norms stay what they are. A plain
weight is there while its layer computes, in the backward pass once more.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.config import Quantise

BLOCK = 64
"""Weights that share a scale in nf4."""


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose `weight` holds the bits."""

    def __init__(self, linear: nn.Linear, how: Quantise):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.how, self.dtype = how, linear.weight.dtype
        bits, scales = (_nf4 if how == "nf4" else _int8)(linear.weight.detach())
        self.weight = nn.Parameter(bits, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def dequantised(self) -> Tensor:
        """The plain weight [O, I], in the format that the layer had."""
        if self.how == "int8":
            return self.weight.to(self.dtype).mul_(self.scales.to(self.dtype))
        from bitsandbytes.functional import QuantState, dequantize_4bit

        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(self.scales, shape, blocksize=BLOCK, quant_type="nf4", dtype=self.dtype)
        return dequantize_4bit(self.weight, state)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dequantised(), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantised(), None


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    bits, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return bits, state.absmax


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    largest = weight.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-30)
    scales = torch.exp2(torch.ceil(torch.log2(largest / 127)))
    return (weight.float() / scales).round_().to(torch.int8), scales


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, quantised or not."""
    return layer.dequantised() if isinstance(layer, QuantisedLinear) else layer.get_parameter("weight")


def check_quantise(how: Quantise | None) -> None:
    """UserError where what it needs is not installed."""
    if how == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantise=nf4 needs bitsandbytes: pip install 'plaudit[quantise]'; int8 and null need nothing")


def quantise(model: PreTrainedModel, layers: Iterable[str], how: Quantise, device: torch.device) -> None:
    """Put the named layers of a plain model in few bits, one by one, on `device`."""
    for name in layers:
        model.set_submodule(name, QuantisedLinear(model.get_submodule(name).to(device), how))
