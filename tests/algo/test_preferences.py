"""Losses of pairs: numbers by hand, gradients by formula and by finite differences, optima that are known."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo.preferences import (
    bradley_terry_loss,
    centring_penalty,
    davidson_loss,
    fit_temperature,
    logistic_loss,
    vote_targets,
)

LN2, LN3 = math.log(2), math.log(3)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gradient(loss: Callable[[Tensor], Tensor], at: list[float]) -> Tensor:
    leaf = tensor(at).requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def finite_differences(loss: Callable[[Tensor], Tensor], at: list[float], step: float = 1e-5) -> Tensor:
    found = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i], down[i] = up[i] + step, down[i] - step
        found.append((loss(tensor(up)) - loss(tensor(down))).item() / (2 * step))
    return tensor(found)


def minimum(loss: Callable[[Tensor], Tensor], dimensions: int = 1, steps: int = 60) -> Tensor:
    """Where a smooth convex loss is least, by Newton's method on its autograd."""
    x = torch.zeros(dimensions, dtype=torch.float64)
    for _ in range(steps):
        slope = torch.autograd.functional.jacobian(loss, x)
        curvature = torch.autograd.functional.hessian(loss, x)
        assert isinstance(slope, Tensor) and isinstance(curvature, Tensor)
        x = x - torch.linalg.solve(curvature + 1e-12 * torch.eye(dimensions, dtype=torch.float64), slope)
    return x


# --- Bradley-Terry ---


@pytest.mark.row(23)
@pytest.mark.parametrize(
    ("margin", "loss", "gradient"),
    [
        (0.0, LN2, -0.5),
        (LN3, math.log(4 / 3), -0.25),
        (-LN3, math.log(4), -0.75),
        (1e4, 0.0, 0.0),
        (-1e4, 1e4, -1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row23_bradley_terry_is_softplus_of_minus_the_margin(
    margin: float, loss: float, gradient: float, dtype: torch.dtype
) -> None:
    chosen = torch.tensor([margin], dtype=dtype, requires_grad=True)
    rejected = torch.zeros(1, dtype=dtype, requires_grad=True)
    found = bradley_terry_loss(chosen, rejected, torch.ones(1, dtype=dtype))
    found.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert found.item() == pytest.approx(loss, rel=1e-6, abs=1e-7)
    assert chosen.grad.item() == pytest.approx(gradient, abs=1e-7)
    assert rejected.grad.item() == pytest.approx(-gradient, abs=1e-7)


@pytest.mark.row(24)
def test_row24_every_ranking_counts_once_however_many_pairs_it_has() -> None:
    """Four replies with equal scores: six pairs of weight 1/6, ln 2 in all. One pair with margin ln 3: ln 4/3."""
    chosen, rejected = tensor([1.0] * 6 + [LN3]), tensor([1.0] * 6 + [0.0])
    weights = tensor([1 / 6] * 6 + [1.0])
    assert bradley_terry_loss(chosen, rejected, weights).item() == pytest.approx(LN2 + math.log(4 / 3), abs=1e-12)


@pytest.mark.row(24)
def test_row24_the_gradient_of_a_ranking_by_hand() -> None:
    """Three replies a > b > c with equal scores, weight 1/3 a pair: a wins two, b one and loses one, c loses two."""
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    bradley_terry_loss(scores[better], scores[worse], tensor([1 / 3] * 3)).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, tensor([-1 / 3, 0, 1 / 3]), rtol=0, atol=1e-12)


def test_swapping_the_columns_turns_targets_round() -> None:
    """P(second wins) = 1 − P(first wins): swapped scores with target 1 − q, and −m, give the same loss."""
    a, b, w = tensor([0.3, -1.0, 2.0]), tensor([1.0, 0.5, -0.4]), tensor([1.0, 0.5, 2.0])
    q, m = tensor([0.9, 0.2, 0.5]), tensor([0.4, 0.0, -0.3])
    there = bradley_terry_loss(a, b, w, targets=q, margins=m, label_smoothing=0.1)
    back = bradley_terry_loss(b, a, w, targets=1 - q, margins=-m, label_smoothing=0.1)
    assert there.item() == pytest.approx(back.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("given", "loss", "by_chosen"),
    [
        # Δ = ln 3: σ = 3/4. A tie: −½(ln 3/4 + ln 1/4); the gradient is σ(Δ) − q.
        ({"targets": [0.5]}, 0.5 * (math.log(4 / 3) + math.log(4)), 0.75 - 0.5),
        ({"targets": [0.0]}, math.log(4), 0.75),
        ({"targets": [0.75]}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4), 0.0),
        # A margin of ln 3 leaves Δ = 0; one of 2 ln 3 turns it round.
        ({"margins": [LN3]}, LN2, -0.5),
        ({"margins": [2 * LN3]}, math.log(4), -0.75),
        # ε = 1/4: q = 3/4, and with q = 0: 1/4.
        ({"label_smoothing": 0.25}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4), 0.0),
        ({"targets": [0.0], "label_smoothing": 0.25}, 0.25 * math.log(4 / 3) + 0.75 * math.log(4), 0.5),
        # A tie is a tie however often labels are turned round.
        ({"targets": [0.5], "label_smoothing": 0.4}, 0.5 * (math.log(4 / 3) + math.log(4)), 0.25),
    ],
)
def test_soft_labels_margins_and_smoothing_by_hand(given: dict[str, Any], loss: float, by_chosen: float) -> None:
    given = {name: tensor(value) if isinstance(value, list) else value for name, value in given.items()}

    def at(scores: Tensor) -> Tensor:
        return bradley_terry_loss(scores[:1], scores[1:], tensor([1.0]), **given)

    assert at(tensor([LN3, 0.0])).item() == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(gradient(at, [LN3, 0.0]), tensor([by_chosen, -by_chosen]), rtol=0, atol=1e-12)
    torch.testing.assert_close(finite_differences(at, [LN3, 0.0]), tensor([by_chosen, -by_chosen]), rtol=0, atol=1e-8)


