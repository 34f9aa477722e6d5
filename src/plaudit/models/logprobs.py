"""Log-probabilities and entropies from hidden states, in chunks: the [B, T, vocab] logits are never held.

The gradient is written by hand and recomputes a chunk's logits, so that the peak memory of forward and backward is
that of one chunk. With q = log softmax(z), p = exp q and H = −Σ p·q:

    ∂q_a/∂z_j = [j = a] − p_j,        ∂H/∂z_j = −p_j·(q_j + H)
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 256


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for hidden, targets in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
            q = _log_softmax(hidden, weight_VD, temperature)
            logprobs.append(q.gather(1, targets[:, None]).squeeze(1))
            entropies.append(-(q.exp() * q).sum(dim=1))
        entropy_N = torch.cat(entropies)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, entropy_N)
        ctx.temperature = temperature
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        hidden_ND, weight_VD, targets_N, entropy_N = ctx.saved_tensors
        grad_logprobs_N, grad_entropy_N = gradients
        grads = []
        for part in torch.arange(len(targets_N), device=hidden_ND.device).split(CHUNK):
            q = _log_softmax(hidden_ND[part], weight_VD, ctx.temperature)
            p = q.exp()
            grad_z = -p * grad_logprobs_N[part, None]
            grad_z.scatter_add_(1, targets_N[part, None], grad_logprobs_N[part, None])
            if grad_entropy_N.any():
                grad_z -= grad_entropy_N[part, None] * p * (q + entropy_N[part, None])
            grads.append((grad_z / ctx.temperature).to(weight_VD.dtype) @ weight_VD)
        return torch.cat(grads).to(hidden_ND.dtype), None, None, None


def _log_softmax(hidden_nD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax((hidden_nD @ weight_VD.T).float().div_(temperature), dim=-1)


def token_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π(target) and the entropy of π for N states, both float32 [N], in nats.

    `hidden_ND` are last hidden states, `weight_VD` the frozen LM head, `targets_N` token ids. The sampling
    temperature divides the logits here too, so that sampler and trainer speak of one law (correctness.md row 5).
    """
    assert hidden_ND.shape[0] == targets_N.shape[0] and hidden_ND.shape[1] == weight_VD.shape[1]
    assert not weight_VD.requires_grad, "the LM head is frozen: its gradient is not computed here"
    if len(targets_N) == 0:
        return hidden_ND.new_zeros(0, dtype=torch.float32), hidden_ND.new_zeros(0, dtype=torch.float32)
    logprobs_N, entropy_N = _TokenLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature)
    return logprobs_N, entropy_N


class _CompletionLoss(torch.autograd.Function):
    """The gradient is taken in the forward pass, while a chunk's logits are there: they are computed only once."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        hidden_grad, weight_grad = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if weight_grad else None
        total, grads = hidden_ND.new_zeros((), dtype=torch.float32), []
        for hidden, targets in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
            q = _log_softmax(hidden, weight_VD, 1.0)
            total -= q.gather(1, targets[:, None]).sum()
            if hidden_grad or weight_grad:
                grad_z = q.exp_()
                grad_z[torch.arange(len(targets), device=grad_z.device), targets] -= 1
                grad_z = grad_z.to(weight_VD.dtype)
                grads.append(grad_z @ weight_VD)
                if grad_VD is not None:
                    grad_VD += (grad_z.T @ hidden).float()
        hidden_grad_ND = torch.cat(grads).to(hidden_ND.dtype) if grads else None
        ctx.save_for_backward(hidden_grad_ND, None if grad_VD is None else grad_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_grad_ND, grad_VD = ctx.saved_tensors
        return hidden_grad_ND * grad.to(hidden_grad_ND.dtype), None if grad_VD is None else grad_VD * grad, None


def completion_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """−Σ log π(target) over N states at temperature 1, one float32 number in nats.

    What SFT needs and no more: no entropies, and half the products of `token_logprobs` where its weight is frozen. A
    weight that learns (full fine-tuning) gets its gradient too.
    """
    assert hidden_ND.shape[0] == targets_N.shape[0] and hidden_ND.shape[1] == weight_VD.shape[1]
    return _CompletionLoss.apply(hidden_ND, weight_VD, targets_N)
