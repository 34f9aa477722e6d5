"""Adapted layers and norms in few steps, with gradients written by hand.

PEFT computes x·Wᵀ + s·(x·Aᵀ)·Bᵀ as five operations, each with a node of its own in the backward pass, and
transformers an RMS norm as seven. Here each is one node: the low-rank product is added into the base's in place, and a
norm keeps its bf16 input and one number a token instead of float32 copies (docs/benchmarks.md has what that gives).

`fuse` changes how the modules compute, not what they are: parameters, names and PEFT's format stay. What does not fit
(a variant of LoRA, adapters in another format, a norm with another formula) is left to its library. PLAUDIT_PLAIN=1
leaves everything to them, to tell whether a surprise comes from here.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from plaudit.models.probe import relative_error


def plain() -> bool:
    """Whether the libraries' own paths are asked for: the environment variable PLAUDIT_PLAIN is 1."""
    return os.environ.get("PLAUDIT_PLAIN") == "1"


def fuse(model: nn.Module) -> None:
    """Let the LoRA layers and the frozen RMS norms of `model` compute in one step each."""
    if plain():
        return
    for module in model.modules():
        if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
            module.forward = _lora_forward(module)
        elif _is_rms_norm(module):
            module.forward = _norm_forward(module)


class _Lora(torch.autograd.Function):
    """y = x·Wᵀ + b + u·Bᵀ with u = s·x·Aᵀ (Hu et al. 2021, arXiv:2106.09685, eq. 3); W and b are frozen.

    ∂x = g·W + v·A, ∂A = vᵀ·x, ∂B = gᵀ·u, with v = s·g·B.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        u_NR = (x_ND @ a.T).mul_(scaling)
        y_NO = x_ND @ weight.T if bias is None else torch.addmm(bias, x_ND, weight.T)
        y_NO.addmm_(u_NR, b.T)
        ctx.save_for_backward(x_ND, u_NR, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x_ND, u_NR, weight, a, b = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        g_NO = grad.reshape(-1, grad.shape[-1])
        v_NR = (g_NO @ b).mul_(ctx.scaling)
        grad_x = (g_NO @ weight).addmm_(v_NR, a).view(ctx.shape) if needs_x else None
        return grad_x, None, None, v_NR.T @ x_ND if needs_a else None, g_NO.T @ u_NR if needs_b else None, None


def _lora_forward(layer: LoraLinear) -> Callable[..., Tensor]:
    own = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = layer.get_base_layer()
        (name,) = layer.active_adapters if len(layer.active_adapters) == 1 else (None,)
        if layer.disable_adapters or name not in layer.lora_A:
            return own(x, *args, **kwargs)
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        known = layer.lora_B[name].bias is None and name not in layer.lora_variant and not layer.merged
        dropped = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
        frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
        one_format = x.dtype == a.dtype == b.dtype == base.weight.dtype and not torch.is_autocast_enabled(x.device.type)
        if args or kwargs or dropped or not (known and frozen and one_format):
            return own(x, *args, **kwargs)
        return _Lora.apply(x, base.weight, base.bias, a, b, layer.scaling[name])

    return forward


class _RmsNorm(torch.autograd.Function):
    """y = w∘x·ρ with ρ = (mean x² + ε)^−½ (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4); w is frozen.

    With h = x·ρ and g̃ = w∘g: ∂x = ρ·(g̃ − h·mean(g̃∘h)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        h = x.float() * scale
        g = (grad * weight).float()
        mean = (g * h).mean(dim=-1, keepdim=True)
        return g.sub_(h.mul_(mean)).mul_(scale).to(x.dtype), None, None


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y, and ρ [..., 1]."""
    h = x.float()
    scale = h.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return (h * scale).to(x.dtype).mul_(weight), scale


def _norm_forward(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    own, eps = norm.forward, float(vars(norm)["variance_epsilon"])

    def forward(x: Tensor) -> Tensor:
        weight = norm.get_parameter("weight")
        if weight.requires_grad:  # unfrozen since
            return own(x)
        if x.device.type == "cuda":  # torch has it as one kernel there
            return nn.functional.rms_norm(x, weight.shape, weight, eps)
        return _RmsNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]

    return forward


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether `module` is a frozen norm of this very formula: its name says so, and a probe."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    if not isinstance(weight, Tensor) or weight.dim() != 1 or weight.requires_grad or weight.is_meta:
        return False
    with torch.enable_grad():
        probe = torch.linspace(-3, 5, 2 * len(weight), device=weight.device).view(2, -1).to(weight.dtype)
        found = []
        for function in (module, _norm_forward(module)):
            leaf = probe.clone().requires_grad_()
            out = function(leaf)
            out.sum().backward()
            found.append((out.detach(), leaf.grad))
    return all(_close(ours, theirs) for theirs, ours in zip(*found, strict=True))


def _close(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None or ours.dtype != theirs.dtype:
        return False
    bound = 1e-5 if ours.dtype == torch.float32 else 2e-2
    return relative_error(ours, theirs) < bound
