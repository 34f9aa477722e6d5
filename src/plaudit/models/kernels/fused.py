"""Adapted layers, gated MLPs of them and norms in few steps, with gradients written by hand.

PEFT computes x·Wᵀ + s·(x·Aᵀ)·Bᵀ as five operations, each with a node of its own in the backward pass, and
transformers an RMS norm as seven. Here each is one node: the base's product is added to the low-rank one before the sum
is rounded, else bfloat16 loses most of a small adapter; a norm keeps its bf16 input and one number a token instead of
float32 copies, an MLP half of its numbers (docs/benchmarks.md has what that gives).

`fuse` changes how the modules compute, not what they are: parameters, names and PEFT's format stay. What does not fit
(a variant of LoRA, adapters in another format, a norm or an MLP with another formula) is left to its library.
PLAUDIT_PLAIN=1 leaves everything to them, to tell whether a surprise comes from here.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from plaudit.models.kernels.probe import libraries_only, relative_error

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that read one input, called in this order."""


def fuse(model: nn.Module, *, plain_base: bool = False, base_first: bool = False) -> None:
    """Let the LoRA layers, MLPs that are gated by SiLU and made of them and the frozen RMS norms of `model` compute in
    one step each. A layer without its adapter rounds as one whose adapter is zero, so that a fresh policy is its
    reference to the last bit; with `plain_base`, beside a policy without adapters, it and the norms are left to the
    library. With `base_first` the base's product is rounded before the low-rank one is added, as PEFT does it, and
    vLLM."""
    if libraries_only():
        return
    joined: set[nn.Module] = set()
    for module in list(model.modules()):  # parents come before their children
        if not plain_base and _is_rms_norm(module):
            module.forward = _norm_forward(module)
        for names in SIBLINGS:
            layers = [child for name, child in module.named_children() if name in names and _is_lora(child)]
            if layers:
                _Family(layers, base_first, plain_base)
                joined.update(layers)
        if _is_lora(module) and module not in joined:
            _Family([module], base_first, plain_base)
    for module in model.modules():
        if _is_gated_mlp(module):
            module.forward = _mlp_forward(module, base_first)


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear


class _Parts(NamedTuple):
    """Of adapted layers that read one input: their W, A, B and, where they have them, b."""

    weights: Sequence[Tensor]
    a: Sequence[Tensor]
    b: Sequence[Tensor]
    biases: Sequence[Tensor] = ()

    @property
    def a_RD(self) -> Tensor:
        """All A as one."""
        return self.a[0] if len(self.a) == 1 else torch.cat(list(self.a))

    @property
    def ranks(self) -> list[int]:
        return [len(one) for one in self.a]


def _split(parts: Sequence[Tensor], count: int) -> _Parts:
    """`parts`: W of `count` layers, then their A, B and perhaps b."""
    return _Parts(*(parts[start : start + count] for start in range(0, len(parts), count)))


def _adapted(x_ND: Tensor, parts: _Parts, scaling: float, base_first: bool) -> tuple[list[Tensor], Tensor]:
    """y [N, O] of each layer, and u = s·x·Aᵀ [N, R] of all of them, side by side."""
    u_NR = (x_ND @ parts.a_RD.T).mul_(scaling)
    outputs = []
    for i, u_Nr in enumerate(u_NR.split(parts.ranks, dim=1)):
        # The small product first: the large one adds to it before it rounds. Added to what is rounded already, an
        # adapter of less than half a step of bfloat16 would be lost whole, and such are all when they begin.
        low, whole = (u_Nr, parts.b[i].T), (x_ND, parts.weights[i].T)
        first, then = (whole, low) if base_first else (low, whole)
        y_NO = (first[0] @ first[1]).addmm_(*then)
        if parts.biases:
            y_NO += parts.biases[i]
        outputs.append(y_NO)
    return outputs, u_NR


