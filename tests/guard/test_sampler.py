"""Where the sampler is: how far from the trainer, and where between policy and reference."""

import math
import re

import pytest
import torch
from torch import Tensor

from plaudit.errors import RunStopped
from plaudit.guard import formulas
from plaudit.guard.sampler import (
    GAP_BOUND,
    Slope,
    check_sampler,
    likeliest,
    sampler_gap,
    sampler_noise,
    sampler_slope,
    too_far,
)

F32, BF16 = torch.float32, torch.bfloat16
REPLIES, LENGTH = 32, 48


@pytest.mark.row(8)
def test_row8_the_gap_by_hand() -> None:
    """|Δ| = 0, 1, …, 100 in both signs: mean 50, 99th percentile 99; masked-out columns do not count."""
    delta = torch.arange(101.0) * torch.tensor([1.0, -1.0]).repeat(51)[:101]
    trainer = torch.full((1, 101), -200.0)
    sampler = trainer + delta
    pad = torch.tensor([[math.nan, 1e9]])
    mask = torch.tensor([[True] * 101 + [False] * 2])
    mean, p99 = sampler_gap(torch.cat([sampler, pad], 1), torch.cat([trainer, -pad], 1), mask)
    assert mean == pytest.approx(50, abs=1e-4)
    assert p99 == pytest.approx(99, abs=1e-4)


@pytest.mark.row(8)
def test_row8_where_sampler_and_trainer_agree_the_gap_is_0() -> None:
    same = torch.tensor([[-0.5, -3.0], [-1.0, -0.1]])
    assert sampler_gap(same, same.clone(), torch.ones(2, 2, dtype=torch.bool)) == (0.0, 0.0)


@pytest.mark.row(8)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_row8_a_gap_within_both_bounds_passes(dtype: torch.dtype) -> None:
    assert too_far((0.0, 0.0), dtype) is None
    assert too_far(GAP_BOUND[dtype], dtype) is None


@pytest.mark.row(8)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("which", "name"), [(0, "mean"), (1, "99th percentile")])
@pytest.mark.parametrize("factor", [1.01, math.nan, math.inf])
def test_row8_a_gap_beyond_either_bound_is_named(dtype: torch.dtype, which: int, name: str, factor: float) -> None:
    gap = list(GAP_BOUND[dtype])
    gap[which] *= factor
    assert f"the {name} of" in (too_far((gap[0], gap[1]), dtype) or "")


def test_the_stated_bounds_of_the_gap() -> None:
    """At most 1e-4 nats between sampler and trainer in float32."""
    assert max(GAP_BOUND[F32]) <= 1e-4


# Where between policy and reference.


