"""Intervals, calibration and correlation against numbers worked by hand and against theory."""

import math
from itertools import combinations

import numpy as np
import pytest

from plaudit.algo.statistics import (
    auc,
    best_of_n,
    bootstrap_gap,
    bootstrap_interval,
    calibration,
    calibration_noise,
    confidence_sequence,
    correlation,
    explained_variance,
    length_controlled,
    log_capital,
    within_correlation,
)

LN3, LN9 = math.log(3), math.log(9)


def test_fewer_than_five_have_no_bootstrap_interval() -> None:
    """Four values that happen to agree would have one without any width."""
    assert bootstrap_interval([0.25]) is bootstrap_interval([1.0] * 4) is None
    assert bootstrap_interval([1.0] * 40, ["a", "b", "c", "d"] * 10) is None
    assert bootstrap_interval([1.0] * 5) == [1, 1]
    assert bootstrap_gap([1.0, 0.0] * 20, [True, False] * 20, ["a", "b", "c", "d"] * 10) is None


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval([2.0] * 9) == [2, 2]


def test_bootstrap_of_a_fair_coin_has_the_width_of_theory() -> None:
    """400 tosses, half heads: standard error √(¼/400) = 0.025, so ±1.96·0.025 around ½."""
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    assert high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.06)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.004)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 experiments of 60 tosses at p = 0.3: 95 % is 190 ± 3.1 covered; 180, or all 200, would be another level."""
    tosses = np.random.default_rng(7).random((200, 60)) < 0.3
    covered = sum(low <= 0.3 <= high for low, high in (bootstrap_interval(row, draws=500) for row in tosses))
    assert 180 < covered < 200


def test_bootstrap_width_shrinks_with_the_root_of_n_and_with_the_level() -> None:
    def width(n: int, level: float = 0.95) -> float:
        low, high = bootstrap_interval([0.0, 1.0] * n, level=level)
        return high - low

    assert width(800) / width(200) == pytest.approx(0.5, rel=0.08)
    assert width(200, level=0.8) / width(200) == pytest.approx(1.2816 / 1.9600, rel=0.08)


def test_duplicated_clusters_do_not_shrink_the_interval() -> None:
    """Four identical pairs of each prompt are no more evidence than one; taken as independent they halve the width."""
    values = [0.0, 1.0] * 50
    fourfold, clusters = np.repeat(values, 4), np.repeat(np.arange(100), 4)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(fourfold, clusters) == pytest.approx((low, high), abs=1e-12)
    naive_low, naive_high = bootstrap_interval(fourfold)
    assert (naive_high - naive_low) / (high - low) == pytest.approx(0.5, rel=0.1)


def test_unequal_clusters_by_hand() -> None:
    """Four clusters of three zeros and one of a single 1, which is drawn k of 5 times: the mean is k/(15 − 2k), since a
    cluster weighs what it holds. k is 0, at most 1, at least 3, at least 4 with probability 0.33, 0.74, 0.06, 0.007."""
    values, clusters = [0.0] * 12 + [1.0], [*"abcd" * 3, "e"]
    assert bootstrap_interval(values, clusters) == pytest.approx([0, 3 / 9])
    assert bootstrap_interval(values, clusters, level=0.2) == pytest.approx([1 / 13, 1 / 13])


def test_clusters_are_a_partition_whatever_their_names_and_order() -> None:
    values = np.random.default_rng(0).random(30)
    numbers = np.arange(30) % 10
    moved = np.random.default_rng(1).permutation(30)
    named = bootstrap_interval(values, [f"prompt-{n}" for n in numbers])
    assert bootstrap_interval(values[moved], numbers[moved]) == pytest.approx(named, abs=1e-12)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(0).random(20)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_correlation_by_hand() -> None:
    """x = 1, 2, 3 and y = 1, 3, 2: covariance 1/3, variances 2/3, r = ½."""
    assert correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5, abs=1e-12)
    assert correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1, abs=1e-12)
    assert correlation([1, 2, 3], [5, 3, 1]) == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -3.7, 1e9 + 0.1])
def test_correlation_with_a_constant_is_0(value: float) -> None:
    for count in (1, 2, 3, 7, 33):
        assert correlation([value] * count, range(count)) == 0
        assert correlation(range(count), [value] * count) == 0


def test_correlation_of_nothing_is_0() -> None:
    assert correlation([], []) == 0


@pytest.mark.row(30)
def test_explained_variance_by_hand() -> None:
    returns = [1.0, 2.0, 3.0]
    assert explained_variance(returns, returns) == 1
    assert explained_variance([5.0] * 3, returns) == pytest.approx(0, abs=1e-12)
    # Errors 2, 4, 6 have four times the variance of 1, 2, 3.
    assert explained_variance([-1.0, -2.0, -3.0], returns) == pytest.approx(-3, abs=1e-12)
    # Errors 0, 1, 1: variance 2/9; returns: 2/3.
    assert explained_variance([1.0, 1.0, 2.0], returns) == pytest.approx(1 - 1 / 3, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -3.7])
def test_explained_variance_of_constant_returns_is_0_whatever_the_rounding(value: float) -> None:
    for count in (2, 3, 7, 33):
        assert explained_variance(np.arange(count), [value] * count) == 0


def test_calibration_bins_by_hand() -> None:
    """σ(ln 3) = ¾ and σ(ln 9) = 0.9. Half right at ¾, all right at 0.9: error ½·¼ + ½·0.1 = 0.175."""
    table, error = calibration([LN9, LN3, LN9, -LN3], bins=2)
    assert [row["count"] for row in table] == [2, 2]
    assert [row["confidence"] for row in table] == pytest.approx([0.75, 0.9], abs=1e-12)
    assert [row["accuracy"] for row in table] == [0.5, 1.0]
    assert error == pytest.approx(0.175, abs=1e-12)


def test_a_model_that_is_as_right_as_it_is_sure_has_no_calibration_error() -> None:
    assert calibration([LN3, LN3, LN3, -LN3])[1] > 0.2  # four bins of one pair each cannot be calibrated
    assert calibration([LN3, LN3, LN3, -LN3], bins=1)[1] == pytest.approx(0, abs=1e-12)


def test_a_margin_of_0_is_a_coin_toss_and_counts_half() -> None:
    table, error = calibration([0.0, 0.0], bins=1)
    assert table == [{"confidence": 0.5, "accuracy": 0.5, "count": 2}]
    assert error == 0


def test_unequal_bins_weigh_by_their_count() -> None:
    """Three pairs in two bins: {½, ¾ wrong} and {0.9 right}: ⅔·|¼ − ⅝| + ⅓·0.1."""
    table, error = calibration([0.0, -LN3, LN9], bins=2)
    assert [row["count"] for row in table] == [2, 1]
    assert error == pytest.approx(2 / 3 * 0.375 + 1 / 3 * 0.1, abs=1e-12)


def test_calibration_survives_huge_margins_and_few_pairs() -> None:
    table, error = calibration([1e4, -1e4])
    assert [row["confidence"] for row in table] == [1, 1]
    assert sum(row["count"] for row in table) == 2
    assert error == pytest.approx(1 / 2, abs=1e-12)
    assert calibration([]) == ([], 0.0)


# --- what the report card adds ---


def test_within_correlation_by_hand() -> None:
    """Two prompts: within each the longer reply scores lower, between them the longer prompt scores higher."""
    lengths, scores, prompts = [1, 2, 11, 12], [2.0, 1.0, 12.0, 11.0], ["a", "a", "b", "b"]
    assert correlation(lengths, scores) > 0.9
    assert within_correlation(lengths, scores, prompts) == pytest.approx(-1.0, abs=1e-12)
    assert within_correlation([5, 5, 7, 7], scores, prompts) == 0.0
    # Centred: (−1, 0, 1) and (1, −2, 1) in the one cluster, r = 0.
    assert within_correlation([1, 2, 3], [4.0, 1.0, 4.0], ["a"] * 3) == pytest.approx(0.0, abs=1e-12)


def test_calibration_noise_of_one_coin_by_hand() -> None:
    """One pair of margin 0 is right half of the time; accuracy 0 or 1 against confidence ½ is always ½ away."""
    assert calibration_noise([1e-12]) == pytest.approx((0.5, 0.5), abs=1e-9)


def test_calibration_noise_shrinks_with_the_root_of_the_pairs() -> None:
    few, many = (calibration_noise([0.5] * n)[0] for n in (200, 3200))
    assert many / few == pytest.approx(0.25, rel=0.15)


def test_gap_by_hand() -> None:
    """Five clusters, each with a right pair in the group and a wrong one outside: every draw has gap 1."""
    values, group = [1.0, 0.0] * 5, [True, False] * 5
    assert bootstrap_gap(values, group, [*"aabbccddee"]) == [1, 1]
    with pytest.raises(ValueError, match="both groups"):
        bootstrap_gap(values, [True] * 10, ["a"] * 10)


def test_gap_of_two_coins_has_the_width_of_theory() -> None:
    """200 pairs a group, half right in each: standard error √(2·¼/200) = 0.05."""
    low, high = bootstrap_gap([0.0, 1.0] * 200, [True, True, False, False] * 100, np.arange(400))
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.06)


def test_auc_by_hand() -> None:
    """Of four pairs three are right, and a tie is half. The variance is DeLong's: the liked ones are right about ½ and
    1 of the others, and these about 1 and ½ of the liked ones, so it is 2 · (⅛ / 2)."""
    value, (low, high) = auc([1.0, 2.0, 3.0, 4.0], [False, True, False, True], range(4))
    half = 1.959963984540054 * math.sqrt(1 / 8)
    assert value == 0.75 and (low, high) == (pytest.approx(0.75 - half), 1.0)
    assert auc([1.0, 1.0], [True, False], range(2))[0] == 0.5
    assert auc([2.0, 1.0], [True, False], [0, 0]) == (1.0, [0.0, 1.0])
    with pytest.raises(ValueError, match="both kinds, got 2 true of 2"):
        auc([1.0, 2.0], [True, True], range(2))


def test_auc_of_scores_that_stand_twice_in_a_cluster_is_no_surer() -> None:
    scores, labels = [1.0, 2.0, 3.0, 4.0, 2.5, 0.5], [False, True, False, True, True, False]
    once, twice = auc(scores, labels, range(6)), auc(scores * 2, labels * 2, [*range(6)] * 2)
    assert twice[0] == pytest.approx(once[0]) and twice[1] == pytest.approx(once[1])


def test_the_interval_of_an_auc_holds_it_as_often_as_it_says() -> None:
    """Scores of liked replies lie 1 higher: the AUC is Φ(1/√2) = 0.760."""
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        labels = np.arange(80) % 2 == 0
        _, (low, high) = auc(random.normal(size=80) + labels, labels, np.arange(80))
        inside += low <= 0.7602499 <= high
    assert 0.92 <= inside / 400 <= 0.98


def beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def test_the_capital_of_wins_and_losses_is_that_of_a_beta_mixture() -> None:
    """Of w wins and l losses the mixture is B(5 + w, 5 + l) / (B(5, 5) m^w (1 − m)^l)."""
    for wins, losses, m in ((7, 3, 0.5), (40, 60, 0.3), (0, 12, 0.5)):
        exact = beta(5 + wins, 5 + losses) - beta(5, 5) - wins * math.log(m) - losses * math.log(1 - m)
        found = log_capital(np.array([0.0, 1.0]), [losses, wins], m)
        assert found == pytest.approx(exact, abs=2e-3)


def test_confidence_sequence_ends_where_the_capital_is_twenty() -> None:
    low, high = confidence_sequence([1.0] * 70 + [0.0] * 30)
    for end in (low, high):
        exact = beta(75, 35) - beta(5, 5) - 70 * math.log(end) - 30 * math.log(1 - end)
        assert exact == pytest.approx(math.log(20), abs=2e-3)
    assert low < 0.7 < high
    turned = confidence_sequence([0.0] * 70 + [1.0] * 30)
    assert turned == pytest.approx((1 - high, 1 - low), abs=2e-6)


def test_confidence_sequence_of_ties_and_of_nothing() -> None:
    assert confidence_sequence([]) == (0.0, 1.0)
    low, high = confidence_sequence([0.5] * 400)
    assert 0.48 < low < 0.5 < high < 0.52  # values that do not vary: far narrower than 400 coins
    # One win says little: against a mean of m the mixture has Σ w_q·q/m = ½/m, which is 20 at m = 1/40.
    assert confidence_sequence([1.0]) == (pytest.approx(1 / 40, abs=1e-5), 1.0)


def test_length_controlled_win_rate_by_counting() -> None:
    """Lengths differ by ±1 only, so each side has a logit of its own, and θ is halfway between the two: of 90 wins in
    100 when longer and 60 in 100 when shorter, (ln 9 + ln 1.5)/2 = 1.3013."""
    shares = [1.0] * 90 + [0.0] * 10 + [1.0] * 60 + [0.0] * 40
    found, (low, high), slope = length_controlled(shares, [1] * 100 + [-1] * 100, range(200))
    theta = (LN9 + math.log(1.5)) / 2
    assert found == pytest.approx(1 / (1 + math.exp(-theta)), abs=2e-3)
    assert slope == pytest.approx((LN9 - math.log(1.5)) / 2 / math.tanh(1), abs=0.01)
    # Var θ = (1/(100·.9·.1) + 1/(100·.6·.4))/4
    half = 1.96 * math.sqrt((1 / 9 + 1 / 24) / 4)
    assert (low, high) == pytest.approx([1 / (1 + math.exp(-theta - s * half)) for s in (-1, 1)], abs=3e-3)
    assert length_controlled([1.0] * 5, [3] * 5, range(5))[0] < 1.0


def test_a_longer_side_that_wins_by_its_length_alone_wins_half_at_equal_length() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(1.0, 1.0, 3000)  # mostly longer
    shares = (rng.random(3000) < 1 / (1 + np.exp(-2 * np.tanh(d / math.sqrt(2))))).astype(float)
    found, (low, high), _ = length_controlled(shares, d, range(3000))
    assert shares.mean() > 0.65
    assert low < 0.5 < high and high - low < 0.12 and found == pytest.approx(0.5, abs=0.05)


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    """By brute force on pools of 7, one with equal scores, of which any may be taken."""
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    scores[1] = [0, 1, 1, 0, 2, 2, 1]
    scores[2] = 0.5
    for n in range(1, 8):
        for prompt in range(3):
            each = []
            for chosen in combinations(range(7), n):
                top = max(scores[prompt][i] for i in chosen)
                each.append(np.mean([values[prompt][i] for i in chosen if scores[prompt][i] == top]))
            assert best_of_n(scores, values, n)[prompt] == pytest.approx(np.mean(each), abs=1e-12)


def test_best_of_n_of_its_own_score_by_hand() -> None:
    # Scores 1, 2, 4: pairs have the maxima 2, 4, 4.
    scores = np.array([[4.0, 1.0, 2.0]])
    assert [best_of_n(scores, scores, n)[0] for n in (1, 2, 3)] == pytest.approx([7 / 3, 10 / 3, 4])
