"""Agreement against published numbers and numbers worked by hand."""

import math

import numpy as np
import pytest

from plaudit.algo.agreement import best_accuracy, cohen_kappa, krippendorff_alpha

NAN = math.nan
# The example of Krippendorff's paper with three observers and fifteen units; a dot was not judged.
PUBLISHED = (
    ". . . . . 3 4 1 2 1 1 3 3 . 3",
    "1 . 2 1 3 3 4 3 . . . . . . .",
    ". . 2 1 3 4 4 . 2 1 1 3 3 . 4",
)
TABLE = [[NAN if cell == "." else float(cell) for cell in row.split()] for row in PUBLISHED]


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.691358), ("interval", 0.810845)])
def test_alpha_of_the_published_example(metric: str, alpha: float) -> None:
    assert krippendorff_alpha(TABLE, metric) == pytest.approx(alpha, abs=5e-7)


def test_alpha_does_not_depend_on_the_order_of_annotators_or_units_or_on_names_of_values() -> None:
    table = np.array(TABLE)
    turned = table[[2, 0, 1]][:, ::-1]
    assert krippendorff_alpha(turned) == pytest.approx(0.691358, abs=5e-7)
    renamed = np.array([NAN, 40.0, 10.0, 30.0, 20.0])[np.nan_to_num(table, nan=0).astype(int)]
    assert krippendorff_alpha(renamed) == pytest.approx(0.691358, abs=5e-7)
    # Units: 1.8 °F a °C changes no interval alpha.
    assert krippendorff_alpha(table * 1.8 + 32, "interval") == pytest.approx(0.810845, abs=5e-7)


def test_alpha_of_two_annotators_by_hand() -> None:
    """Answers aa, ab, bb, bb: 1 of 4 units disagrees. n = 8, three a and five b: expected 2·3·5 of 8·7 pairs.
    Observed disagreement 2/8 = 0.25, expected 30/56: α = 1 − 0.25·56/30 = 0.53333."""
    assert krippendorff_alpha([[0, 0, 1, 1], [0, 1, 1, 1]]) == pytest.approx(1 - 0.25 * 56 / 30, abs=1e-12)


def test_alpha_is_undefined_where_nothing_could_differ() -> None:
    assert krippendorff_alpha([[1, 1, 1], [1, 1, 1]]) is None  # unanimous, and with one value only
    assert krippendorff_alpha([[1, NAN], [NAN, 2]]) is None  # no unit that two judged
    assert krippendorff_alpha([[1, 2, 1], [1, 2, 1]]) == 1.0


def test_kappa_of_the_textbook_table() -> None:
    """20 both yes, 5 yes/no, 10 no/yes, 15 both no: observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5, κ = 0.4."""
    answers = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    first, second = zip(*answers, strict=True)
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-12)
    assert cohen_kappa(second, first) == pytest.approx(0.4, abs=1e-12)


def test_kappa_is_undefined_for_one_answer_and_for_none() -> None:
    assert cohen_kappa(["yes"] * 3, ["yes"] * 3) is None
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1.0


def test_best_accuracy_by_hand() -> None:
    """Annotators who give the likelier label with p = 0.8 agree 0.64 + 0.04 = 0.68 of the time."""
    assert best_accuracy(0.68) == pytest.approx(0.8, abs=1e-12)
    assert best_accuracy(1.0) == 1.0
    assert best_accuracy(0.5) == 0.5 == best_accuracy(0.2)


def test_best_accuracy_bounds_a_mixture_of_pairs() -> None:
    """Half of the pairs sure (p = 1), half a coin: the best model is right in 3/4, agreement is 3/4."""
    assert best_accuracy(0.75) >= 0.75
    assert best_accuracy(0.75) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-12)