def law(place: float, way: float, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(sampler, policy, reference, mask): log-probs of replies of uneven length, `way` apart on average, each of the
    three as a pass with its own rounding `noise` says it; the sampler is at `place` on the way."""
    draw = torch.Generator().manual_seed(seed)

    def normal(size: float) -> Tensor:
        return size * torch.randn(REPLIES, LENGTH, generator=draw)

    policy_BT, way_BT = -2 + normal(1.0), normal(way)
    lengths_B = torch.randint(8, LENGTH + 1, (REPLIES, 1), generator=draw)
    mask_BT = torch.arange(LENGTH) < lengths_B
    three = (policy_BT + place * way_BT, policy_BT, policy_BT + way_BT)
    sampler_BT, policy_BT, reference_BT = (torch.where(mask_BT, one + normal(noise), math.nan) for one in three)
    return sampler_BT, policy_BT, reference_BT, mask_BT


@pytest.mark.row(31)
def test_row_31_the_slope_by_hand() -> None:
    """Two replies; (sampler − policy, reference − policy) is (0.1, 0.2), (0, 0.4) and (0.3, 0.5): slope
    (0.02 + 0 + 0.15)/(0.04 + 0.16 + 0.25) = 17/45. The replies' sums of products with what is left are
    0.02 − 17/45·0.2 and 0.15 − 17/45·0.25, ±1/18."""
    policy = torch.full((2, 3), -1.0)
    sampler = policy + torch.tensor([[0.1, 0.0, 9.0], [0.3, 9.0, 9.0]])
    reference = policy + torch.tensor([[0.2, 0.4, 9.0], [0.5, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    slope = sampler_slope(sampler, policy, reference, mask, noise=0.0)
    assert slope is not None
    assert slope.value == pytest.approx(17 / 45, rel=1e-5)
    assert slope.error == pytest.approx((2 * (1 / 18) ** 2 * 2) ** 0.5 / 0.45, rel=1e-4)


@pytest.mark.row(31)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0, -1.0])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_row_31_the_slope_is_found_under_noise(place: float, noise: float) -> None:
    """Without the correction a noise of half the way would make 0.2 of 0. The stated error is the one that is seen."""
    slopes = []
    for seed in range(40):
        first = law(0.0, 0.0, noise, seed + 1000)
        of_noise = sampler_noise(first[0], first[1], first[3])
        assert of_noise == pytest.approx(2 * noise**2, rel=0.2)
        found = sampler_slope(*law(place, 0.3, noise, seed), noise=of_noise)
        assert found is not None
        slopes.append(found)
    values = torch.tensor([slope.value for slope in slopes])
    assert values.mean().item() == pytest.approx(place, abs=0.03)
    if noise:
        errors = torch.tensor([slope.error for slope in slopes])
        assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.5)
    assert [slope.lost for slope in slopes] == [place != 0.0] * 40


def test_the_doctors_formula_is_the_same() -> None:
    sampler_BT, policy_BT, reference_BT, mask_BT = law(0.3, 0.3, 0.05)
    slope = sampler_slope(sampler_BT, policy_BT, reference_BT, mask_BT, noise=0.004)
    assert slope is not None

    def rows(x_BT: Tensor) -> list[formulas.Floats]:
        return [x.double().numpy()[m.numpy()] for x, m in zip(x_BT, mask_BT, strict=True)]

    gap = [a - b for a, b in zip(rows(sampler_BT), rows(policy_BT), strict=True)]
    way = [a - b for a, b in zip(rows(reference_BT), rows(policy_BT), strict=True)]
    value, error = formulas.through_origin(gap, way, 0.004)
    assert value == pytest.approx(slope.value, rel=1e-6)
    assert error == pytest.approx(slope.error, rel=0.05)


def test_where_policy_and_reference_are_too_near_nothing_is_said() -> None:
    assert sampler_slope(*law(1.0, 0.05, 0.1), noise=0.02) is None
    assert sampler_slope(*law(0.0, 0.0, 0.0), noise=0.0) is None
    one = [x[:1] for x in law(1.0, 0.3, 0.0)]
    assert sampler_slope(*one, noise=0.0) is None, "one reply has no standard error"


@pytest.mark.row(31)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("place", "says"),
    [(0.5, "stale or lost adapter"), (1.0, "stale or lost"), (-1.0, "adapter applied more than once")],
)
def test_row_31_a_sampler_elsewhere_stops_the_run(dtype: torch.dtype, place: float, says: str) -> None:
    """Also within the bounds of the gap: half of an adapter is 0.05 nats away, allowed are 0.15 in bf16."""
    noise = 0.02 if dtype == BF16 else 1e-6
    numbers = law(place, 0.08, noise)
    if dtype == BF16:
        assert sampler_gap(*numbers[:2], numbers[3])[0] < GAP_BOUND[BF16][0]
    with pytest.raises(RunStopped, match=f"does not sample the policy \\({says}"):
        check_sampler(*numbers, dtype, 2 * noise**2)
    healthy = check_sampler(*law(0.0, 0.08, noise), dtype, 2 * noise**2)
    assert abs(healthy["sampler_slope"]) < 0.1 and healthy["sampler_slope_se"] > 0


@pytest.mark.parametrize(
    ("pattern", "on_the_way", "says"),
    [
        (("temperature mismatch", "…"), 0.1, "^temperature"),
        (("temperature mismatch", "…"), 0.9, "lost adapter"),
        (None, 0.1, "lost adapter"),
    ],
)
def test_the_likelier_mistake_is_named(pattern: tuple[str, str] | None, on_the_way: float, says: str) -> None:
    """Another temperature may look like an adapter half lost, and the other way round: what explains more is named."""
    assert re.search(says, likeliest("far", Slope(0.5, 0.01), pattern, on_the_way))


def test_the_first_rollout_is_asked_for_no_slope() -> None:
    assert "sampler_slope" not in check_sampler(*law(0.0, 0.0, 1e-6), F32, None)
