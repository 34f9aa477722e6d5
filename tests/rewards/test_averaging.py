"""Weight averaging of LoRA members: the mean of their updates, exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from conftest import ARCHITECTURES
from plaudit.models.config import LoraSettings
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens
from plaudit.rewards.averaging import average_adapters, average_heads

Load = Callable[[Path], PreTrainedModel]
SCORES = frozenset({"scores"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("members", [2, 3])
def test_the_update_is_the_mean_of_the_members_updates(
    architecture: str,
    members: int,
    tiny_model: Callable[..., Path],
    load: Load,
    stirred: Callable[..., Roles],
    tmp_path: Path,
    ragged: Tokens,
) -> None:
    """W + ΔW of the average against the mean of (W + ΔW_m), layer by layer; alpha/r is not 1 here."""
    base = tiny_model(architecture)
    roles = stirred(load(base), trained="reward", members=members, lora=LoraSettings(r=4, alpha=12))
    folders = [tmp_path / f"{member}" for member in range(members)]
    for member, folder in enumerate(folders):
        roles.save_adapter(folder, member)
    names = ["reward", "reward_1", "reward_2"][:members]
    merged = [dict(roles.merged_weights(name, None)) for name in names]
    average_adapters(folders, tmp_path / "mean")
    mean = Roles(load(base), reward=[tmp_path / "mean"])
    found = dict(mean.merged_weights("reward", None))
    assert found.keys() == merged[0].keys()
    for name, weight in found.items():
        expected = torch.stack([one[name].double() for one in merged]).mean(dim=0)
        assert (merged[0][name] - weight).abs().max() > 1e-3
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)
    # The factors themselves are those of the members, to the bit, whatever their format.
    layer = next(layer for layer in mean._lora_layers)
    assert layer.r["reward"] == 4 * members
    assert layer.scaling["reward"] == pytest.approx(12 / (4 * members))
    # And in place of the first of them.
    average_adapters(folders, folders[0])
    again = dict(Roles(load(base), reward=[folders[0]]).merged_weights("reward", None))
    assert all(torch.equal(again[name], weight) for name, weight in found.items())


def test_the_head_is_the_mean_of_the_heads() -> None:
    heads = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -6.0])]
    assert average_heads(heads).tolist() == [2.0, -2.0]
