"""The design's worked example: V = 1.5, R = 5, γ = 0.9, π_old = 0.60, π = 0.75, ε = 0.2."""

import pytest

from plaudit.algo.worked import worked_example


def test_the_worked_example_has_the_published_numbers() -> None:
    numbers = worked_example()
    given = (numbers.value, numbers.reward, numbers.gamma, numbers.old_probability, numbers.probability)
    assert given == (1.5, 5.0, 0.9, 0.60, 0.75)
    assert numbers.clip_range == 0.2
    assert numbers.advantage == pytest.approx(3.5, abs=1e-12)
    assert numbers.ratio == pytest.approx(1.25, abs=1e-12)
    assert numbers.unclipped == pytest.approx(4.375, abs=1e-12)
    assert numbers.clipped == pytest.approx(4.2, abs=1e-12)
    assert numbers.l_clip == pytest.approx(4.2, abs=1e-12)


def test_inside_the_clip_the_unclipped_number_counts() -> None:
    """π = 0.66 is a ratio of 1.1: 3.85 both ways."""
    numbers = worked_example(probability=0.66)
    assert numbers.ratio == pytest.approx(1.1, abs=1e-12)
    assert numbers.l_clip == pytest.approx(3.85, abs=1e-12)
    assert numbers.clipped == pytest.approx(3.85, abs=1e-12)


def test_a_disappointing_reply_is_not_clipped_when_its_probability_rose() -> None:
    """R = 0: Â = −1.5; unclipped −1.875, clipped −1.8; the smaller one counts."""
    numbers = worked_example(reward=0.0)
    assert numbers.advantage == pytest.approx(-1.5, abs=1e-12)
    assert numbers.clipped == pytest.approx(-1.8, abs=1e-12)
    assert numbers.l_clip == pytest.approx(-1.875, abs=1e-12)
