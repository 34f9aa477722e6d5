"""Random rounding to bfloat16: right on average, exact where nothing is to be rounded, and fixed by its key."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit.models.full import FullPolicy
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding

BF16 = torch.bfloat16
ULP = 2**-7
"""The distance of bfloat16 numbers from 1 to 2."""


def rounded(value: float, count: int = 200_000, key: Rounding | None = None) -> Tensor:
    return (key or Rounding(0, "test"))("w", torch.full((count,), value), BF16).float()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.001, 1 / 8, 0.5, 0.9])
def test_a_sum_goes_to_one_of_its_neighbours_and_is_right_on_average(sign: float, share: float) -> None:
    """200,000 draws: the share of those rounded up has a standard error of at most 0.0011."""
    found = rounded(sign * (1 + share * ULP))
    assert set(found.abs().tolist()) == {1.0, 1 + ULP}
    assert (found.abs() > 1).double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 2e5) ** 0.5)


def test_what_needs_no_rounding_stays_what_it_is() -> None:
    exact = torch.randn(5, 1000).to(BF16)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 2.0**-130]).to(BF16)
    for step in range(20):
        assert torch.equal(Rounding(0, "test", step)("w", exact.float(), BF16), exact)
        assert torch.equal(Rounding(0, "test", step)("w", special.float(), BF16), special)
    assert Rounding(0, "test")("w", torch.tensor([torch.nan]), BF16).isnan().all()


def test_float32_is_not_rounded() -> None:
    sums = torch.randn(100)
    assert torch.equal(Rounding(0, "test")("w", sums.clone(), torch.float32), sums)


def test_the_draws_are_fixed_by_seed_stage_step_and_name() -> None:
    sums = torch.full((1000,), 1 + ULP / 2)

    def draw(seed: int = 0, stage: str = "a", step: int = 0, name: str = "w") -> Tensor:
        return Rounding(seed, stage, step)(name, sums.clone(), BF16)

    assert torch.equal(draw(), draw())
    for other in (draw(seed=1), draw(stage="b"), draw(step=1), draw(name="v")):
        # Two fair coins agree in half of 1,000 throws, with a standard deviation of 16.
        assert abs(int((other == draw()).sum()) - 500) < 100


def test_neighbouring_numbers_are_rounded_independently() -> None:
    up = (rounded(1 + ULP / 2) > 1).double() - 0.5
    for distance in (1, 2, 3, 4, 64, 576):
        assert abs((up[:-distance] * up[distance:]).mean().item()) < 5 * 0.25 / 2e5**0.5


@pytest.mark.row(31)
@pytest.mark.parametrize("size", [1.0, 0.03])
def test_row_31_a_merge_keeps_a_small_adapter(
    size: float, tiny_model: Callable[..., Path], load: Callable[..., PreTrainedModel], stirred: Callable[..., Roles]
) -> None:
    """Share of ΔW that is in the merged weights: ⟨merged − W, ΔW⟩ / ⟨ΔW, ΔW⟩, over all adapted layers."""
    base = load(tiny_model()).to(BF16)
    before = {name: weight.detach().double().clone() for name, weight in base.named_parameters()}
    roles = stirred(base, trained="policy")
    for layer in roles._lora_layers:
        layer.scaling["policy"] *= 0.02 * size
    exact = {}
    for name, layer in roles.peft.named_modules():
        if layer in roles._lora_layers:
            a, b = layer.lora_A["policy"].weight.detach().double(), layer.lora_B["policy"].weight.detach().double()
            exact[f"{name.removeprefix('base_model.model.')}.weight"] = layer.scaling["policy"] * b @ a

    def kept(key: Rounding | None) -> float:
        merged = dict(roles.merged_weights("policy", key))
        assert merged.keys() == exact.keys() and all(weight.dtype == BF16 for weight in merged.values())
        got = {name: weight.double() - before[name] for name, weight in merged.items()}
        return float(sum((got[n] * exact[n]).sum() for n in exact) / sum((exact[n] ** 2).sum() for n in exact))

    shares = [kept(Rounding(0, "test", step)) for step in range(30)]
    assert sum(shares) / 30 == pytest.approx(1, abs=0.01)
    if size < 1:
        assert kept(None) < 0.5, "to the nearest most of it would be lost"


def test_full_fine_tuning_is_rounded_alike(
    tiny_model: Callable[..., Path], load: Callable[..., PreTrainedModel]
) -> None:
    """Its weights are float32, those of its copies bfloat16."""
    base = load(tiny_model()).to(torch.float32)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.fill_(1 + ULP / 4)
    policy = FullPolicy(base, BF16)
    merged = dict(policy.merged_weights("policy", Rounding(0, "test")))
    values = torch.cat([weight.flatten() for weight in merged.values()])
    assert values.dtype == BF16
    share = (values > 1).double().mean().item()
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / values.numel()) ** 0.5)
    assert all((p == 1 + ULP / 4).all() for p in policy.base.parameters()), "what learns is not touched"
