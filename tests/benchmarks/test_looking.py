"""Looking after every label: few false alarms at a true half, and fewer labels than a test of fixed size."""

import numpy as np
import pytest

from looking import first_alarms, fixed_size


def test_the_size_of_a_test_by_hand() -> None:
    # (1.96·0.5 + 0.8416·√(0.6·0.4))² / 0.1² = (0.97998 + 0.41231)²/0.01 = 193.8
    assert fixed_size(0.6) == 194


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_false_alarms_are_rare_with_a_look_after_every_label(ties: float) -> None:
    sequence, fixed = first_alarms(0.5, ties, 1000, 300)
    assert np.mean(sequence <= 300) <= 0.05
    assert ties or np.mean(fixed <= 300) > 0.2  # what looking does to an interval that is for one look


def test_a_clear_preference_needs_fewer_labels_than_a_test_planned_for_a_smaller_one() -> None:
    alarm, _ = first_alarms(0.65, 0.0, 500, 400)
    assert np.median(alarm) <= 0.6 * fixed_size(0.6)
