"""DPO's and IPO's losses and gradients by hand."""

import math
from typing import Any

import pytest
import torch

from plaudit.algo.preferences import dpo_loss


def found(chosen: float, rejected: float, **told: Any) -> tuple[float, float, float]:
    """(loss, gradient by the first log-ratio, by the second) of one pair of weight 1."""
    a, b = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected))
    loss = dpo_loss(a, b, torch.ones(1, dtype=torch.float64), **told)
    loss.backward()
    assert a.grad is not None and b.grad is not None
    return loss.item(), a.grad.item(), b.grad.item()


def test_sigmoid_by_hand() -> None:
    """β·h = ½·2 = 1: ln(1 + e⁻¹) = 0.313262, gradient −½/(1 + e) = −0.134471."""
    assert found(0.6, -1.4, beta=0.5) == pytest.approx((0.313262, -0.134471, 0.134471), abs=1e-6)
    # At the start policy and reference agree: ln 2 and −β/2.
    assert found(0.0, 0.0, beta=0.1) == pytest.approx((math.log(2), -0.05, 0.05))


def test_smoothing_by_hand() -> None:
    """ε = 0.1: 0.9·0.313262 + 0.1·1.313262 = 0.413262; gradient −½·(0.9·0.268941 − 0.1·0.731059) = −0.084471."""
    assert found(0.6, -1.4, beta=0.5, label_smoothing=0.1) == pytest.approx((0.413262, -0.084471, 0.084471), abs=1e-6)
    # IPO, 1/2β = 1: 0.9·(2 − 1)² + 0.1·(2 + 1)² = 1.8; gradient 0.9·2 + 0.1·6 = 2.4.
    assert found(0.6, -1.4, beta=0.5, loss="ipo", label_smoothing=0.1) == pytest.approx((1.8, 2.4, -2.4))


def test_ipo_by_hand() -> None:
    assert found(0.6, -1.4, beta=0.5, loss="ipo") == pytest.approx((1.0, 2.0, -2.0))
    # β = 0.1 has its best margin at 5 nats; beyond it the pair is pulled back.
    assert found(5.0, 0.0, beta=0.1, loss="ipo") == pytest.approx((0.0, 0.0, 0.0))
    assert found(6.0, 0.0, beta=0.1, loss="ipo")[1] > 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_tie_is_best_where_both_are_as_far_from_the_reference(loss: Any) -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    assert found(1.3, 1.3, beta=0.2, loss=loss, targets=half)[1] == pytest.approx(0)
    assert found(1.5, 1.3, beta=0.2, loss=loss, targets=half)[1] > 0


def test_each_pair_has_its_weight() -> None:
    first, second, weights = torch.tensor([0.6, 0.0]), torch.tensor([-1.4, 0.0]), torch.tensor([0.5, 2.0])
    loss = dpo_loss(first, second, weights, beta=0.5)
    assert loss.item() == pytest.approx(0.5 * 0.313262 + 2 * math.log(2), abs=1e-5)
