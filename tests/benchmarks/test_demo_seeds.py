"""Which promises of the demo a run keeps, by hand."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "demo_seeds.py"
SUMMARY: dict[str, Any] = {
    "reward": {"accuracy": 0.7, "accuracy_ci": [0.6, 0.8], "length_baseline_accuracy": 0.5},
    "ppo": {"kept_update": 8},
    "seconds": {"sft": 60.0, "ppo": 30.0},
    "evaluate": {
        "gold_sft": 0.0,
        "gold_ppo": 0.3,
        "gold_gain": 0.3,
        "gold_gain_ci": [0.1, 0.5],
        "win_rate": 0.7,
        "win_rate_ci": [0.6, 0.8],
        "kl": 2.0,
        "eos_sft": 1.0,
        "eos_ppo": 1.0,
        "declines_sft": 0.8,
        "declines_ppo": 0.78,
        "length_sft": 20.0,
        "length_ppo": 23.0,
        "ref_nll_sft": 2.0,
        "ref_nll_ppo": 2.2,
    },
}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("demo_seeds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_numbers_of_a_run(script: Any) -> None:
    found = script.numbers(SUMMARY)
    assert (found["ref_nll_ratio"], found["length_ratio"]) == (pytest.approx(1.1), pytest.approx(1.15))
    assert (found["minutes"], found["not_kept"]) == (1.5, [])


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("gold_gain_ci", [0.0, 0.5], "gold gain"),
        ("declines_ppo", 0.76, "declines"),
        ("ref_nll_ppo", 2.31, "reference NLL"),
        ("length_ppo", 24.1, "length"),
        ("length_ppo", 15.9, "length"),
    ],
)
def test_a_promise_that_is_not_kept_is_named(script: Any, key: str, value: Any, named: str) -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["evaluate"][key] = value
    assert script.numbers(summary)["not_kept"] == [named]