@pytest.mark.row(23)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_row23_soft_labels_are_finite_at_any_difference(difference: float, target: float, dtype: torch.dtype) -> None:
    """−[q·log σ(Δ) + (1 − q)·log σ(−Δ)] at Δ = ±1e4 is 1e4 times the share that is contradicted."""
    chosen = torch.tensor([difference], dtype=dtype, requires_grad=True)
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    loss = bradley_terry_loss(chosen, zero, one, targets=torch.tensor([target], dtype=dtype))
    loss.backward()
    contradicted = 1 - target if difference > 0 else target
    assert loss.item() == pytest.approx(1e4 * contradicted, rel=1e-6, abs=1e-12)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx((1.0 if difference > 0 else 0.0) - target, abs=1e-7)


def test_soft_labels_keep_their_digits_where_a_sum_would_cancel() -> None:
    """q = 0 at Δ = −12 in float32: log(1 + e^−12) = 6.144193e-06; softplus(12) − 12 would give 5.7e-06."""
    one = torch.ones(1)
    found = bradley_terry_loss(-12 * one, 0 * one, one, targets=0 * one)
    assert found.item() == pytest.approx(6.144193e-06, rel=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    one = tensor([1.0])
    with pytest.raises(ValueError, match="label_smoothing"):
        bradley_terry_loss(one, one, one, label_smoothing=smoothing)


# --- two replies, many votes: where the loss is least ---


def vote_loss(wins: float, losses: float, **given: Any) -> Callable[[Tensor], Tensor]:
    """The loss of `wins` pairs one way and `losses` the other, as a function of the difference [1]."""

    def loss(x: Tensor) -> Tensor:
        return bradley_terry_loss(
            torch.cat([x, 0 * x]), torch.cat([0 * x, x]), torch.tensor([wins, losses], dtype=x.dtype), **given
        )

    return loss


def test_seven_wins_to_three_are_best_explained_by_a_margin_of_ln_7_3() -> None:
    """ln(7/3) = 0.847298: as ten pairs, and as one pair with the share of the votes for its target."""
    assert minimum(vote_loss(7, 3)).item() == pytest.approx(0.847298, abs=1e-6)

    def one_pair(x: Tensor) -> Tensor:
        return bradley_terry_loss(x, 0 * x, torch.ones_like(x), targets=tensor([0.7]))

    assert minimum(one_pair).item() == pytest.approx(0.847298, abs=1e-6)


def test_all_wins_to_one_side_have_no_finite_solution_without_a_prior() -> None:
    """The slope of 10 to 0 is −10·σ(−Δ): negative wherever it is computed, so no Δ is the best one."""
    for at in (0.0, 1.0, 10.0, 30.0):
        slope = gradient(vote_loss(10, 0), [at]).item()
        assert slope < 0
        assert slope == pytest.approx(-10 / (1 + math.exp(at)), rel=1e-9)


def test_the_prior_of_votes_makes_ten_to_nothing_finite() -> None:
    """(10 + ½)/(10 + 1) has log-odds log((10 + ½)/½) = ln 21."""
    target = vote_targets(tensor([10.0]), tensor([0.0]))

    def loss(x: Tensor) -> Tensor:
        return bradley_terry_loss(x, 0 * x, torch.ones_like(x), targets=target)

    assert minimum(loss).item() == pytest.approx(math.log(21), abs=1e-6)


def test_label_smoothing_makes_ten_to_nothing_finite() -> None:
    """ε = 0.1: log-odds of 0.9, ln 9, however many votes there are."""
    assert minimum(vote_loss(10, 0, label_smoothing=0.1)).item() == pytest.approx(math.log(9), abs=1e-6)


def test_the_targets_of_votes_by_hand() -> None:
    """Jeffreys' prior: 3 to 1 is 3.5/5, a single vote ¾, no votes a tie."""
    first, second = tensor([3.0, 1.0, 0.0, 2.0]), tensor([1.0, 0.0, 0.0, 2.0])
    torch.testing.assert_close(vote_targets(first, second), tensor([0.7, 0.75, 0.5, 0.5]), rtol=0, atol=1e-15)
    torch.testing.assert_close(vote_targets(second, first), tensor([0.3, 0.25, 0.5, 0.5]), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("first", "second"), [(-1.0, 2.0), (1.0, -2.0)])
def test_negative_votes_are_refused(first: float, second: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        vote_targets(tensor([first]), tensor([second]))


# --- Davidson ---


@pytest.mark.parametrize(
    ("difference", "nu", "win", "tie", "loss"),
    [
        (0.0, 1.0, 1 / 3, 1 / 3, 1 / 3),
        (0.0, 2.0, 1 / 4, 1 / 2, 1 / 4),
        # Worths 4 to 1: 4 : ν√4 : 1 = 4 : 2 : 1.
        (2 * LN2, 1.0, 4 / 7, 2 / 7, 1 / 7),
        (-2 * LN2, 1.0, 1 / 7, 2 / 7, 4 / 7),
        (2 * LN3, 0.5, 9 / 11.5, 1.5 / 11.5, 1 / 11.5),
    ],
)
def test_davidson_by_hand(difference: float, nu: float, win: float, tie: float, loss: float) -> None:
    for outcome, probability in ((1.0, win), (0.5, tie), (0.0, loss)):
        found = davidson_loss(
            tensor([difference + 5]), tensor([5.0]), tensor([outcome]), tensor([2.0]), tensor(math.log(nu))
        )
        assert found.item() == pytest.approx(-2 * math.log(probability), abs=1e-12)


@pytest.mark.parametrize(("outcome", "sign"), [(1.0, 1), (0.5, 0), (0.0, -1)])
def test_davidson_gradients_by_hand(outcome: float, sign: int) -> None:
    """Worths 4 to 1, ν = 1: P = 4/7, 2/7, 1/7; by the first score (P_w − P_l − s)/2, by log ν P_tie − [tie]."""

    def at(x: Tensor) -> Tensor:
        return davidson_loss(x[:1], x[1:2], tensor([outcome]), tensor([1.0]), x[2])

    where = [2 * LN2, 0.0, 0.0]
    by_first = (3 / 7 - sign) / 2
    expected = tensor([by_first, -by_first, 2 / 7 - (sign == 0)])
    torch.testing.assert_close(gradient(at, where), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(finite_differences(at, where), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("nu", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("difference", [-3.0, 0.2, 5.0])
def test_given_no_tie_davidson_is_bradley_terry_whatever_nu(difference: float, nu: float) -> None:
    """P(win | no tie) = σ(Δ): the reason why it was taken. With Rao-Kupper's θ = 2 and Δ = 0.2 it would be 0.566."""
    one, log_nu = tensor([1.0]), tensor(math.log(nu))
    first, second = tensor([difference]), tensor([0.0])
    win = math.exp(-davidson_loss(first, second, one, one, log_nu).item())
    loss = math.exp(-davidson_loss(first, second, 0 * one, one, log_nu).item())
    assert win / (win + loss) == pytest.approx(sigmoid(difference), rel=1e-12)


def test_davidson_without_ties_is_bradley_terry_as_nu_vanishes() -> None:
    first, second, one = tensor([0.3, -2.0]), tensor([1.0, 1.0]), tensor([1.0, 1.0])
    davidson = davidson_loss(first, second, one, one, tensor(-60.0))
    assert davidson.item() == pytest.approx(sum(math.log1p(math.exp(d)) for d in (0.7, 3.0)), abs=1e-9)


def test_davidson_finds_the_scores_and_the_ties_of_counted_outcomes() -> None:
    """40 wins, 20 ties, 10 losses: √(40/10) = e^(Δ/2) = 2 and ν = 20/√(40·10) = 1, so Δ = 2 ln 2 and log ν = 0."""

    def loss(x: Tensor) -> Tensor:
        first, zero = x[:1].expand(3), torch.zeros(3, dtype=torch.float64)
        return davidson_loss(first, zero, tensor([1.0, 0.5, 0.0]), tensor([40.0, 20.0, 10.0]), x[1])

    torch.testing.assert_close(minimum(loss, 2), tensor([2 * LN2, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.row(23)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outcome", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_row23_davidson_is_finite_at_any_difference(difference: float, outcome: float, dtype: torch.dtype) -> None:
    """−log P is 0, 5e3 or 1e4 there: a tie costs half as much as the wrong winner."""
    first = torch.tensor([difference], dtype=dtype, requires_grad=True)
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    log_nu = torch.zeros((), dtype=dtype, requires_grad=True)
    loss = davidson_loss(first, zero, torch.tensor([outcome], dtype=dtype), one, log_nu)
    loss.backward()
    right = 1.0 if difference > 0 else 0.0
    assert loss.item() == pytest.approx(1e4 * abs(outcome - right), abs=1e-3)
    assert first.grad is not None and log_nu.grad is not None
    assert first.grad.item() == pytest.approx(right - outcome, abs=1e-6)
    assert math.isfinite(log_nu.grad.item())


@pytest.mark.parametrize("outcome", [0.7, 2.0, -0.5, 0.25])
def test_outcomes_davidson_does_not_know_are_refused(outcome: float) -> None:
    one = tensor([1.0, 1.0])
    with pytest.raises(ValueError, match="outcomes must be"):
        davidson_loss(one, one, tensor([outcome, 1.0]), one, tensor(0.0))


# --- centring ---


def test_centring_by_hand() -> None:
    """½·(1 + 2)² + ½·(3 − 1)² = 6.5; gradient 2·w·sum on both sides, so the differences do not move."""
    chosen, rejected = tensor([1.0, 3.0]).requires_grad_(), tensor([2.0, -1.0]).requires_grad_()
    penalty = centring_penalty(chosen, rejected, tensor([0.5, 0.5]))
    penalty.backward()
    assert penalty.item() == pytest.approx(6.5, abs=1e-12)
    assert chosen.grad is not None and rejected.grad is not None
    torch.testing.assert_close(chosen.grad, tensor([3.0, 2.0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(rejected.grad, chosen.grad, rtol=0, atol=0)


def test_centring_fixes_the_level_that_the_pairs_leave_free() -> None:
    """7 wins to 3: the difference stays ln(7/3), and the two scores come to lie on either side of 0."""

    def loss(x: Tensor) -> Tensor:
        first, second = torch.stack([x[0], x[1]]), torch.stack([x[1], x[0]])
        weights = tensor([7.0, 3.0])
        return bradley_terry_loss(first, second, weights) + 0.01 * centring_penalty(first, second, weights)

    half = math.log(7 / 3) / 2
    torch.testing.assert_close(minimum(loss, 2), tensor([half, -half]), rtol=0, atol=1e-6)


# --- temperature ---


def test_the_temperature_of_two_margins_by_hand() -> None:
    """Margins ±m, right in 3 of 4: σ(m/T) = ¾, so T = m/ln 3."""
    for m in (0.5, 1.0, 7.0):
        assert fit_temperature([m, m, m, -m]) == pytest.approx(m / LN3, rel=1e-9)
        assert fit_temperature(torch.tensor([m]), torch.tensor([0.75])) == pytest.approx(m / LN3, rel=1e-6)


def test_the_temperature_is_where_a_fine_grid_is_least() -> None:
    draw = random.Random(3)
    margins = [draw.gauss(1.5, 3) for _ in range(200)]

    def loss(t: float) -> float:
        return sum(math.log1p(math.exp(-m / t)) for m in margins)

    best = min((loss(0.5 + 0.001 * i), 0.5 + 0.001 * i) for i in range(9500))[1]
    assert fit_temperature(margins) == pytest.approx(best, abs=0.001)


def test_scaled_margins_have_a_scaled_temperature() -> None:
    draw = random.Random(4)
    margins = [draw.gauss(0.5, 1) for _ in range(100)]
    assert fit_temperature([3 * m for m in margins]) == pytest.approx(3 * fit_temperature(margins), rel=1e-9)


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([1.0, 0.2, 5.0], 0.01),  # all right: the surer the better
        ([1e-3, 1e4], 0.01),
        ([1.0, -1.0], 100.0),  # right half of the time: a coin
        ([-1.0, -2.0], 100.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_a_temperature_without_an_optimum_stays_within_its_bounds(margins: list[float], expected: float) -> None:
    assert fit_temperature(margins) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("margins", [[], [math.nan, 1.0], [math.inf]])
def test_a_temperature_of_nothing_is_refused(margins: list[float]) -> None:
    with pytest.raises(ValueError, match="finite margins"):
        fit_temperature(margins)


# --- labels of single replies ---


def test_logistic_by_hand() -> None:
    """σ(ln 3) = ¾: a liked reply costs −ln ¾ and one that was not −ln ¼, whether ln 3 is the score or the bias."""
    scores = torch.tensor([math.log(3), math.log(3), 0.0], requires_grad=True)
    labels, weights, biases = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0] * 3)
    biases[2] = math.log(3)
    loss = logistic_loss(scores, labels, weights, biases)
    assert loss.item() == pytest.approx(-math.log(3 / 4) - 3 * math.log(1 / 4), abs=1e-6)
    loss.backward()
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([-1 / 4, 3 / 4, 2 * 3 / 4])


def test_of_two_labels_of_one_person_the_pair_is_bradley_terry_whatever_the_bias() -> None:
    """P(first liked, second not) / (that + the other way round) = σ(r_1 − r_2)."""
    scores, one = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for bias in (-2.0, 0.0, 1.5):
        ways = [
            math.exp(-logistic_loss(scores, torch.tensor(labels, dtype=torch.float64), one, bias * one).item())
            for labels in ([1.0, 0.0], [0.0, 1.0])
        ]
        assert ways[0] / sum(ways) == pytest.approx(1 / (1 + math.exp(-1.1)), abs=1e-12)


@pytest.mark.row(23)
def test_row23_logistic_is_finite_at_any_score() -> None:
    scores = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = logistic_loss(scores, torch.tensor([0.0, 1.0]), torch.ones(2), torch.zeros(2))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and scores.grad is not None and scores.grad.tolist() == [1.0, -1.0]
