"""Symptoms from rows that are set by hand: each is named beyond its limit and not before it."""

from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import UserError
from plaudit.guard import doctor
from plaudit.guard import symptoms as health
from plaudit.guard.symptoms import Finding

# A healthy update, about what the demo shows; the loss is −(0.01 − 0.1·0.3 + 0·1.4).
HEALTHY = {"score": 0.5, "score_std": 1.0, "kl": 2.0, "entropy": 1.4, "length": 20.0, "eos": 0.95}
HEALTHY |= {"explained_variance": 0.4, "sampler_gap_mean": 0.045, "loss": 0.02, "l_clip": 0.01, "l_vf": 0.3}
HEALTHY |= {"approx_kl": 0.003, "clip_fraction": 0.03, "grad_norm": 1.0}


def rows(count: int = 12, **late: Any) -> list[dict[str, float]]:
    """`count` healthy updates, the second half of them with the values `late`."""
    return [{"update": i + 1, **HEALTHY, **(late if i >= count // 2 else {})} for i in range(count)]


def looks(count: int = 6, **late: Any) -> list[dict[str, float]]:
    start = {"score": 0.0, "kl": 1.0, "repeated_trigrams": 0.02, "distinct_bigrams": 0.8}
    return [{"update": 5 * i, **start, **(late if i >= count // 2 else {})} for i in range(count)]


def symptoms(rows: list[Any], looks: list[Any] | None = None, ppo: dict[str, Any] | None = None) -> list[Finding]:
    return health.symptoms(rows, looks or [], ppo or {})


def names(found: list[Any]) -> list[str]:
    return [finding.name for finding in found]


def test_a_healthy_log_has_no_symptom() -> None:
    assert symptoms(rows(), looks()) == []
    assert doctor.latest(rows(), {}) is None and doctor.latest([], {}) is None


@pytest.mark.parametrize(
    ("name", "column", "inside", "beyond"),
    [
        ("negative KL", "kl", -0.49, -0.51),
        ("KL runaway", "kl", 29.9, 30.1),
        ("entropy collapse", "entropy", 0.36, 0.34),
        ("entropy explosion", "entropy", 2.7, 2.9),
        ("replies do not end", "eos", 0.51, 0.49),
        ("length drift", "length", 39.0, 41.0),
        ("length drift", "length", 10.1, 9.9),
        ("score scale", "score_std", 0.051, 0.049),
        ("score scale", "score_std", 4.9, 5.1),
        ("learning rate too high", "clip_fraction", 0.29, 0.31),
        ("learning rate too high", "approx_kl", 0.049, 0.051),
        ("learning rate too high", "grad_norm", 9.9, 10.1),
        ("policy does not move", "approx_kl", 1.1e-7, 0.9e-7),
        ("sampler and trainer drift apart", "sampler_gap_mean", 0.099, 0.101),
    ],
)
def test_a_symptom_is_named_beyond_its_limit_with_its_numbers(
    name: str, column: str, inside: float, beyond: float
) -> None:
    assert symptoms(rows(**{column: inside})) == []
    (found,) = symptoms(rows(**{column: beyond}))
    assert found.name == name and found.level == "symptom" and "ppo." in found.change + "ppo."
    assert f"{beyond:.3g}" in found.evidence and "updates 10 to 12" in found.evidence
    line = doctor.latest(rows(**{column: beyond}), {})
    assert line is not None and line.startswith(name)


def test_a_single_odd_update_is_no_symptom() -> None:
    odd = rows()
    odd[-1] |= {"eos": 0.0, "clip_fraction": 0.4}
    assert symptoms(odd) == []


def test_a_critic_has_ten_updates_to_explain_something() -> None:
    assert symptoms(rows(18, explained_variance=0.0)) == []
    assert names(symptoms(rows(20, explained_variance=0.0))) == ["dead critic"]
    assert names(symptoms(rows(20, explained_variance=-3.0))) == ["dead critic"]
    last = rows(20, explained_variance=0.0)
    last[-1]["explained_variance"] = 0.01
    assert symptoms(last) == []


def test_a_clip_that_never_binds_is_said_after_ten_updates() -> None:
    assert symptoms(rows(18, clip_fraction=0.0)) == []
    assert names(symptoms(rows(20, clip_fraction=0.0))) == ["clip fraction zero"]
    one_step = {"epochs": 1, "batch_size": 8, "minibatch_size": 8}
    assert symptoms(rows(20, clip_fraction=0.0, approx_kl=0.0), None, one_step) == []
    assert names(symptoms(rows(20, clip_fraction=0.0), None, {**one_step, "minibatch_size": 4})) == [
        "clip fraction zero"
    ]


@pytest.mark.parametrize(
    ("settings", "column", "value"),
    [
        ({"watch": {"max_kl": 60}}, "kl", 50.0),
        ({"watch": {"min_entropy": 0.1}}, "entropy", 0.3),
        ({"watch": {"max_length_change": 3}}, "length", 50.0),
        ({"watch": {"max_length_change": 3}}, "length", 8.0),
        ({"missing_eos": "none"}, "eos", 0.0),
        ({"max_grad_norm": 5}, "grad_norm", 40.0),
        ({"epochs": 1}, "approx_kl", 0.0),
        ({"critic_warmup": 12}, "approx_kl", 0.0),
    ],
)
def test_the_recipe_moves_or_lifts_a_limit(settings: dict[str, Any], column: str, value: float) -> None:
    found = rows(**{column: value})
    assert symptoms(found) and not symptoms(found, ppo=settings)
    assert doctor.latest(found, {}) and doctor.latest(found, settings) is None


def test_replies_that_never_ended_ask_for_another_setting() -> None:
    cut = [{**row, "eos": 0.1} for row in rows()]
    assert "max_new_tokens" in symptoms(cut)[0].change and "SFT" in symptoms(cut)[0].says
    assert "missing_eos_penalty" in symptoms(rows(eos=0.1))[0].change


def test_the_sign_of_each_part_of_the_loss_by_hand() -> None:
    """L_CLIP 0.01, L_VF 0.3, S 1.4, c1 = 0.1, c2 = 0.02: −(0.01 − 0.03 + 0.028) = −0.008; −S: 0.048; +L_VF: −0.068."""
    settings = {"value_coef": 0.1, "entropy_coef": 0.02}
    for loss, found in ((-0.008, []), (0.048, ["entropy bonus sign"]), (-0.068, ["value loss sign"])):
        assert names(symptoms(rows(loss=loss), ppo=settings)) == found
    # The entropy of the log is that of the batch before the update: what it lost since is no wrong sign.
    assert symptoms(rows(loss=-0.005), ppo=settings) == []
    assert symptoms(rows(loss=0.048), ppo={**settings, "ptx_coef": 0.1}) == []
    assert symptoms(rows(loss=0.048), ppo={**settings, "kl_penalty": "loss"}) == []


def test_looks_tell_of_repetition_a_falling_score_and_a_budget_that_is_spent() -> None:
    assert names(symptoms(rows(), looks(repeated_trigrams=0.11))) == ["repeated text"]
    assert symptoms(rows(), looks(repeated_trigrams=0.09)) == []
    assert names(symptoms(rows(), looks(score=-0.6))) == ["score falls"]
    assert symptoms(rows(), looks(score=-0.4)) == []
    assert names(symptoms(rows(), looks(kl=10.1))) == ["KL over its budget"]
    assert symptoms(rows(), looks(kl=10.1), {"kl_budget": 11}) == []
    assert symptoms(rows(), looks(kl=10.1, held_out_score=0.0)) == []  # which decides what is kept, without a bound
    for settings in ({"kl_budget": 10}, {"keep_by": "score"}):
        assert names(symptoms(rows(), looks(kl=10.1, held_out_score=0.0), settings)) == ["KL over its budget"]
    assert names(symptoms(rows(), looks(distinct_bigrams=0.47))) == ["replies alike"]
    assert symptoms(rows(), looks(distinct_bigrams=0.49)) == []


@pytest.mark.parametrize(
    ("settings", "column", "value"),
    [
        ({"max_repetition": 10}, "repeated_trigrams", 0.15),
        ({"min_variety": 0.3}, "distinct_bigrams", 0.3),
        ({"patience": 5}, "distinct_bigrams", 0.35),
    ],
)
def test_what_the_watch_is_set_to_is_what_the_doctor_goes_by_at_the_looks(
    settings: dict[str, float], column: str, value: float
) -> None:
    """A patience of 5 of the six looks takes two early ones into the mean: (2·0.8 + 3·0.35)/5 = 0.53 of 0.8."""
    found = looks(**{column: value})
    assert symptoms(rows(), found) and not symptoms(rows(), found, {"watch": settings})


def test_settings_of_the_watch_that_another_version_had_do_not_stop_the_doctor() -> None:
    assert symptoms(rows(), looks(), {"watch": {"patience": 3, "tolerance": 2.0}}) == []


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("entropy", 0.3, "entropy collapse"),
        ("length", 50.0, "length drift"),
        ("length", 9.0, "length drift"),
        ("kl", 31.0, "KL runaway"),
    ],
)
def test_what_stops_a_run_at_its_looks_is_found_there_and_told_once(column: str, value: float, name: str) -> None:
    early = {"entropy": 1.4, "length": 20.0, "held_out_score": 0.0}  # so that the budget is no matter
    found = [early | row for row in looks(**{column: value})]
    assert names(symptoms(rows(), found)) == [name]
    assert names(symptoms(rows(**{column: value}), found)) == [name]


def test_a_single_rollout_whose_kl_lies_four_standard_errors_below_0_is_enough() -> None:
    """−0.3 ± 0.05 nats a reply is no chance, −0.3 ± 0.08 may be; a mean of −0.04 is nothing, however sure."""
    for kl, error, found in ((-0.3, 0.05, ["negative KL"]), (-0.3, 0.08, []), (-0.04, 0.001, [])):
        measured = rows()
        measured[2] |= {"kl": kl, "kl_se": error}
        assert names(symptoms(measured)) == found
    both = [row | {"kl": -0.6, "kl_se": 0.05} for row in rows()]
    assert names(symptoms(both)) == ["negative KL"]


def test_repeated_text_is_seen_in_the_stored_rollouts_too_and_told_once() -> None:
    """Some updates' rollouts are measured: shares 0.02, then 0.15, 0.12 and 0.12."""
    measured = rows()
    for place, share in ((0, 0.02), (3, 0.15), (7, 0.12), (11, 0.12)):
        measured[place]["repeated_trigrams"] = share
    (found,) = symptoms(measured)
    assert found.name == "repeated text" and "0.15, 0.12, 0.12 in updates 4 to 12, first 0.02" in found.evidence
    assert names(symptoms(measured, looks(repeated_trigrams=0.2))) == ["repeated text"]
    assert symptoms(measured, [], {"watch": {"max_repetition": 10}}) == []


def test_the_watch_speaks_through_the_doctor_also_when_it_may_not_stop_the_run() -> None:
    found = [{"update": i, "score": float(i), "held_out_score": -float(i), "kl": 1.0} for i in range(5)]
    assert names(symptoms(rows(), found, {"watch": {"enabled": False}})) == ["reward hacking"]
    assert symptoms(rows(), found, {"watch": {"patience": 5}}) == []


def test_columns_that_are_absent_are_not_looked_at() -> None:
    assert symptoms([{"update": i} for i in range(20)]) == []


def test_a_folder_without_a_run_or_without_updates_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        doctor.examine(tmp_path)
    (tmp_path / "recipe.yaml").write_text("ppo: {}\n")
    with pytest.raises(UserError, match="PPO has not finished an update"):
        doctor.examine(tmp_path)
