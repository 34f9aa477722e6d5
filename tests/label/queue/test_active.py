"""Which items come first, by hand."""

import math

import numpy as np
import pytest

from plaudit.label.queue.active import distinct, doubt, priority, worth


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


# One member scores three replies 0, 1, 3, another 0, 1, −1: pairs (0,1), (0,2), (1,2).
SCORES = [[0, 0], [1, 1], [3, -1]]


def test_worth_by_hand() -> None:
    """Gaps are −1 and −1, −3 and 1, −2 and 2: means 1, 1, 0 in size, stds 0, 2, 2."""
    assert worth(SCORES, "max_min").tolist() == [1, 1, 0]
    assert worth(SCORES, "delta_ucb").tolist() == [1, 3, 2]
    assert worth(SCORES, "unsure").tolist() == doubt(SCORES).tolist()


def test_the_pair_that_is_worth_most() -> None:
    """Of replies 0 to 3 in the order (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)."""
    assert worth([[0.0], [5.0], [-2.0], [1.0]], "max_min").argmax() == 3
    assert worth([[0.0], [5.0], [-2.0], [1.0]], "unsure").argmax() == 2


def test_items_of_large_gaps_or_in_a_drawn_order() -> None:
    near, far = [[0.0], [0.5], [0.2]], [[0.0], [4.0], [1.0]]
    assert priority(far, ["a"] * 3, "max_min") > priority(near, ["a"] * 3, "max_min")
    assert priority([[0.0], [2.0]], ["a", "b"], "delta_ucb") == pytest.approx(2 / (1 + np.exp(-2)) - 1)
    drawn = [priority(near, [str(i)], "random") for i in range(200)]
    assert 0.4 < np.mean(drawn) < 0.6 and min(drawn) >= 0 and max(drawn) < 1 and len(set(drawn)) == 200


def test_near_repeats_are_not_labelled() -> None:
    texts = ["the cat sat on the mat", "The cat  sat on the MAT", "a dog ran off", "hi", "one two three four"]
    assert distinct(texts) == [0, 2, 3, 4]
    assert distinct(texts, ["hi", "one two three four"]) == [0, 2]
