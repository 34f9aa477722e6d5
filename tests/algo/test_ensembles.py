"""One score from many: numbers by hand, the limits of the pessimistic rule, and what a single member gives."""

import math

import pytest
import torch

from plaudit.algo.ensembles import aggregate
from plaudit.algo.names import Aggregation

SCORES = torch.tensor([[1.0, -3.0], [2.0, -3.0], [4.0, -3.0]], dtype=torch.float64)


@pytest.mark.parametrize(("beta", "expected"), [(10.0, 2.2569), (1.0, 1.7496), (0.1, 1.1099)])
def test_the_pessimistic_score_of_1_2_4(beta: float, expected: float) -> None:
    found = aggregate(SCORES, "pessimistic", beta=beta)
    assert found[0].item() == pytest.approx(expected, abs=5e-5)
    assert found[1].item() == pytest.approx(-3, abs=1e-12)  # where all agree there is nothing to fear


@pytest.mark.parametrize(
    ("how", "k", "expected"),
    [
        ("mean", 1.0, 7 / 3),
        ("min", 1.0, 1.0),
        # Squares around 7/3: (16 + 1 + 25)/9/3 = 14/9, divided by M = 3 and not by 2.
        ("mean_minus_std", 1.0, 7 / 3 - math.sqrt(14 / 9)),
        ("mean_minus_std", 0.5, 7 / 3 - 0.5 * math.sqrt(14 / 9)),
        ("mean_minus_std", 0.0, 7 / 3),
    ],
)
def test_mean_min_and_mean_minus_std_by_hand(how: Aggregation, k: float, expected: float) -> None:
    found = aggregate(SCORES, how, k=k)
    assert found.tolist() == pytest.approx([expected, -3.0], abs=1e-12)


def test_the_pessimistic_score_lies_between_min_and_mean() -> None:
    """β → 0 gives the min, β → ∞ the mean, and it rises with β."""
    betas = (1e-4, 0.03, 0.3, 3.0, 1e6)
    found = [aggregate(SCORES, "pessimistic", beta=beta)[0].item() for beta in betas]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1.0, abs=2e-4)
    assert found[-1] == pytest.approx(7 / 3, abs=1e-5)


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_std", "pessimistic"])
def test_an_ensemble_of_one_is_its_member(how: Aggregation) -> None:
    one = torch.tensor([[0.5, -2.0, 1e4]])
    torch.testing.assert_close(aggregate(one, how), one[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_std", "pessimistic"])
def test_the_order_of_the_members_does_not_matter_and_a_shift_shifts(how: Aggregation) -> None:
    found = aggregate(SCORES, how)
    torch.testing.assert_close(aggregate(SCORES.flip(0), how), found, rtol=0, atol=1e-12)
    torch.testing.assert_close(aggregate(SCORES + 5, how), found + 5, rtol=0, atol=1e-12)


def test_scores_far_apart_stay_finite() -> None:
    far = torch.tensor([[1e4], [-1e4]])
    assert aggregate(far, "pessimistic", beta=0.1).item() == pytest.approx(-1e4, rel=1e-4)


@pytest.mark.parametrize(("k", "beta"), [(-1.0, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_settings_out_of_range_are_refused(k: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"k=.*beta="):
        aggregate(SCORES, "mean", k=k, beta=beta)
