"""Log-probabilities and entropies from hidden states, in chunks: the [B, T, vocab] logits are never held.

The gradients are written by hand. With q = log softmax(z), p = exp q and H = −Σ p·q:

    ∂q_a/∂z_j = [j = a] − p_j,        ∂H/∂z_j = −p_j·(q_j + H)

The first one needs nothing from above but a factor a token, so it is taken in the forward pass while a chunk's logits
are there: one product with the LM head instead of two in the backward pass. The second, which only a run with an
entropy bonus asks for, computes the logits again; so does a head that learns (full fine-tuning), whose gradient is the
sum of ∂z ⊗ h over the tokens. z is what the model makes of its head's output (logits.py): where that is scaled or
capped, both have one factor more.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plaudit.models.kernels.logits import PLAIN, LogitShape

CHUNK_MIB = {"cpu": 48.0, "gpu": 256.0}
"""Memory of a chunk's logits: products over fewer rows read the LM head more often."""
BLOCK_MIB = {"cpu": 4.0, "gpu": 256.0}
"""Memory of the float32 logits among them that are worked on at a time: on a CPU they stay in its caches."""


def _rows(budget: dict[str, float], device: torch.device, size: int) -> int:
    """States whose logits, of `size` bytes a state, are within the budget."""
    return max(1, int(budget["cpu" if device.type == "cpu" else "gpu"] * 2**20) // size)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        shape: LogitShape,
        gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, slopes = [], [], []
        for hidden, targets_n1 in _chunks(hidden_ND, targets_N[:, None], weight_VD, weight_VD.element_size()):
            z_nV = _product(hidden, weight_VD, bias_V)
            found = _judged(z_nV, targets_n1, temperature, shape, entropy=True, gradient=gradient)
            logprobs.append(found[0])
            entropies.append(found[2])
            if gradient:
                slopes.append((z_nV @ weight_VD) / (-temperature * found[1]))
        entropy_N = torch.cat(entropies).squeeze(1)
        slope_ND = torch.cat(slopes).to(hidden_ND.dtype) if gradient else None
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, slope_ND, entropy_N)
        ctx.temperature, ctx.shape = temperature, shape
        return torch.cat(logprobs).squeeze(1), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs_N, grad_entropy_N = gradients
        if any(ctx.needs_input_grad[1:3]):
            return *_with_head(ctx, grad_logprobs_N, grad_entropy_N), *[None] * 4
        hidden_ND, weight_VD, bias_V, _, slope_ND, entropy_N = ctx.saved_tensors
        grad_ND = slope_ND * grad_logprobs_N[:, None]
        if grad_entropy_N.any():
            factors = torch.stack([entropy_N, grad_entropy_N / ctx.temperature], dim=1)
            grads = []
            for hidden, factor in _chunks(hidden_ND, factors, weight_VD):
                q, slope = _log_softmax(hidden, weight_VD, bias_V, ctx.temperature, ctx.shape)
                entropy, above = factor.split(1, dim=1)
                grads.append((q.exp() * (q + entropy) * above * slope).to(weight_VD.dtype) @ weight_VD)
            grad_ND = grad_ND - torch.cat(grads)
        return grad_ND.to(hidden_ND.dtype), *[None] * 6


