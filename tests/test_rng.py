"""Random numbers as a function of (seed, stage, step, sample, position): nothing else may reach them."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from plaudit import rng


def test_the_same_arguments_give_the_same_numbers() -> None:
    first = rng.uniforms(3, "ppo", 5, [2, 7], 11)
    rng.uniforms(4, "other", 1, [0], 100)
    np.random.random(10)
    assert np.array_equal(rng.uniforms(3, "ppo", 5, [2, 7], 11), first)


def test_another_process_with_another_hash_seed_draws_the_same_numbers() -> None:
    code = "from plaudit import rng; print(rng.uniforms(3, 'ppo', 5, [2], 4).tolist(), rng.permutation(3, 'x', 1, 9))"
    expected = f"{rng.uniforms(3, 'ppo', 5, [2], 4).tolist()} {rng.permutation(3, 'x', 1, 9)}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12345"}
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("shorter", [0, 1, 2, 3, 7, 8, 63])
def test_asking_for_more_positions_changes_nothing_before_them(shorter: int) -> None:
    """The prefix property: a longer limit keeps the same replies up to the shorter one."""
    long = rng.uniforms(0, "a", 0, [0, 1, 5], 64)
    assert np.array_equal(rng.uniforms(0, "a", 0, [0, 1, 5], shorter), long[:, :shorter])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together = rng.uniforms(0, "a", 2, [4, 9, 1, 4], 16)
    for row, sample in zip(together, [4, 9, 1, 4], strict=True):
        assert np.array_equal(rng.uniforms(0, "a", 2, [sample], 16)[0], row)


def test_every_argument_changes_the_numbers() -> None:
    """3 · 3 · 3 · 3 draws, also at pairs that a careless key would join (1 and "1/a" against 11 and "a")."""
    seeds, stages, steps, samples = (0, 1, 11), ("a", "1/a", "b"), (0, 1, 2**33), (0, 1, 2**33)
    rows = {
        tuple(rng.uniforms(seed, stage, step, [sample], 4)[0].tolist())
        for seed, stage, step, sample in itertools.product(seeds, stages, steps, samples)
    }
    assert len(rows) == 81


def test_step_and_sample_are_not_interchangeable() -> None:
    assert not np.array_equal(rng.uniforms(0, "a", 1, [2], 8), rng.uniforms(0, "a", 2, [1], 8))


def test_uniforms_are_float32_in_the_half_open_unit_interval() -> None:
    found = rng.uniforms(0, "a", 0, list(range(300)), 400)
    assert found.shape == (300, 400)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() < 1


def test_uniforms_have_the_moments_of_a_uniform_law() -> None:
    """120,000 draws: the mean's standard error is √(1/12/n) = 0.00083, the variance's √(1/180/n) = 0.00022."""
    found = rng.uniforms(0, "a", 0, list(range(300)), 400).astype(np.float64)
    assert found.mean() == pytest.approx(1 / 2, abs=5 * 0.00083)
    assert found.var() == pytest.approx(1 / 12, abs=5 * 0.00022)


def test_neighbouring_samples_steps_and_positions_are_uncorrelated() -> None:
    """20,000 pairs each: r has a standard error of 0.0071."""
    first = rng.uniforms(0, "a", 0, list(range(100)), 200)
    second = rng.uniforms(0, "a", 1, list(range(100)), 200)
    for x, y in ((first[:-1], first[1:]), (first[:, :-1], first[:, 1:]), (first, second)):
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 5 * 0.0072


def test_no_samples_give_no_rows() -> None:
    assert rng.uniforms(0, "a", 0, [], 7).shape == (0, 7)


def test_a_permutation_holds_every_index_once_and_is_fixed_by_its_arguments() -> None:
    order = rng.permutation(0, "a", 3, 100)
    assert sorted(order) == list(range(100))
    assert order == rng.permutation(0, "a", 3, 100)
    others = [rng.permutation(1, "a", 3, 100), rng.permutation(0, "b", 3, 100), rng.permutation(0, "a", 4, 100)]
    assert all(order != other for other in others)


def test_every_order_is_equally_likely() -> None:
    """6,000 orders of three: each of the six 1,000 times, with a standard deviation of 28.9."""
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for step in range(6000):
        counts[tuple(rng.permutation(0, "a", step, 3))] += 1
    assert all(abs(count - 1000) < 5 * 28.9 for count in counts.values())


def test_every_epoch_of_a_stream_is_another_permutation() -> None:
    drawn = rng.stream(0, "a", 10, 0, 50)
    epochs = [drawn[start : start + 10] for start in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_a_stream_goes_on_at_any_position_as_if_it_had_never_stopped() -> None:
    whole = rng.stream(0, "a", 7, 0, 40)
    for start, count in itertools.product(range(30), (0, 1, 6, 10)):
        assert rng.stream(0, "a", 7, start, count) == whole[start : start + count]


def test_streams_of_other_seeds_and_stages_differ() -> None:
    assert len({tuple(rng.stream(s, name, 50, 0, 50)) for s in (0, 1) for name in ("a", "b")}) == 4
