"""Chunked log-probabilities and entropies against the full logits and autograd."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.models import logprobs
from plaudit.models.kernels.logits import LogitShape
from plaudit.models.logprobs import completion_loss, token_logprobs

VOCABULARY, HIDDEN, CHUNK = 23, 8, 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_MIB", {"cpu": 4 * VOCABULARY * CHUNK / 2**20})
    monkeypatch.setattr(logprobs, "BLOCK_MIB", {"cpu": 4 * VOCABULARY * 3 / 2**20})


def inputs(states: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(states, HIDDEN, generator=generator)
    weight_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    return hidden_ND, weight_VD, torch.randint(VOCABULARY, (states,), generator=generator)


def full(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The textbook way, in float64, every logit held."""
    q_NV = torch.log_softmax(hidden_ND.double() @ weight_VD.double().T / temperature, dim=-1)
    return q_NV.gather(1, targets_N[:, None]).squeeze(1), -(q_NV.exp() * q_NV).sum(dim=1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("states", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_equals_the_full_logits(states: int, temperature: float) -> None:
    hidden_ND, weight_VD, targets_N = inputs(states)
    found = token_logprobs(hidden_ND, weight_VD, targets_N, temperature)
    for ours, theirs in zip(found, full(hidden_ND, weight_VD, targets_N, temperature), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("states", [3, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["logprobs", "entropy", "both"])
def test_gradient_equals_autograd(states: int, temperature: float, parts: tuple[float, float]) -> None:
    hidden_ND, weight_VD, targets_N = inputs(states)
    generator = torch.Generator().manual_seed(1)
    upstream = [factor * torch.randn(states, generator=generator) for factor in parts]

    def gradient(function: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        leaf = hidden_ND.clone().requires_grad_()
        both = function(leaf, weight_VD, targets_N, temperature)
        sum((x * g.to(x.dtype)).sum() for x, g in zip(both, upstream, strict=True)).backward()
        return leaf.grad

    torch.testing.assert_close(gradient(token_logprobs), gradient(full), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("one", [0, 1], ids=["logprobs", "entropy"])
def test_gradient_when_only_one_output_is_used(one: int) -> None:
    hidden_ND, weight_VD, targets_N = inputs(5)
    ours, theirs = hidden_ND.clone().requires_grad_(), hidden_ND.clone().requires_grad_()
    token_logprobs(ours, weight_VD, targets_N)[one].sum().backward()
    full(theirs, weight_VD, targets_N, 1.0)[one].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.row(4)
def test_row_4_known_conditionals_and_their_gradient() -> None:
    """Row 4: a toy LM whose state s has log p(.|s) in its row; gradient by logits = onehot − softmax at that index."""
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    hidden_ND = torch.eye(2).requires_grad_()
    targets_N = torch.tensor([1, 2])
    found, entropy_N = token_logprobs(hidden_ND, table.log().T.contiguous(), targets_N)
    torch.testing.assert_close(found, torch.tensor([math.log(0.25), math.log(0.7)]))
    torch.testing.assert_close(entropy_N[0].item(), 1.5 * math.log(2))
    # With the identity as LM head the hidden state is the logits themselves.
    logits_NV = table.log().requires_grad_()
    token_logprobs(logits_NV, torch.eye(3), targets_N)[0].sum().backward()
    torch.testing.assert_close(logits_NV.grad, torch.tensor([[-0.5, 0.75, -0.25], [-0.1, -0.2, 0.3]]))


@pytest.mark.row(5)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_row_5_probabilities_sum_to_one(temperature: float) -> None:
    """Row 5: at any temperature the exponentials over all targets of one state sum to 1."""
    hidden_ND, weight_VD, _ = inputs(1)
    found, _ = token_logprobs(hidden_ND.expand(VOCABULARY, -1), weight_VD, torch.arange(VOCABULARY), temperature)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_never_more_than_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = logprobs._product, []

    def recording(hidden_nD: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(hidden_nD))
        return plain(hidden_nD, *rest)

    monkeypatch.setattr(logprobs, "_product", recording)
    hidden_ND, weight_VD, targets_N = inputs(2 * CHUNK + 3)
    logprobs_N, entropy_N = token_logprobs(hidden_ND.requires_grad_(), weight_VD, targets_N)
    logprobs_N.sum().backward(retain_graph=True)
    assert sizes == [CHUNK, CHUNK, 3]
    entropy_N.sum().backward()  # the gradient of the entropy alone computes them again
    assert sizes == [CHUNK, CHUNK, 3] * 2


def test_the_gradient_of_a_confident_token_survives_bfloat16() -> None:
    """1 − p of the target is taken before it is rounded: with p = 0.998 bf16 itself knows 1 − p to a quarter only."""
    weight_VD = torch.eye(4)
    hidden_ND = torch.tensor([[7.0, 0.0, 0.0, 0.0]])
    targets_N = torch.tensor([0])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = hidden_ND.clone().to(dtype).requires_grad_()
        token_logprobs(leaf, weight_VD.to(dtype), targets_N)[0].sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad.float())
    torch.testing.assert_close(found[1], found[0], rtol=2**-7, atol=0.0)


def test_extreme_logits_stay_finite() -> None:
    leaf = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found, entropy_N = token_logprobs(leaf, torch.eye(3), torch.tensor([1]))
    (found + entropy_N).sum().backward()
    assert found.item() == pytest.approx(-2e4)
    assert entropy_N.item() == pytest.approx(0.0, abs=1e-6)
    assert leaf.grad.isfinite().all()


def test_no_states() -> None:
    hidden_ND, weight_VD, targets_N = inputs(0)
    assert [x.shape for x in token_logprobs(hidden_ND, weight_VD, targets_N)] == [(0,), (0,)]


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("states", [3, CHUNK + 1])
def test_a_head_that_learns_gets_its_gradient(states: int, cap: float | None) -> None:
    hidden_ND, weight_VD, targets_N = inputs(states)
    bias_V = torch.linspace(-1, 1, VOCABULARY)
    upstream = torch.randn(2, states, generator=torch.Generator().manual_seed(1))

    def theirs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = hidden.double() @ weight.double().T + bias.double()
        logits = 2 * logits if cap is None else cap * torch.tanh(2 * logits / cap)
        q_NV = torch.log_softmax(logits / 0.7, dim=-1)
        return torch.stack([q_NV.gather(1, targets_N[:, None]).squeeze(1), -(q_NV.exp() * q_NV).sum(dim=1)])

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.stack(token_logprobs(hidden, weight, targets_N, 0.7, bias_V=bias, shape=LogitShape(2.0, cap)))

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden_ND, weight_VD, bias_V)]
        both = function(*leaves)
        return [*torch.autograd.grad((both * upstream).sum(), leaves)]

    for found, expected in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_completion_loss_is_the_sum_of_the_log_probabilities() -> None:
    """Value and gradient equal those of `token_logprobs`, and a learnt weight's gradient that of the full logits."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 8, generator=generator, dtype=torch.float64).float().requires_grad_(True)
    weight = torch.randn(11, 8, generator=generator)
    targets = torch.randint(0, 11, (300,), generator=generator)
    loss = completion_loss(hidden, weight, targets)
    (loss * 0.5).backward()
    found, hidden.grad = hidden.grad, None
    expected = -token_logprobs(hidden, weight, targets)[0].sum()
    (expected * 0.5).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-5, atol=1e-6)

    learnt = weight.clone().requires_grad_(True)
    completion_loss(hidden.detach(), learnt, targets).backward()
    plain = weight.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(hidden.detach() @ plain.T, targets, reduction="sum").backward()
    torch.testing.assert_close(learnt.grad, plain.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(completion_loss(hidden, weight, targets), loss)