def _judged(
    z_nV: Tensor, targets_n1: Tensor, temperature: float, shape: LogitShape, *, entropy: bool, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(target), Σ = Σ_j exp(z_j/T − max) and, if asked for, H of a chunk's head outputs, [n, 1] each, a block at a
    time. `z_nV` is used up; with `gradient` it becomes −T·Σ·∂log π(target)/∂z."""
    logprobs, totals, entropies = list[Tensor](), list[Tensor](), list[Tensor]()
    rows = _rows(BLOCK_MIB, z_nV.device, 4 * z_nV.shape[1])
    for z_rV, targets_r1 in zip(z_nV.split(rows), targets_n1.split(rows), strict=True):
        logits = shape(z_rV.float())
        slope = shape.slope(logits) if gradient else 1.0
        z = logits if temperature == 1.0 else logits / temperature
        z -= z.amax(dim=1, keepdim=True)
        z_target = z.gather(1, targets_r1)
        p = z.exp()  # up to the factor 1 / total
        total = p.sum(dim=1, keepdim=True)
        logprobs.append(z_target - total.log())
        totals.append(total)
        if entropy:
            entropies.append(total.log() - z.mul_(p).sum(dim=1, keepdim=True) / total)
        if gradient:
            # The target's own entry is 1 − p before it is rounded: all that a confident token's gradient has.
            p.scatter_(1, targets_r1, z_target.exp() - total)
            z_rV.copy_(p if shape is PLAIN else p.mul_(slope))
    return torch.cat(logprobs), torch.cat(totals), torch.cat(entropies or totals)


def _with_head(
    ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of the states, of the head's weight and of its bias."""
    hidden_ND, weight_VD, bias_V, targets_N, _, entropy_N = ctx.saved_tensors
    grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
    grad_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
    rows, grads = _rows(CHUNK_MIB, weight_VD.device, 4 * len(weight_VD)), []
    columns = (hidden_ND, *(x_N[:, None] for x_N in (targets_N, entropy_N, grad_logprobs_N, grad_entropy_N)))
    for hidden, targets, entropy, logprob_above, entropy_above in zip(*(x.split(rows) for x in columns), strict=True):
        q, slope = _log_softmax(hidden, weight_VD, bias_V, ctx.temperature, ctx.shape)
        p = q.exp()
        grad_z = (p * (q + entropy)).mul_(-entropy_above)
        p.neg_().scatter_(1, targets, -torch.expm1(q.gather(1, targets)))
        grad_z = grad_z.addcmul_(p, logprob_above).mul_(slope).div_(ctx.temperature)
        if grad_V is not None:
            grad_V += grad_z.sum(dim=0)
        grad_z = grad_z.to(weight_VD.dtype)
        grads.append(grad_z @ weight_VD)
        grad_VD += grad_z.T @ hidden
    dtype = weight_VD.dtype
    return torch.cat(grads).to(hidden_ND.dtype), grad_VD.to(dtype), None if grad_V is None else grad_V.to(dtype)


def _chunks(hidden_ND: Tensor, other: Tensor, weight_VD: Tensor, size: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    rows = _rows(CHUNK_MIB, weight_VD.device, size * len(weight_VD))
    return zip(hidden_ND.split(rows), other.split(rows), strict=True)


def _product(hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    return hidden_nD @ weight_VD.T if bias_V is None else torch.addmm(bias_V, hidden_nD, weight_VD.T)


def _log_softmax(
    hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, shape: LogitShape
) -> tuple[Tensor, Tensor | float]:
    """And ∂logits/∂(the head's output)."""
    logits = shape(_product(hidden_nD, weight_VD, bias_V).float())
    return torch.log_softmax(logits / temperature, dim=1), shape.slope(logits)


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    *,
    bias_V: Tensor | None = None,
    shape: LogitShape = PLAIN,
) -> tuple[Tensor, Tensor]:
    """log π(target) and the entropy of π for N states, both float32 [N], in nats.

    `hidden_ND` are last hidden states, `weight_VD` and `bias_V` the LM head, `targets_N` token ids,
    `shape` what the model makes of its head's output. The sampling
    temperature divides the logits here too, so that sampler and trainer speak of one law (docs/correctness.md, row 5).
    """
    assert hidden_ND.shape[0] == targets_N.shape[0] and hidden_ND.shape[1] == weight_VD.shape[1]
    if len(targets_N) == 0:
        return hidden_ND.new_zeros(0, dtype=torch.float32), hidden_ND.new_zeros(0, dtype=torch.float32)
    # Where the head learns the logits are there again in the backward pass, and its gradient is taken from them.
    gradient = torch.is_grad_enabled() and hidden_ND.requires_grad and not weight_VD.requires_grad
    logprobs_N, entropy_N = _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, targets_N, temperature, shape, gradient)
    return logprobs_N, entropy_N


class _CompletionLoss(torch.autograd.Function):
    """The gradient is taken in the forward pass, while a chunk's logits are there: they are computed only once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        shape: LogitShape,
    ) -> Tensor:
        _, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if weight_grad else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and bias_grad else None
        gradient, grads = any(ctx.needs_input_grad[:3]), []
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        for hidden, targets_n1 in _chunks(hidden_ND, targets_N[:, None], weight_VD, weight_VD.element_size()):
            z_nV = _product(hidden, weight_VD, bias_V)
            logprobs, totals, _ = _judged(z_nV, targets_n1, 1.0, shape, entropy=False, gradient=gradient)
            loss -= logprobs.sum()
            if gradient:
                grads.append((z_nV @ weight_VD) / totals)
            if grad_V is not None:
                grad_V += (z_nV / totals).sum(dim=0)
            if grad_VD is not None:
                grad_VD += (z_nV.T @ (hidden / totals).to(z_nV.dtype)).float()
        hidden_grad_ND = torch.cat(grads).to(hidden_ND.dtype) if grads else None
        ctx.save_for_backward(hidden_grad_ND, *(x if x is None else x.to(weight_VD.dtype) for x in (grad_VD, grad_V)))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, grad_VD, grad_V = ctx.saved_tensors
        learnt = (None if x is None else x * grad for x in (grad_VD, grad_V))
        return hidden_grad_ND * grad.to(hidden_grad_ND.dtype), *learnt, None, None


def completion_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    shape: LogitShape = PLAIN,
) -> Tensor:
    """−Σ log π(target) over N states at temperature 1, one float32 number in nats; see `token_logprobs`.

    What SFT needs and no more: no entropies, and half the products of `token_logprobs` where its weight is frozen. A
    weight and a bias that learn (full fine-tuning) get their gradients too.
    """
    assert hidden_ND.shape[0] == targets_N.shape[0] and hidden_ND.shape[1] == weight_VD.shape[1]
    return _CompletionLoss.apply(hidden_ND, weight_VD, bias_V, targets_N, shape)
