"""The root module under FSDP2 on two gloo processes: equal to the unwrapped one."""

from pathlib import Path

import pytest
import sharded
import torch
import two_ranks
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5
Both = tuple[dict[str, Tensor], list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def both(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What the unwrapped module computes, and what the two ranks do."""
    home = tmp_path_factory.mktemp("sharded")
    (home / "run").symlink_to(trained)
    sharded.compute(home / "run", home)
    alone = load_file(home / "sharded-0.safetensors")
    for code, printed in two_ranks.pair("sharded", home):
        assert code == 0, printed
    return alone, [load_file(home / f"sharded-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("rank", range(2))
def test_fsdp2_changes_no_role_no_gradient_and_no_step(rank: int, both: Both) -> None:
    alone, ranks = both
    assert ranks[rank].keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(ranks[rank][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_every_role_and_everything_that_learns_is_compared(both: Both) -> None:
    names = set(both[0])
    outputs = {
        "reference.logprobs_BT", "reference.entropy_BT", "reward.scores_BM", "critic.values_BT",
        "critic.last_values_B", "policy.logprobs_BT", "policy.entropy_BT", "policy.loss",
    }
    assert outputs <= names
    assert all(both[0][name].abs().max() > 0 for name in outputs)
    gradients = {name.removeprefix("gradient.") for name in names if name.startswith("gradient.")}
    assert {"value_head.weight", "value_head.bias"} < gradients
    assert any(".policy." in name for name in gradients) and any(".critic." in name for name in gradients)
    assert not any(".reward." in name or "score_heads" in name for name in gradients)
    assert all(both[0][f"gradient.{name}"].abs().max() > 0 for name in gradients)


def test_no_parameter_is_without_a_dimension(trained: Path) -> None:
    """FSDP2 of torch 2.13: "fully_shard doesn't support scalar parameters"."""
    assert all(parameter.dim() > 0 for parameter in sharded.build(trained).parameters())
