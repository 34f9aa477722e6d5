"""The run-time guards: each passes at its bound, stops just beyond it, and never lets a NaN through."""

import math

import pytest
import torch

from plaudit.errors import RunStopped
from plaudit.guard import invariants

F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.row(7)
@pytest.mark.parametrize(("largest", "dtype"), [(0.0, F32), (1e-6, F32), (0.0, BF16)])
def test_row7_a_first_ratio_of_1_passes(largest: float, dtype: torch.dtype) -> None:
    invariants.check_first_ratio(largest, dtype)


@pytest.mark.row(7)
@pytest.mark.parametrize(
    ("largest", "dtype"), [(1.1e-6, F32), (1e-9, BF16), (math.nan, F32), (math.nan, BF16), (math.inf, F32)]
)
def test_row7_any_other_first_ratio_stops_the_run_with_its_size(largest: float, dtype: torch.dtype) -> None:
    with pytest.raises(RunStopped, match=f"{largest:.3g}"):
        invariants.check_first_ratio(largest, dtype)


@pytest.mark.row(18)
def test_row18_a_fresh_policy_that_is_the_reference_passes() -> None:
    invariants.check_fresh_kl(torch.zeros(2, 3), BF16)
    invariants.check_fresh_kl(torch.tensor([[0.0, -9e-7]]), F32)


@pytest.mark.row(18)
@pytest.mark.parametrize("value", [0.01, -0.01, math.nan])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_row18_a_fresh_policy_that_differs_in_one_token_stops_the_run(value: float, dtype: torch.dtype) -> None:
    """Also when the differences cancel in the mean, or lie in the other direction."""
    with pytest.raises(RunStopped, match="reference"):
        invariants.check_fresh_kl(torch.tensor([[0.0, value], [0.0, 0.0]]), dtype)
    with pytest.raises(RunStopped, match="reference"):
        invariants.check_fresh_kl(torch.tensor([[-value, value]]), dtype)


def test_the_stated_bounds_of_float32_are_in_force() -> None:
    """The stated bounds: 1e-6 for the ratio in float32."""
    assert invariants.RATIO_TOLERANCE == {F32: 1e-6, BF16: 0.0}


def test_a_finite_number_passes() -> None:
    for value in (0.0, -1e300, 5e-324):
        invariants.check_finite("the loss", value, "step 1")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_the_run_with_place_name_and_value(value: float) -> None:
    with pytest.raises(RunStopped, match=f"^SFT step 3: the loss is {value}"):
        invariants.check_finite("the loss", value, "SFT step 3")
