"""The watch: when it stops a run and when it must not; every number is set by hand."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from plaudit.guard.gaming import gain_se
from plaudit.guard.limits import WatchConfig
from plaudit.guard.watch import verdict

CONFIG = WatchConfig(patience=3)


def rows(held_out: list[float] | None, proxy: list[float], se: float | None = None, **more: list[float]) -> list[Any]:
    """One row an evaluation, every five updates; the first has a standard error of 0, as `gain_se` gives it."""
    found = []
    for i, score in enumerate(proxy):
        row = {"update": 5 * i, "score": score, **{name: values[i] for name, values in more.items()}}
        if held_out is not None:
            row["held_out_score"] = held_out[i]
        if se is not None:
            row |= {"score_gain_se": se if i else 0.0, "held_out_gain_se": se if i else 0.0}
        found.append(row)
    return found


def test_a_held_out_score_that_falls_while_the_proxy_rises_stops_with_the_evidence() -> None:
    found = verdict(rows([0.0, 0.5, 0.3, 0.2, 0.1], [0.0, 1.0, 1.5, 2.0, 2.5]), CONFIG)
    assert found is not None
    for part in ("held-out 0.5 after update 5", "0.3, 0.2, 0.1 after updates 10, 15, 20", "paid 1, then 1.5, 2, 2.5"):
        assert part in found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_waits_for_patience_evaluations_after_the_best(count: int) -> None:
    assert verdict(rows([0.0, 0.5, 0.3, 0.2, 0.1][:count], [0.0, 1.0, 1.5, 2.0, 2.5][:count]), CONFIG) is None


def test_one_evaluation_that_recovers_starts_the_count_again() -> None:
    assert verdict(rows([0.0, 0.5, 0.3, 0.5, 0.1], [0.0, 1.0, 1.5, 2.0, 2.5]), CONFIG) is None


def test_both_falling_is_not_gaming() -> None:
    assert verdict(rows([0.0, 0.5, 0.3, 0.2, 0.1], [0.0, 1.0, 0.9, 0.8, 0.7]), CONFIG) is None


def test_both_rising_goes_on() -> None:
    assert verdict(rows([0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 1.5, 2.0, 2.5]), CONFIG) is None


@pytest.mark.parametrize(("se", "stops"), [(0.05, True), (0.08, False)])
def test_a_fall_within_two_standard_errors_of_the_difference_does_not_count(se: float, stops: bool) -> None:
    """Falls of 0.2 between two rows of standard error s: 2·√2·s is 0.141 for 0.05 and 0.226 for 0.08."""
    found = verdict(rows([0.0, 0.5, 0.3, 0.3, 0.3], [0.0, 1.0, 2.0, 2.0, 2.0], se), CONFIG)
    assert (found is not None) == stops


@pytest.mark.parametrize(("se", "stops"), [(0.05, True), (0.08, False)])
def test_a_rise_of_the_proxy_within_its_noise_does_not_count_either(se: float, stops: bool) -> None:
    found = verdict(rows([0.0, 9.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.2, 1.2, 1.2], se), CONFIG)
    assert (found is not None) == stops


def test_where_the_best_is_the_sft_model_the_error_is_the_paired_one_alone() -> None:
    """Falls of 0.2 with errors of 0.09: 2·0.09 = 0.18, since the first row's error is 0; times √2 it would be 0.25."""
    assert verdict(rows([0.5, 0.3, 0.3, 0.3], [0.0, 1.0, 1.0, 1.0], 0.09), CONFIG) is not None


@pytest.mark.parametrize(("fall", "stops"), [(0.019, False), (0.021, True)])
def test_without_standard_errors_the_smallest_change_decides(fall: float, stops: bool) -> None:
    low = 0.5 - fall
    assert (verdict(rows([0.5, low, low, low], [0.0, 1.0, 1.0, 1.0]), CONFIG) is not None) == stops


def test_patience_is_the_number_of_evaluations() -> None:
    found = rows([0.5, 0.1, 0.1], [0.0, 1.0, 1.0])
    assert verdict(found, CONFIG) is None
    assert verdict(found, WatchConfig(patience=2)) is not None


def test_switched_off_it_says_nothing() -> None:
    found = rows([0.0, 0.5, 0.3, 0.2, 0.1], [0.0, 1.0, 1.5, 2.0, 2.5])
    assert verdict(found, WatchConfig(enabled=False)) is None


def test_rows_before_the_held_out_score_was_there_are_left_out() -> None:
    found = [{"update": 0.0, "score": 0.0}, *rows([0.5, 0.3, 0.2, 0.1], [1.0, 1.5, 2.0, 2.5])]
    assert verdict(found, CONFIG) is not None
    assert verdict(found[:4], CONFIG) is None


