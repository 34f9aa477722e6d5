"""Constraints of PPO: the multiplier's law on bandits with known answers, the settings, and a run that holds one up."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conftest import tiny_stage
from plaudit.algo.rewards import MOST, Multiplier, move_multiplier
from plaudit.guard.symptoms import symptoms
from plaudit.rewards.config import RewardSource
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.train.config import CheckpointConfig
from plaudit.train.run import Run
from plaudit.view.report.plots import constraint_plots

BETA = 0.5


def second_arm(multiplier: Multiplier) -> float:
    """Two arms, rewards (1, 0), c = (0, 1), KL to the uniform law at β: the best policy plays the second with
    σ((λ/s − 1)/β)."""
    return 1 / (1 + math.exp(-(multiplier.value / multiplier.std - 1) / BETA))


@pytest.mark.parametrize("std", [1.0, 0.5])
def test_a_bandit_ends_at_its_bound_with_the_multiplier_that_theory_says(std: float) -> None:
    """At c ≥ 0.3: σ((λ/s − 1)/β) = 0.3, so λ = s·(1 + β·ln(3/7)) = 0.576351·s."""
    multiplier = Multiplier(bound=0.3, std=std)
    for _ in range(2000):
        multiplier = move_multiplier(multiplier, second_arm(multiplier))
    assert multiplier.value == pytest.approx(0.576351 * std, abs=1e-5)
    assert second_arm(multiplier) == pytest.approx(0.3, abs=1e-5)


def test_a_bandit_whose_bound_holds_by_itself_pays_nothing() -> None:
    """Without a price the second arm is played with σ(−2) = 0.1192, and 0.05 are asked for."""
    multiplier = Multiplier(bound=0.05, std=1.0, value=0.7)
    for _ in range(2000):
        multiplier = move_multiplier(multiplier, second_arm(multiplier))
    assert multiplier.value == 0.0


def test_a_bandit_of_samples_holds_its_bound_on_average() -> None:
    rng, multiplier, played = np.random.default_rng(0), Multiplier(bound=0.3, std=0.5), []
    for _ in range(3000):
        played.append(float(rng.binomial(16, second_arm(multiplier)) / 16))
        multiplier = move_multiplier(multiplier, played[-1])
    assert np.mean(played[500:]) == pytest.approx(0.3, abs=0.01)


def test_a_step_by_hand_and_the_ends() -> None:
    assert move_multiplier(Multiplier(0.6, 0.5, 0.5), 0.4).value == pytest.approx(0.7)
    assert move_multiplier(Multiplier(0.6, 0.5, 0.01), 0.9).value == 0.0
    assert move_multiplier(Multiplier(0.6, 0.001, 9.9), 0.1).value == MOST


@pytest.mark.parametrize(
    ("text", "bound"),
    [("sft", 0.5), ("sft - 0.03", 0.47), ("sft − 0.03", 0.47), ("sft+0.1", 0.6), (0.25, 0.25), ("-1", -1)],
)
def test_bounds(text: Any, bound: float) -> None:
    assert RewardSource(function="a:b", at_least=text).bound(0.5) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"at_least": "sft 0.3"}, "at_least='sft 0.3': a number, or sft"),
        ({"at_least": "ppo - 1"}, "a number, or sft"),
        ({"at_least": ""}, "a number, or sft"),
        ({"at_least": "sft", "watch": True}, "exclude each other"),
        ({"of_kind": "safety"}, "would do nothing without at_least"),
        ({"at_least": "sft", "weight": 2.0}, "weight would do nothing"),
        ({"at_least": "sft", "mean": 0.0, "std": 1.0}, "mean, std would do nothing"),
    ],
)
def test_what_would_do_nothing_is_refused(told: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RewardSource(function="a:b", **told)


def test_something_must_pay() -> None:
    with pytest.raises(ValidationError, match="at_least, so nothing pays"):
        PPOConfig(rewards=[{"function": "a:b", "at_least": "sft"}])


REWARDS = """
def short(items):
    return {item["id"]: -float(len(item["completion"])) for item in items}

def letters(items):
    return {item["id"]: float(sum(c.isalpha() for c in item["completion"])) for item in items}
"""


@pytest.fixture
def constrained_run(
    tmp_path: Path, tiny_run: Callable[..., Run], tiny_model: Callable[..., Path]
) -> Callable[..., tuple[Any, Run]]:
    """constrained_run("name") -> PPO's settings and a run: paid for short replies, and letters are held up."""
    import shutil

    (tmp_path / "own.py").write_text(REWARDS, encoding="utf-8")
    paid = {"function": f"{tmp_path / 'own.py'}:short", "mean": -10.0, "std": 5.0}
    held = {"function": f"{tmp_path / 'own.py'}:letters", "at_least": "sft + 4", "of_kind": "domain"}

    def build(name: str, **changes: Any) -> tuple[Any, Run]:
        run = tiny_run(tmp_path / name)
        shutil.copytree(tiny_model(), run.folder.path / "sft/model")
        config, run = tiny_stage("ppo", run, updates=3, batch_size=8, rewards=[paid, held], evaluate_every=3)
        return config, replace(run, **changes)

    return build


def test_a_run_holds_it_up_and_goes_on_with_its_multiplier(
    constrained_run: Callable[..., tuple[Any, Run]], stopped_after_saves: Callable[[Callable[[], Any]], list[int]]
) -> None:
    config, whole = constrained_run("whole")
    ppo.train(config, whole)
    rows = read_metrics(whole.folder.path / "ppo/metrics.jsonl")
    looks = read_metrics(whole.folder.path / "ppo/evaluations.jsonl")
    # The law, from what was logged: the first price is 1, and each follows from the row before it.
    assert rows[0]["multiplier_function_2"] == 1.0
    assert {row["bound_function_2"] for row in rows} == {rows[0]["bound_function_2"]}
    steps = [
        (rows[i + 1]["multiplier_function_2"] - row["multiplier_function_2"])
        / (row["bound_function_2"] - row["constraint_function_2"])
        for i, row in enumerate(rows[:2])
        if rows[i + 1]["multiplier_function_2"] > 0
    ]
    assert steps and all(step == pytest.approx(steps[0], rel=1e-6) and step > 0 for step in steps)
    assert "score_function_2" in rows[0] and "held_out_score" not in looks[0]
    assert looks[0]["constraint_function_2"] == pytest.approx(rows[0]["bound_function_2"] - 4, abs=6)
    assert {row["constraints_met"] for row in looks} <= {0.0, 1.0}
    assert len(constraint_plots(rows, looks, "function_2")) == 2

    config, broken = constrained_run("broken", checkpoints=CheckpointConfig(every_steps=1), resume=True)
    assert len(stopped_after_saves(lambda: ppo.train(config, broken))) >= 3
    for name in ("metrics.jsonl", "evaluations.jsonl", "model/model.safetensors"):
        assert (broken.folder.path / "ppo" / name).read_bytes() == (whole.folder.path / "ppo" / name).read_bytes(), name


def test_the_doctor_tells_a_constraint_that_is_missed() -> None:
    looks = [
        {"update": n, "score": 0.0, "kl": 1.0, "constraint_function": 0.1, "constraints_met": 0.0} for n in range(3)
    ]
    (finding,) = symptoms([], looks, {})
    assert finding.name == "constraint missed" and "constraint_function 0.1, 0.1, 0.1" in finding.evidence
    assert symptoms([], [{**row, "constraints_met": float(row["update"] == 2)} for row in looks], {}) == []
