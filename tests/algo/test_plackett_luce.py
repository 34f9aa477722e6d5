"""Plackett-Luce: numbers by hand, likelihoods by enumeration of all orders, and Bradley-Terry for two replies."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo import preferences
from plaudit.algo.preferences import bradley_terry_loss, plackett_luce_loss

LN2 = math.log(2)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], at: list[float]) -> Tensor:
    leaf = tensor(at).requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def enumerated(scores: list[float], groups: list[list[int]]) -> float:
    """P(groups) as a sum over all orders of all replies that agree with the groups, each a product of choices."""
    total = 0.0
    for order in itertools.permutations([i for group in groups for i in group]):
        place = {reply: number for number, reply in enumerate(order)}
        if all(place[i] < place[j] for a, b in itertools.combinations(groups, 2) for i in a for j in b):
            worths = [math.exp(scores[i]) for i in order]
            total += math.prod(worth / sum(worths[k:]) for k, worth in enumerate(worths))
    return total


def likelihood(scores: list[float], groups: list[list[int]]) -> float:
    return math.exp(-plackett_luce_loss(tensor(scores), [groups], tensor([1.0])).item())


def test_plackett_luce_by_hand() -> None:
    """Worths 4, 2, 1: 4/7·2/3 for the whole order. Top two tied: 4/7·2/3 + 2/7·4/5; bottom two tied: 4/7."""
    scores = [math.log(4), math.log(2), 0.0]
    assert likelihood(scores, [[0], [1], [2]]) == pytest.approx(8 / 21, rel=1e-12)
    assert likelihood(scores, [[2], [1], [0]]) == pytest.approx(1 / 7 * 2 / 6, rel=1e-12)
    assert likelihood(scores, [[0, 1], [2]]) == pytest.approx(8 / 21 + 8 / 35, rel=1e-12)
    assert likelihood(scores, [[0], [2, 1]]) == pytest.approx(4 / 7, rel=1e-12)
    assert likelihood(scores, [[0, 1, 2]]) == 1


@pytest.mark.parametrize(
    "groups",
    [
        [[0], [1], [2], [3]],
        [[3, 1], [0, 2]],
        [[2, 0, 1], [3]],
        [[1], [0, 3], [2]],
        [[4, 0], [1, 2, 5], [3]],
        [[5, 1, 0, 3], [2, 4]],
        [[0, 1, 2, 3, 4], [5]],
    ],
    ids=str,
)
def test_plackett_luce_is_the_sum_over_the_orders_that_agree(groups: list[list[int]]) -> None:
    scores = [0.7, -1.2, 0.1, 1.9, -0.4, 0.0]
    assert likelihood(scores, groups) == pytest.approx(enumerated(scores, groups), rel=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 2, 1)], ids=str)
def test_plackett_luce_probabilities_of_all_rankings_of_one_shape_add_up_to_1(sizes: tuple[int, ...]) -> None:
    """Every order of the replies belongs to exactly one ranking of the shape."""
    count, scores = sum(sizes), [0.5, -0.3, 1.1, -2.0]
    shapes = set()
    for order in itertools.permutations(range(count)):
        ends = list(itertools.accumulate(sizes, initial=0))
        shapes.add(tuple(tuple(sorted(order[a:b])) for a, b in itertools.pairwise(ends)))
    total = sum(likelihood(scores[:count], [list(group) for group in groups]) for groups in shapes)
    assert len(shapes) == math.factorial(count) // math.prod(math.factorial(size) for size in sizes)
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2, 0, 1], [3]], [[1], [0, 3], [2]]])
def test_plackett_luce_gradient_is_that_of_the_enumerated_likelihood(groups: list[list[int]]) -> None:
    where = [0.7, -1.2, 0.1, 1.9]
    found = gradient(lambda x: plackett_luce_loss(x, [groups], tensor([1.0])), where)
    expected = []
    for i in range(4):
        up, down = list(where), list(where)
        up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
        expected.append((math.log(enumerated(down, groups)) - math.log(enumerated(up, groups))) / 2e-5)
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-8)
    assert found.sum().item() == pytest.approx(0, abs=1e-12)


def test_plackett_luce_gradient_of_a_choice_is_softmax_minus_onehot() -> None:
    """Best of three with worths 4, 2, 1; the order of the others untold: (4, 2, 1)/7 − (1, 0, 0)."""
    found = gradient(lambda x: plackett_luce_loss(x, [[[0], [1, 2]]], tensor([1.0])), [math.log(4), math.log(2), 0.0])
    torch.testing.assert_close(found, tensor([-3 / 7, 2 / 7, 1 / 7]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plackett_luce_of_two_is_bradley_terry(dtype: torch.dtype) -> None:
    """Loss and gradient to 1e-6, also at ±1e4."""
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([3 * torch.randn(20, generator=generator), torch.tensor([1e4, 0, 0, 1e4])]).to(dtype)
    weights = torch.rand(12, generator=generator).to(dtype)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    a = plackett_luce_loss(ours, [[[2 * i], [2 * i + 1]] for i in range(12)], weights)
    b = bradley_terry_loss(theirs[0::2], theirs[1::2], weights)
    a.backward()
    b.backward()
    assert ours.grad is not None and theirs.grad is not None
    assert a.isfinite()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)


def test_plackett_luce_of_many_rankings_is_the_weighted_sum_of_each() -> None:
    """Rankings of one shape are computed together and shapes apart; the order in which they come says nothing."""
    draw = random.Random(1)
    scores = [draw.gauss(0, 1) for _ in range(40)]
    shapes = [(1, 1, 1, 1), (2, 2), (1, 2, 1), (3, 1), (4,), (1, 1), (2, 1)]
    rankings, weights, expected = [], [], 0.0
    for _ in range(30):
        chosen = draw.sample(range(40), sum(shape := draw.choice(shapes)))
        rankings.append([[chosen.pop() for _ in range(size)] for size in shape])
        weights.append(draw.random())
        expected -= weights[-1] * math.log(enumerated(scores, rankings[-1]))
    found = plackett_luce_loss(tensor(scores), rankings, tensor(weights))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.row(23)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row23_plackett_luce_is_finite_at_any_difference(dtype: torch.dtype) -> None:
    """{a, b} ≻ c with r_c = 1e4: both choices before c cost 1e4, in either order, so P = 2·e^(−2e4)."""
    scores = torch.tensor([0.0, 0.0, 1e4], dtype=dtype, requires_grad=True)
    loss = plackett_luce_loss(scores, [[[0, 1], [2]]], torch.ones(1, dtype=dtype))
    loss.backward()
    assert loss.item() == pytest.approx(2e4 - LN2, abs=2e-3)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([-1.0, -1.0, 2.0], dtype=dtype), rtol=0, atol=1e-3)


def test_a_last_tie_group_of_any_size_costs_nothing_and_teaches_nothing() -> None:
    scores = torch.arange(50, dtype=torch.float64).requires_grad_()
    loss = plackett_luce_loss(scores, [[list(range(50))]], tensor([1.0]))
    assert loss.item() == 0
    one = plackett_luce_loss(scores, [[[49], list(range(49))]], tensor([1.0]))
    assert one.item() == pytest.approx(math.log(sum(math.exp(-i) for i in range(50))), rel=1e-12)


def test_the_largest_tie_group_is_exact_and_the_next_is_refused() -> None:
    """Equal scores: g of g + 1 replies are on top with probability 1/(g + 1)."""
    size = preferences.LARGEST_TIE_GROUP
    scores = torch.zeros(size + 2, dtype=torch.float64)
    fits = plackett_luce_loss(scores, [[list(range(size)), [size]]], tensor([1.0]))
    assert fits.item() == pytest.approx(math.log(size + 1), rel=1e-12)
    with pytest.raises(ValueError, match=rf"ranking 1 has a tie group of {size + 1} replies.*at most {size}"):
        plackett_luce_loss(scores, [[[0], [1]], [list(range(size + 1)), [size + 1]]], tensor([1.0, 1.0]))


def test_a_reply_may_not_stand_twice_in_a_ranking() -> None:
    with pytest.raises(AssertionError):
        plackett_luce_loss(tensor([0.0, 1.0]), [[[0], [1], [0]]], tensor([1.0]))
