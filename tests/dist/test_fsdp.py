"""The root module under FSDP2 on two gloo processes, and SFT on a base that these hold together: equal to what one
process that holds it all makes of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sharded
import torch
import two_ranks
from safetensors.torch import load_file
from torch import Tensor

from conftest import command
from plaudit.run.metrics import read_metrics

TOLERANCE = 1e-5
Both = tuple[dict[str, Tensor], list[dict[str, Tensor]]]


# Three micro-batches a step for two ranks: one of them passes a second time for nothing.
UNEVEN = {"epochs": 1, "batch_size": 6, "micro_batch_size": 2, "learning_rate": 2e-2, "samples": 0}


@pytest.fixture(scope="module")
def home(trained: Path, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of roles and of SFT, and what the two ranks do."""
    home = tmp_path_factory.mktemp("sharded")
    recipe = write_recipe(home, sft=UNEVEN, folder=str(home / "one"))
    (home / "run").symlink_to(trained)
    sharded.compute(home / "run", home)
    (home / "sharded-0.safetensors").rename(home / "alone.safetensors")
    assert command("sft", recipe) == 0
    for code, printed in two_ranks.pair("sharded", home):
        assert code == 0, printed
    return home


@pytest.fixture(scope="module")
def both(home: Path) -> Both:
    """What the unwrapped module computes, and what the two ranks do."""
    return load_file(home / "alone.safetensors"), [load_file(home / f"sharded-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("rank", range(2))
def test_fsdp2_changes_no_role_no_gradient_and_no_step(rank: int, both: Both) -> None:
    alone, ranks = both
    assert ranks[rank].keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(ranks[rank][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_every_role_and_everything_that_learns_is_compared(both: Both) -> None:
    names = set(both[0])
    outputs = {
        "reference.logprobs_BT",
        "reference.entropy_BT",
        "reward.scores_BM",
        "critic.values_BT",
        "critic.last_values_B",
        "policy.logprobs_BT",
        "policy.entropy_BT",
        "policy.loss",
    }
    assert outputs <= names
    assert all(both[0][name].abs().max() > 0 for name in outputs)
    gradients = {name.removeprefix("gradient.") for name in names if name.startswith("gradient.")}
    assert {"value_head.weight", "value_head.bias"} < gradients
    assert any(".policy." in name for name in gradients) and any(".critic." in name for name in gradients)
    assert not any(".reward." in name or "score_heads" in name for name in gradients)
    assert all(both[0][f"gradient.{name}"].abs().max() > 0 for name in gradients)


def test_sft_on_a_base_that_two_ranks_hold_leaves_the_numbers_of_one(home: Path) -> None:
    """Losses, adapter and merged model; the checks of the frozen base have passed, on both ranks."""
    one, two = home / "one/sft", home / "two/sft"
    rows, others = read_metrics(one / "metrics.jsonl"), read_metrics(two / "metrics.jsonl")
    assert len(rows) == len(others) == 5
    for row, other in zip(rows, others, strict=True):
        by_kind, other_by_kind = row.pop("eval_loss_by_kind", {}), other.pop("eval_loss_by_kind", {})
        assert other == pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE)
        assert other_by_kind == pytest.approx(by_kind, rel=TOLERANCE, abs=TOLERANCE)
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        expected = load_file(one / name)
        found = load_file(two / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{name}, {key}")
    assert {file.name for file in (one / "model").iterdir()} == {file.name for file in (two / "model").iterdir()}
    summaries = [json.loads((part / "summary.json").read_text()) for part in (one, two)]
    assert summaries[1]["kept_step"] == summaries[0]["kept_step"]


def test_no_parameter_is_without_a_dimension(trained: Path) -> None:
    """FSDP2 of torch 2.13: "fully_shard doesn't support scalar parameters"."""
    assert all(parameter.dim() > 0 for parameter in sharded.build(trained).parameters())
