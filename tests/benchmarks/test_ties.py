"""The benchmark of ties: its data, its measures and its intervals by hand, and a small version of it."""

import math

import numpy as np
import pytest
import torch

import ties
from ties import WAYS, Data, Setting, draw, evaluate, measure, student_interval

WEIGHT = np.array([0.6, 0.8])


def test_without_noise_and_margin_the_ranks_are_the_order_of_the_utilities() -> None:
    data = draw(np.random.default_rng(0), WEIGHT, 20, Setting(noise=0.0, tie_margin=0.0))
    order = np.argsort(np.argsort(-data.utilities.numpy(), axis=1), axis=1)
    assert (data.ranks == order + 1).all()
    assert not (data.outcomes == 0.5).any()
    assert (
        (data.utilities.flatten()[data.first] > data.utilities.flatten()[data.second]) == (data.outcomes == 1)
    ).all()


def test_replies_within_the_margin_of_the_best_of_their_group_tie() -> None:
    """Utilities 3, 2.5, 2.1, 1.9 with a margin of 1: the third is within it of the best, the fourth begins anew."""

    class Fixed:
        def __init__(self) -> None:
            self.drawn = [np.array([[[2.5], [3.0], [1.9], [2.1]]]), np.zeros((1, 4))]

        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            found = self.drawn.pop(0)
            assert found.shape == shape
            return found

    data = draw(Fixed(), np.array([1.0]), 1, Setting(noise=0.5, tie_margin=1.0))  # type: ignore[arg-type]
    assert data.ranks.tolist() == [[1, 1, 2, 1]]
    assert data.groups() == [[[0, 1, 3], [2]]]
    assert data.outcomes.tolist() == [0.5, 1.0, 0.5, 1.0, 0.5, 0.0]


def test_the_default_setting_has_about_40_percent_of_ties() -> None:
    weight = np.ones(ties.FEATURES) / math.sqrt(ties.FEATURES)
    data = draw(np.random.default_rng(1), weight, 1000, Setting())
    assert (data.outcomes == 0.5).double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert data.utilities.std().item() == pytest.approx(1, abs=0.05)


def test_the_measures_by_hand() -> None:
    """Scores 2 ln 2, 0, 0 and ν = 1: P = 4/7, 2/7, 1/7 for the first two pairs, ⅓ each for the last."""
    data = Data(
        torch.tensor([[[2 * math.log(2)], [0.0], [0.0]]], dtype=torch.float64),
        torch.tensor([[1.0, 2.0, 0.0]]),
        np.array([[1, 1, 2]]),
    )
    found = evaluate(torch.ones(1).double(), torch.zeros(()).double(), data)
    expected = [math.log(2 / 7), math.log(4 / 7), math.log(1 / 3)]
    assert found["outcome_ll"].tolist() == pytest.approx(expected, abs=1e-12)
    assert math.isnan(found["strict_ll"][0])
    assert found["strict_ll"][1:].tolist() == pytest.approx([math.log(4 / 5), math.log(1 / 2)], abs=1e-12)
    # The true order is the second, the first, the third: the scorer has the first pair wrong and ties the last.
    assert found["accuracy"].tolist() == [0, 1, 0]


def test_the_interval_over_seeds_by_hand() -> None:
    """1 … 5: mean 3, std √2.5, t = 2.776 with 4 degrees of freedom: 3 ± 2.776·√(2.5/5)."""
    half = 2.776 * math.sqrt(0.5)
    assert student_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - half, 3 + half), abs=1e-9)


def test_a_small_version_finds_that_ties_are_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs with ties beat the strict pairs alone, in likelihood and in the true order."""
    monkeypatch.setattr(ties, "PENALTIES", (1e-3, 1e-2))
    monkeypatch.setattr(ties, "FOLDS", 2)
    found = measure(3, Setting(train=100, held_out=300))
    assert found["ties"] == pytest.approx(0.4, abs=0.05)
    assert [row["seed"] for row in found["seeds"]] == [0, 1, 2]
    assert set(found["mean"]) == set(WAYS)
    gain = found["minus_pairwise"]["k-wise"]
    for name in ("strict_ll", "outcome_ll", "accuracy"):
        low, high = gain[name]["ci_prompts"]
        assert 0 < low < gain[name]["mean"] < high
        by_seed = [row["k-wise"][name] - row["pairwise"][name] for row in found["seeds"]]
        assert gain[name]["by_seed"] == pytest.approx(by_seed, abs=1e-5)