def _slopes(
    g_NO: Sequence[Tensor], x_ND: Tensor, u_NR: Tensor, parts: _Parts, scaling: float, *, of_x: bool, learns: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """∂x [N, D], and the ∂A of all layers, then their ∂B, where ∂y are `g_NO`."""
    parts_v = [g @ b for g, b in zip(g_NO, parts.b, strict=True)]
    v_NR = (parts_v[0] if len(parts_v) == 1 else torch.cat(parts_v, dim=1)).mul_(scaling)
    grad_x = None
    if of_x:
        grad_x = v_NR @ parts.a_RD  # the small product first, as in the forward pass
        for g, weight in zip(g_NO, parts.weights, strict=True):
            grad_x.addmm_(g, weight)
    if not learns:
        return grad_x, [None] * (2 * len(g_NO))
    us = u_NR.split(parts.ranks, dim=1)
    return grad_x, [*(v_NR.T @ x_ND).split(parts.ranks), *(g.T @ u for g, u in zip(g_NO, us, strict=True))]


class _Lora(torch.autograd.Function):
    """y = x·Wᵀ + b + u·Bᵀ with u = s·x·Aᵀ (Hu et al. 2021, arXiv:2106.09685, eq. 3); W and b are frozen.

    ∂x = g·W + v·A, ∂A = vᵀ·x, ∂B = gᵀ·u, with v = s·g·B. For several layers of one x: their A are rows of one product,
    and so are their v; what ∂x is made of is summed up inside the products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scaling: float, base_first: bool, count: int, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        """`parts`: W of `count` layers, then their A, B and, where they have one, b; returns their y."""
        x_ND = x.reshape(-1, x.shape[-1])
        outputs, u_NR = _adapted(x_ND, _split(parts, count), scaling, base_first)
        ctx.save_for_backward(x_ND, u_NR, *parts[: 3 * count])
        ctx.scaling, ctx.shape, ctx.count = scaling, x.shape, count
        return tuple(_like(y_NO, x) for y_NO in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, u_NR, *parts = ctx.saved_tensors
        of_x, _, _, _, *needs = ctx.needs_input_grad
        g_NO = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        # Adapters of one name learn together.
        given = _split(parts, ctx.count)
        grad_x, found = _slopes(g_NO, x_ND, u_NR, given, ctx.scaling, of_x=of_x, learns=any(needs))
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        nothing = [None] * ctx.count
        return (grad_x, None, None, None, *nothing, *found, *[None] * (len(needs) - 3 * ctx.count))


def _like(y_NO: Tensor, x: Tensor) -> Tensor:
    """[..., O] as x is [..., D]. No view: some models add to a layer's output in place (Llama 4's shared experts)."""
    out: Tensor = torch.ops.aten._unsafe_view(y_NO, (*x.shape[:-1], y_NO.shape[1]))
    return out


class _GatedMlp(torch.autograd.Function):
    """down(SiLU(gate(x))∘up(x)), the three adapted (Shazeer 2020, arXiv:2002.05202, eq. 6).

    Of four numbers for each inner feature two are kept, gate(x) and up(x): what is made of them is made again in the
    backward pass, by the same steps to the same bits. That is a quarter of all that a pass keeps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scalings: tuple[float, float], base_first: bool, each: int, *parts: Tensor
    ) -> Tensor:
        """`parts`: W of gate and up, their A, B and perhaps b, 2·`each` in all; then those of down."""
        x_ND, inner, outer = x.reshape(-1, x.shape[-1]), parts[: 2 * each], parts[2 * each :]
        (gate, up), u_NR = _adapted(x_ND, _split(inner, 2), scalings[0], base_first)
        h = nn.functional.silu(gate).mul_(up)
        (y_NO,), u_Nr = _adapted(h, _split(outer, 1), scalings[1], base_first)
        ctx.save_for_backward(x_ND, gate, up, u_NR, u_Nr, *inner[:6], *outer[:3])
        ctx.scalings, ctx.shape, ctx.each = scalings, x.shape, each
        return _like(y_NO, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gate, up, u_NR, u_Nr, *parts = ctx.saved_tensors
        of_x, _, _, _, *needs = ctx.needs_input_grad
        learns = any(needs)
        s = nn.functional.silu(gate)
        g_NO = [gradient.reshape(-1, gradient.shape[-1])]
        down = _split(parts[6:], 1)
        grad_h, outer = _slopes(g_NO, s * up, u_Nr, down, ctx.scalings[1], of_x=True, learns=learns)
        assert grad_h is not None
        grad_up = s.mul_(grad_h)
        grad_gate = torch.ops.aten.silu_backward(grad_h.mul_(up), gate)
        both = _split(parts[:6], 2)
        grad_x, inner = _slopes([grad_gate, grad_up], x_ND, u_NR, both, ctx.scalings[0], of_x=of_x, learns=learns)
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        biases = [None] * (ctx.each - 3)
        return grad_x, None, None, None, None, None, *inner, *biases * 2, None, *outer, *biases


class _Family:
    """Adapted layers that read one input: the first one asked computes for all, the others fetch what it left.

    Where one of them cannot (another adapter, a variant of LoRA) each computes for itself, by PEFT if it must.
    """

    def __init__(self, layers: list[nn.Module], base_first: bool, plain_base: bool):
        self.layers, self.base_first, self.plain_base = layers, base_first, plain_base
        # The input and its outputs are one object: a pass in another thread finds its own or none.
        self.left: tuple[Tensor, tuple[Tensor, ...]] | None = None
        for place, layer in enumerate(layers):
            layer.forward = self._forward_of(place, layer, layer.forward)

    def _forward_of(self, place: int, layer: nn.Module, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            left = self.left
            if place > 0 and left is not None and x is left[0]:
                if place + 1 == len(self.layers):
                    self.left = None
                return left[1][place]
            mine = None if args or kwargs else _parts(layer, x)
            if mine is None:
                bare = None if self.plain_base or args or kwargs else _bare(layer, x)
                return own(x, *args, **kwargs) if bare is None else bare
            parts, scaling = mine
            every = [mine, *(_parts(other, x) for other in self.layers[1:])] if place == 0 else [mine]
            alike = [one for one in every if one is not None and one[1] == scaling and len(one[0]) == len(parts)]
            if len(alike) == 1 or len(alike) < len(every):
                return _Lora.apply(x, scaling, self.base_first, 1, *parts)[0]
            each = chain(*zip(*(one[0] for one in alike), strict=True))
            outputs: tuple[Tensor, ...] = _Lora.apply(x, scaling, self.base_first, len(alike), *each)
            self.left = x, outputs
            return outputs[0]

        return forward


def _bare(layer: Any, x: Tensor) -> Tensor | None:
    """x·Wᵀ + b of a layer with a bias and no adapter switched on, rounded where `_adapted` rounds: before the bias,
    which a library adds first; None for any other layer."""
    base, adapted = layer.get_base_layer(), any(name in layer.lora_A for name in layer.active_adapters)
    if base.bias is None or layer.merged or (adapted and not layer.disable_adapters):
        return None
    return nn.functional.linear(x, base.weight).add_(base.bias)


def _parts(layer: Any, x: Tensor) -> tuple[list[Tensor], float] | None:
    """W, A, B and, where there is one, b of a layer with one plain adapter switched on, and its s; None otherwise."""
    base = layer.get_base_layer()
    weight, bias = base.weight, base.bias
    (name,) = layer.active_adapters if len(layer.active_adapters) == 1 else (None,)
    if layer.disable_adapters or name not in layer.lora_A:
        return None
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    known = layer.lora_B[name].bias is None and name not in layer.lora_variant and not layer.merged
    dropped = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    one_format = x.dtype == a.dtype == b.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    if dropped or not (known and frozen and one_format):
        return None
    return [weight, a, b, *([] if bias is None else [bias])], layer.scaling[name]


MLP = ("gate_proj", "up_proj", "down_proj")


def _mlp_forward(mlp: nn.Module, base_first: bool) -> Callable[..., Tensor]:
    own, layers = mlp.forward, [mlp.get_submodule(name) for name in MLP]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = [one for layer in layers if (one := _parts(layer, x)) is not None]
        if args or kwargs or len(found) < len(layers):
            return own(x, *args, **kwargs)
        (gate, s), (up, s_up), (down, s_down) = found
        if s != s_up or not len(gate) == len(up) == len(down):
            return own(x)
        inner = chain(*zip(gate, up, strict=True))
        out: Tensor = _GatedMlp.apply(x, (s, s_down), base_first, len(gate), *inner, *down)
        return out

    return forward


@torch.no_grad()
def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether `module` is down(SiLU(gate(x))∘up(x)) and no more: its parts say so, and a probe."""
    children = dict(module.named_children())
    if not {*MLP} < {*children} or not all(_is_lora(children[name]) for name in MLP):
        return False
    rest = [child for name, child in children.items() if name not in MLP]
    first: Any = children["gate_proj"]
    weight: Tensor = first.get_base_layer().weight
    if not all(isinstance(child, nn.SiLU | SiLUActivation) for child in rest) or weight.is_meta:
        return False
    # Of two sizes, since a limit on what the gate lets through shows in large numbers alone.
    row = torch.linspace(-3, 5, weight.shape[1], device=weight.device)
    probe = torch.stack([row, 1000 * row]).to(weight.dtype)
    gate, up, down = (children[name] for name in MLP)
    own = down(nn.functional.silu(gate(probe)) * up(probe))
    return torch.equal(module(probe), own)


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
        return g.addcmul_(h, mean, value=-1).mul_(scale).to(x.dtype), None, None


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
        found: list[tuple[Tensor, Tensor]] = []
        for function in (module, _norm_forward(module)):
            leaf = probe.clone().requires_grad_()
            out = function(leaf)
            (slope,) = torch.autograd.grad(out.sum(), leaf)
            found.append((out.detach(), slope))
    bound = 1e-5 if probe.dtype == torch.float32 else 2e-2
    return all(
        ours.dtype == theirs.dtype and relative_error(ours, theirs) < bound for theirs, ours in zip(*found, strict=True)
    )
