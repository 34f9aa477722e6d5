"""The objective token by token: clips, value error, importance weights and the KL as a loss, by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo.losses import (
    bounded_importance_weight,
    clipped_surrogate,
    kl_loss,
    sampler_weights,
    truncated_importance_weight,
    value_error,
)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- the clipped surrogate ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # gain above 1 + ε is cut off
        (0.5, 2.0, 1.0, 2.0),  # a loss is not: the policy may come back
        (1.0, -2.0, -2.0, -2.0),
        (0.9, -2.0, -1.8, -2.0),
        (0.5, -2.0, -1.6, 0.0),  # gain below 1 − ε is cut off
        (1.5, -2.0, -3.0, -2.0),  # a loss is not
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_and_its_gradient_by_hand(
    ratio: float, advantage: float, expected: float, gradient: float
) -> None:
    r = tensor([[ratio]]).requires_grad_()
    objective = clipped_surrogate(r, tensor([[advantage]]), 0.2)
    objective.sum().backward()
    assert r.grad is not None
    assert objective.item() == pytest.approx(expected, abs=1e-12)
    assert r.grad.item() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.25, 2.0, 2.5, 2.0),  # inside 1 + 0.3, outside 1 + 0.2
        (1.5, 2.0, 2.6, 0.0),
        (0.5, -2.0, -1.6, 0.0),  # the lower bound is still 1 − 0.2
        (0.75, -2.0, -1.6, 0.0),
    ],
)
def test_the_asymmetric_clip_by_hand(ratio: float, advantage: float, expected: float, gradient: float) -> None:
    r = tensor([[ratio]]).requires_grad_()
    objective = clipped_surrogate(r, tensor([[advantage]]), 0.2, 0.3)
    objective.sum().backward()
    assert r.grad is not None
    assert objective.item() == pytest.approx(expected, abs=1e-12)
    assert r.grad.item() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (2.5, -1.0, -2.5, -1.0),  # below c nothing changes
        (4.0, -1.0, -3.0, 0.0),  # beyond it the objective stays at c·Â: no gradient
        (4.0, -2.0, -6.0, 0.0),
        (0.5, -1.0, -0.8, 0.0),  # the first clip is as it was
        (4.0, 1.0, 1.2, 0.0),  # positive advantages are not touched
        (0.5, 1.0, 0.5, 1.0),
        (4.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_dual_clip_bounds_what_a_bad_token_can_cost(
    ratio: float, advantage: float, expected: float, gradient: float
) -> None:
    r = tensor([[ratio]]).requires_grad_()
    objective = clipped_surrogate(r, tensor([[advantage]]), 0.2, dual_clip=3.0)
    objective.sum().backward()
    assert r.grad is not None
    assert objective.item() == pytest.approx(expected, abs=1e-12)
    assert r.grad.item() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize("dual_clip", [1.0, 0.0, -3.0])
def test_a_dual_clip_that_cuts_the_first_step_is_refused(dual_clip: float) -> None:
    with pytest.raises(ValueError, match=f"dual_clip={dual_clip}"):
        clipped_surrogate(tensor([[1.0]]), tensor([[-1.0]]), 0.2, dual_clip=dual_clip)


# --- the value loss ---


@pytest.mark.row(16)
@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "expected", "gradient"),
    [
        (3.0, 0.0, 1.0, None, 4.0, 4.0),  # no ½: (3 − 1)², gradient 2·(3 − 1)
        (3.0, 0.0, 1.0, 0.5, 4.0, 4.0),  # held at 0.5: 0.25; the larger counts
        (1.0, 0.0, 3.0, 0.5, 6.25, 0.0),  # held at 0.5: (0.5 − 3)²; far enough for one update
        (-1.0, 0.0, -3.0, 0.5, 6.25, 0.0),  # the same on the other side
        (0.25, 0.0, 3.0, 0.5, 7.5625, -5.5),  # inside: as if there were no clip
        (1.0, 2.0, 3.0, 0.5, 4.0, -4.0),  # the old value is the centre: held at 1.5, 2.25 < 4
    ],
)
def test_row_16_the_value_loss_by_hand(
    value: float, old: float, target: float, clip: float | None, expected: float, gradient: float
) -> None:
    v = tensor([[value]]).requires_grad_()
    loss = value_error(v, tensor([[target]]), None if clip is None else tensor([[old]]), clip)
    loss.sum().backward()
    assert v.grad is not None
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert v.grad.item() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.row(16)
@pytest.mark.parametrize("clip", [0.0, 0.1, 10.0])
def test_row_16_at_the_old_value_clipped_is_unclipped(clip: float) -> None:
    old, target = tensor([[0.3, -2.0, 5.0]]), tensor([[1.0, 4.0, 5.0]])
    assert torch.equal(value_error(old, target, old, clip), value_error(old, target))


@pytest.mark.row(16)
def test_row_16_a_value_clip_needs_old_values_and_they_need_a_clip() -> None:
    one = tensor([[1.0]])
    for old, clip in ((None, 0.2), (one, None)):
        with pytest.raises(AssertionError):
            value_error(one, one, old, clip)


# --- row 8: sampler and trainer ---


def test_the_bounded_importance_weight_by_hand() -> None:
    """Gaps of 0, ln 4, ln 6 and −ln 4 nats within 0.5 and 5: what lies outside has no weight."""
    gaps = tensor([[0.0, math.log(4), math.log(6), -math.log(4)]])
    trainer = (gaps - 1.0).requires_grad_()
    weights = bounded_importance_weight(trainer, torch.full_like(gaps, -1.0), 0.5, 5.0)
    assert torch.allclose(weights, tensor([[1.0, 4.0, 0.0, 0.0]]))
    assert not weights.requires_grad
    for rule, expected in (("tis", [1.0, 2.0, 2.0, 0.25]), ("icepop", [1.0, 4.0, 0.0, 0.0])):
        found = sampler_weights(rule, gaps, torch.zeros_like(gaps))
        assert found is not None and torch.allclose(found, tensor([expected]))
    assert sampler_weights("none", gaps, gaps) is None


@pytest.mark.row(8)
def test_row_08_the_truncated_importance_weight_by_hand() -> None:
    """exp Δ for Δ = ln 1.5, ln 5, −ln 4 and the cap C = 2: 1.5, 2, 0.25."""
    sampler = tensor([[-1.0, -2.0, -0.5]])
    trainer = (sampler + tensor([[math.log(1.5), math.log(5), -math.log(4)]])).requires_grad_()
    weights = truncated_importance_weight(trainer, sampler, 2.0)
    torch.testing.assert_close(weights, tensor([[1.5, 2.0, 0.25]]), rtol=0, atol=1e-12)
    assert not weights.requires_grad


@pytest.mark.row(8)
def test_row_08_the_weight_is_1_where_sampler_and_trainer_agree() -> None:
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) - 3
    for cap in (1.0, 2.0):
        assert torch.equal(truncated_importance_weight(logprobs, logprobs.clone(), cap), torch.ones(3, 5))


@pytest.mark.row(8)
def test_row_08_the_untruncated_weight_makes_the_expectation_right() -> None:
    """Sampler (½, ¼, ¼), trainer (.2, .3, .5): Σ sampler·weight·x = Σ trainer·x, and a cap of 1.5 falls short of it."""
    sampler, trainer, x = tensor([[0.5, 0.25, 0.25]]), tensor([[0.2, 0.3, 0.5]]), tensor([[1.0, 10.0, 100.0]])
    expected = 0.2 + 3 + 50
    for cap, found in ((10.0, expected), (1.5, 0.2 + 3 + 0.25 * 1.5 * 100)):
        weights = truncated_importance_weight(trainer.log(), sampler.log(), cap)
        assert (sampler * weights * x).sum().item() == pytest.approx(found, abs=1e-9)


@pytest.mark.row(8)
def test_row_08_a_cap_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cap=0\.5"):
        truncated_importance_weight(tensor([[0.0]]), tensor([[0.0]]), 0.5)


# --- the KL as a loss: its expectation is in test_proofs.py ---


@pytest.mark.row(9)
@pytest.mark.parametrize("junk", [0.0, -4.0])
def test_row_09_the_kl_loss_and_its_gradient_by_hand(junk: float) -> None:
    """Two tokens: log π − log ref = 1 and −2, ratios e^0.5 and 1, weights 1 and ½, count 2.

    ½·(e^0.5·½·1 + ½·½·4) and, by log π, ½·(e^0.5·1, ½·−2).
    """
    logprobs = tensor([[-1.0, -3.0, junk]]).requires_grad_()
    loss = kl_loss(
        logprobs_BT=logprobs,
        old_logprobs_BT=tensor([[-1.5, -3.0, 0.0]]),
        ref_logprobs_BT=tensor([[-2.0, -1.0, 0.0]]),
        mask_BT=torch.tensor([[True, True, False]]),
        count=2.0,
        weights_BT=tensor([[1.0, 0.5, 7.0]]),
    )
    loss.backward()
    assert logprobs.grad is not None
    assert loss.item() == pytest.approx((math.exp(0.5) / 2 + 1) / 2, abs=1e-12)
    torch.testing.assert_close(logprobs.grad, tensor([[math.exp(0.5) / 2, -0.5, 0.0]]), rtol=0, atol=1e-12)
