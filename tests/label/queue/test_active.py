"""Which items come first, by hand."""

import math

import numpy as np
import pytest

from plaudit.label.queue.active import doubt, priority


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_doubt_by_hand() -> None:
    """Scores 0, 0 and ln 3: an even pair has one bit; σ(ln 3) = 3/4 has 0.811278 bits."""
    found = doubt([[0.0], [0.0], [math.log(3)]])
    assert found == pytest.approx([1.0, 0.811278, 0.811278], abs=1e-6)


def test_members_that_contradict_each_other_doubt_together() -> None:
    """One member is sure of the first reply, the other of the second: together they know nothing."""
    assert doubt([[5.0, -5.0], [0.0, 0.0]]) == pytest.approx([1.0], abs=1e-9)
    assert doubt([[5.0, 5.0], [0.0, 0.0]]) == pytest.approx([entropy(1 / (1 + math.exp(-5)))], abs=1e-9)


def test_doubt_does_not_depend_on_the_level_of_the_scores_and_survives_large_ones() -> None:
    scores = np.array([[1.0], [2.0], [-1.0]])
    assert doubt(scores + 100) == pytest.approx(doubt(scores))
    assert doubt([[1e6], [-1e6]]) == pytest.approx([0.0], abs=1e-9)


def test_priority_by_hand() -> None:
    """Equal scores, lengths 1 and 3: one bit; times 2/4. Of two pairs as unsure, the more unequal comes first."""
    assert priority([[0.0], [0.0]], ["a", "bbb"]) == pytest.approx(1.0)
    assert priority([[0.0], [0.0]], ["a", "bbb"], "length") == pytest.approx(0.5)
    assert priority([[0.0], [0.0]], ["a", "b"], "length") == 0.0
    sure_and_unequal = priority([[9.0], [0.0]], ["a", "bbb"], "length")
    assert sure_and_unequal < priority([[0.0], [0.0]], ["aa", "bbb"], "length")
    assert priority([[0.0], [0.0]], ["", ""], "length") == 0.0
