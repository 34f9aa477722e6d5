"""Masked sums, means and whitening: numbers worked by hand, and what padding and splits must not change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.algo.masked import Moments, masked_mean, masked_sum, moments_of, whiten

NAN = math.nan


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mask(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_masked_sum_by_hand() -> None:
    assert masked_sum(tensor([1, 2, 4], [8, 16, 32]), mask([1, 0, 1], [0, 1, 0])).item() == 21


def test_masked_sum_ignores_nan_and_infinity_where_the_mask_is_false() -> None:
    assert masked_sum(tensor([1, NAN, 4], [math.inf, 16, -math.inf]), mask([1, 0, 1], [0, 1, 0])).item() == 21


def test_masked_sum_does_not_hide_a_nan_that_counts() -> None:
    assert math.isnan(masked_sum(tensor([1, NAN]), mask([1, 1])).item())


def test_masked_sum_gradient_is_one_where_the_mask_is_true_and_zero_elsewhere() -> None:
    x = tensor([1, NAN, 4]).requires_grad_()
    masked_sum(x, mask([1, 0, 1])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0, 1]]


def test_masked_sum_refuses_a_mask_that_would_broadcast() -> None:
    with pytest.raises(AssertionError):
        masked_sum(torch.ones(2, 3), torch.ones(1, 3, dtype=torch.bool))


def test_masked_mean_divides_by_its_own_count() -> None:
    x, m = tensor([1, 2, 4]), mask([1, 0, 1])
    assert masked_mean(x, m).item() == 2.5


def test_masked_mean_of_nothing_is_zero_not_nan() -> None:
    assert masked_mean(tensor([NAN, 3]), mask([0, 0])).item() == 0


@pytest.mark.row(10)
def test_row_10_whiten_known_answer_with_the_biased_variance() -> None:
    """1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9)/4 = 5."""
    whitened, std = whiten(tensor([1, 99, 3], [5, 7, -99]), mask([1, 0, 1], [1, 1, 0]))
    assert std.item() == pytest.approx(math.sqrt(5), abs=1e-12)
    expected = tensor([-3 / math.sqrt(5), 0, -1 / math.sqrt(5)], [1 / math.sqrt(5), 3 / math.sqrt(5), 0])
    torch.testing.assert_close(whitened, expected, rtol=0, atol=1e-12)


@pytest.mark.row(10)
@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=6), min_size=1, max_size=5).filter(
        lambda rows: len({x for row in rows for x in row}) > 1
    ),
    st.integers(0, 4),
)
def test_row_10_whitened_numbers_have_mean_0_and_variance_1_whatever_the_padding(
    rows: list[list[int]], padding: int
) -> None:
    width = max(map(len, rows)) + padding
    x = torch.tensor([[*map(float, row), *[NAN] * (width - len(row))] for row in rows], dtype=torch.float64)
    m = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    whitened, _ = whiten(x, m)
    real = whitened[m]
    assert real.mean().item() == pytest.approx(0, abs=1e-9)
    assert (real**2).mean().item() == pytest.approx(1, abs=1e-9)
    assert not whitened[~m].any()


@pytest.mark.row(10)
def test_row_10_padding_row_order_and_layout_change_nothing() -> None:
    values = [3.0, -1.0, 0.5, 8.0, 2.0]
    flat, flat_std = whiten(tensor(values), mask([1] * 5))
    ragged, std = whiten(
        tensor([8.0, 2.0, NAN, NAN], [3.0, -1.0, 0.5, NAN]),
        mask([1, 1, 0, 0], [1, 1, 1, 0]),
    )
    assert std.item() == pytest.approx(flat_std.item(), abs=1e-12)
    moved = torch.cat([ragged[1, :3], ragged[0, :2]])
    torch.testing.assert_close(moved, flat[0], rtol=0, atol=1e-12)


@pytest.mark.row(10)
def test_row_10_whitening_two_halves_apart_is_another_result() -> None:
    """Guards the test above: 0, 2 and 10, 12 apart are ±1 each; together they have mean 6, std √26."""
    whole, _ = whiten(tensor([0, 2, 10, 12]), mask([1] * 4))
    half, _ = whiten(tensor([0, 2]), mask([1, 1]))
    assert half.tolist() == [[-1, 1]]
    assert whole[0, 0].item() == pytest.approx(-6 / math.sqrt(26), abs=1e-12)


@pytest.mark.row(10)
def test_row_10_a_mask_of_one_element_is_finite_and_zero() -> None:
    whitened, std = whiten(tensor([NAN, 7, NAN]), mask([0, 1, 0]))
    assert whitened.tolist() == [[0, 0, 0]]
    assert math.isfinite(std.item())


@pytest.mark.row(10)
def test_row_10_an_empty_mask_is_zero() -> None:
    whitened, _ = whiten(tensor([NAN, 7]), mask([0, 0]))
    assert whitened.tolist() == [[0, 0]]


@pytest.mark.row(10)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 5.3, -3.7, 1000.1])
def test_row_10_equal_numbers_whiten_to_0_and_never_to_their_rounding_errors(value: float, dtype: torch.dtype) -> None:
    """Seven times 0.7 has mean 0.7 only up to rounding; dividing that last bit by a tiny std must not give ±1."""
    for count in (2, 3, 7, 32, 33):
        whitened, _ = whiten(torch.full((count,), value, dtype=dtype), torch.ones(count, dtype=torch.bool))
        assert whitened.abs().max().item() < 1e-3, count


def test_the_floor_acts_only_below_it() -> None:
    x, m = tensor([1, 3]), mask([1, 1])
    assert whiten(x, m, floor=0.5)[0].tolist() == [[-1, 1]]
    assert whiten(x, m, floor=4)[0].tolist() == [[-0.25, 0.25]]


# --- moments that add up ---


def test_moments_by_hand() -> None:
    """1, 3, 5, 7: mean 4, variance 5."""
    found = moments_of(tensor([1, 99, 3], [5, 7, NAN]), mask([1, 0, 1], [1, 1, 0]))
    assert found == Moments(4, 16, 84)
    assert found.mean == 4
    assert found.variance == 5


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=12), st.integers(1, 11))
def test_the_moments_of_two_parts_add_up_to_those_of_the_whole(values: list[int], at: int) -> None:
    x, ones = tensor([float(value) for value in values])[0], torch.ones(len(values), dtype=torch.bool)
    assert moments_of(x[:at], ones[:at]) + moments_of(x[at:], ones[at:]) == moments_of(x, ones)


@pytest.mark.row(10)
def test_row_10_a_large_mean_does_not_eat_the_spread() -> None:
    """1000 and 1002 in float32: ±1. Sums of squares in float32 would leave no correct digit of the variance."""
    whitened, std = whiten(torch.tensor([1000.0, 1002.0] * 500), torch.ones(1000, dtype=torch.bool))
    assert std.item() == pytest.approx(1, abs=1e-6)
    assert whitened.tolist() == pytest.approx([-1.0, 1.0] * 500, abs=1e-6)


def test_whitening_does_not_hide_a_number_that_is_not_one() -> None:
    assert whiten(tensor([1.0, NAN, 3.0]), mask([1, 1, 1]))[0].isnan().all()


def test_nothing_has_no_moments() -> None:
    empty = moments_of(tensor([NAN]), mask([0]))
    assert empty == Moments()
    assert (empty.mean, empty.std) == (0, 0)
