"""Agreement and reliability against published numbers, numbers worked by hand, and simulated people."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.algo.agreement import krippendorff_alpha
from plaudit.algo.statistics import wilson_interval
from plaudit.label.quality.reliability import dawid_skene, log_odds, mean_ranks, reliabilities

NAN = math.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: four observers, twelve units.
FOUR_OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
TABLE = [[NAN if cell == "." else float(cell) for cell in row.split()] for row in FOUR_OBSERVERS]

# Dawid and Skene 1979, table 1: 45 patients, five anaesthetists, the first of whom saw each form three times.
PATIENTS = (
    "111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3|222 2 2 2 3|"
    "232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1|111 1 1 1 1|111 1 1 1 1|"
    "222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2|111 1 1 1 1|111 1 1 1 1|232 2 2 2 2|"
    "111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3|111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3|"
    "221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1|111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2"
)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_example(metric: str, alpha: float) -> None:
    assert krippendorff_alpha(TABLE, metric) == pytest.approx(alpha, abs=5e-4)


def test_ordinal_alpha_by_hand() -> None:
    """Two observers: (1, 1), (1, 2), (3, 3). n = 6 values: 1 three times, 2 once, 3 twice. Middles of the places: 1.5,
    3.5, 5. Observed: 2 · 2² / 1 = 8 (the pair both ways). Expected: 2·(3·1·4 + 3·2·12.25 + 1·2·2.25) = 180.
    α = 1 − 5 · 8 / 180."""
    assert krippendorff_alpha([[1, 1, 3], [1, 2, 3]], "ordinal") == pytest.approx(1 - 5 * 8 / 180, abs=1e-12)


@given(st.lists(st.lists(st.integers(1, 5), min_size=6, max_size=6), min_size=2, max_size=4))
def test_ordinal_alpha_sees_the_order_of_values_only(rows: list[list[int]]) -> None:
    before = krippendorff_alpha(rows, "ordinal")
    after = krippendorff_alpha([[10**value for value in row] for row in rows], "ordinal")
    assert before == (None if after is None else pytest.approx(after, abs=1e-9))


def test_wilson_interval_against_the_published_example() -> None:
    """8 of 10: (0.4902, 0.9433); 0 of 10: up to z²/(n + z²) = 0.2775 (Newcombe 1998's method 3)."""
    assert wilson_interval([1] * 8 + [0] * 2) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert wilson_interval([0] * 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)


def test_wilson_interval_counts_whole_clusters() -> None:
    """Ten values of which each stands three times know as much as ten, but for the factor C/(C − 1) of the variance:
    p = 0.8 has an effective n of 9."""
    values = [1] * 8 + [0] * 2
    nine = wilson_interval([value for value in values for _ in range(3)], [i for i in range(10) for _ in range(3)])
    z2, p, n = 3.841458820694124, 0.8, 9.0
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    assert nine == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert wilson_interval([1] * 12, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])[0] == pytest.approx(3 / (3 + z2), abs=1e-9)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Clusters of five alike answers, p = 0.7: of 400 samples 95 % cover it, within noise (3 standard errors)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        answers = np.repeat(rng.random(60) < 0.7, 5)
        low, high = wilson_interval(answers, np.repeat(np.arange(60), 5))
        hits += low <= 0.7 <= high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400) <= hits / 400 <= 0.985


def test_dawid_and_skenes_anaesthetists() -> None:
    """Their table 2: shares 0.40, 0.42, 0.11, 0.07; the first anaesthetist's error rates to two places."""
    rows = [
        (patient, who, int(answer) - 1)
        for patient, line in enumerate(PATIENTS.split("|"))
        for who, answers in enumerate(line.split())
        for answer in answers
    ]
    units, annotators, answers = zip(*rows, strict=True)
    fitted = dawid_skene(units, annotators, answers)
    assert fitted.shares_C == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.005)
    first = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    assert fitted.confusion_ACC[0] == pytest.approx(np.array(first), abs=0.0051)


def people(qualities: list[float], pairs: int, seed: int = 0) -> dict[int, dict[int, int]]:
    """Strict verdicts of people who are right with these probabilities."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([1, -1], pairs)
    return {
        pair: {who: int(truth[pair] if rng.random() < q else -truth[pair]) for who, q in enumerate(qualities)}
        for pair in range(pairs)
    }


def test_the_reliability_of_simulated_people_is_recovered() -> None:
    qualities = [0.95, 0.85, 0.75, 0.6, 0.5]
    found = reliabilities(people(qualities, 1500))
    assert [found[who] for who in range(5)] == pytest.approx(qualities, abs=0.03)


def test_reliability_does_not_depend_on_which_reply_is_called_the_first() -> None:
    judged = people([0.9, 0.8, 0.6], 200)
    turned = {
        pair: {who: (-sign if pair % 2 else sign) for who, sign in given.items()} for pair, given in judged.items()
    }
    assert reliabilities(judged) == pytest.approx(reliabilities(turned), abs=1e-4)


def test_reliability_says_nothing_where_nothing_can_be_known() -> None:
    assert reliabilities(people([0.9, 0.8], 100)) == {}
    assert reliabilities({pair: {pair % 3: 1} for pair in range(90)}) == {}
    few = people([0.9, 0.9, 0.9], 9)
    assert reliabilities(few) == {}


def test_one_reliable_person_outvotes_two_that_guess() -> None:
    """ln(0.95/0.05) = 2.944 against 2 · ln(0.6/0.4) = 0.811; worse than chance weighs nothing."""
    assert log_odds(0.95) == pytest.approx(2.944439, abs=1e-6)
    assert log_odds(0.6) == pytest.approx(0.405465, abs=1e-6)
    assert log_odds(0.3) == 0.0
    assert log_odds(1.0) == 4.0
    ranks = mean_ranks([[1, 2], [2, 1], [2, 1]], [log_odds(0.95), log_odds(0.6), log_odds(0.6)])
    assert ranks[0] < ranks[1]
    assert mean_ranks([[1, 2, 3], [2, 1, 3]], [0, 0]) == [1.5, 1.5, 3.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_dawid_skene_always_gives_probabilities(rows: list[tuple[int, int, int]]) -> None:
    units, annotators, answers = zip(*rows, strict=True)
    number = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    fitted = dawid_skene([number[unit] for unit in units], annotators, answers, right=1, wrong=0.5, steps=30)
    assert fitted.classes_UC.sum(axis=1) == pytest.approx(1)
    assert fitted.confusion_ACC.sum(axis=2) == pytest.approx(1)
    assert fitted.shares_C.sum() == pytest.approx(1)