CALM = {"kl": [0.0, 5, 6, 7], "length": [20.0] * 4, "entropy": [2.0] * 4}
CALM |= {"repeated_trigrams": [0.1] * 4, "distinct_bigrams": [0.8] * 4}
UNSEEN = [
    ("repeated_trigrams", [0.1, 0.21, 0.3, 0.4], "repeat"),
    ("distinct_bigrams", [0.8, 0.39, 0.3, 0.1], "alike"),
    ("entropy", [2.0, 0.49, 0.3, 0.1], "entropy"),
]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        *UNSEEN,
        ("kl", [0, 31, 40, 55], "KL"),
        ("length", [20, 41, 45, 50], "length"),
        ("length", [20, 9, 8, 7], "length"),
    ],
)
def test_without_a_held_out_score_five_symptoms_stop_it(column: str, values: list[float], says: str) -> None:
    found = verdict(rows(None, [0.0, 1, 2, 3], **{**CALM, column: values}), CONFIG)
    assert found is not None and says in found and "no held-out score" in found
    assert ", ".join(f"{value:.3g}" for value in values[1:]) in found
    calmer = [values[0], values[0], *values[2:]]
    assert verdict(rows(None, [0.0, 1, 2, 3], **{**CALM, column: calmer}), CONFIG) is None


def test_a_calm_run_without_a_held_out_score_goes_on() -> None:
    assert verdict(rows(None, [0.0, 1, 2, 3], **CALM), CONFIG) is None


@pytest.mark.parametrize(("column", "values"), [("kl", [0.0, 99, 99, 99]), ("length", [20.0, 50, 60, 70])])
def test_a_held_out_score_that_holds_speaks_for_distance_and_length(column: str, values: list[float]) -> None:
    assert verdict(rows([0.0, 1, 2, 3], [0.0, 1, 2, 3], **{**CALM, column: values}), CONFIG) is None


@pytest.mark.parametrize(("column", "values", "says"), UNSEEN)
def test_no_score_of_single_replies_speaks_for_what_it_cannot_see(column: str, values: list[float], says: str) -> None:
    """A policy that gives every prompt the same warm sentence can have the best gold score of the whole run."""
    found = verdict(rows([0.0, 1, 2, 3], [0.0, 1, 2, 3], **{**CALM, column: values}), CONFIG)
    assert found is not None and says in found and "does not see that" in found


def test_columns_that_are_absent_are_not_watched() -> None:
    assert verdict(rows(None, [0.0, 1, 2, 3]), CONFIG) is None


def test_few_repeats_never_count_though_they_are_many_times_the_first() -> None:
    """0.09 is nine times 0.01, and still three 3-grams of a reply of thirty-two tokens."""
    assert verdict(rows(None, [0.0] * 4, repeated_trigrams=[0.01, 0.09, 0.09, 0.09]), CONFIG) is None


@pytest.mark.parametrize(
    ("config", "column", "values"),
    [
        ({"max_kl": 60}, "kl", [0.0, 40, 40, 40]),
        ({"max_repetition": 5}, "repeated_trigrams", [0.1, 0.4, 0.4, 0.4]),
        ({"max_length_change": 3}, "length", [20.0, 50, 50, 50]),
        ({"min_entropy": 0.1}, "entropy", [2.0, 0.3, 0.3, 0.3]),
        ({"min_variety": 0.3}, "distinct_bigrams", [0.8, 0.3, 0.3, 0.3]),
    ],
)
def test_every_limit_is_the_settings(config: dict[str, float], column: str, values: list[float]) -> None:
    found = rows(None, [0.0] * 4, **{column: values})
    assert verdict(found, CONFIG) is not None
    assert verdict(found, CONFIG.model_copy(update=config)) is None


def test_the_paired_standard_error_by_hand() -> None:
    """Differences 1, 1, 2: mean 4/3, variance ((1/3)² + (1/3)² + (2/3)²)/2 = 1/3, over three: 1/9."""
    assert gain_se("score", [1, 2, 3], [0, 1, 1]) == {"score_gain_se": pytest.approx(1 / 3, abs=1e-12)}
    assert gain_se("held_out", [5.0, 105.0], [4.0, 104.0]) == {"held_out_gain_se": 0.0}
    assert gain_se("score", [1.0], [0.0]) == {}


def test_unknown_settings_and_nonsense_are_refused() -> None:
    for wrong in ({"patients": 3}, {"patience": 0}, {"max_kl": math.nan}, {"patience": True}, {"min_entropy": 1.0}):
        with pytest.raises(ValidationError):
            WatchConfig(**wrong)
