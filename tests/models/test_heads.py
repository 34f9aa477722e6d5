"""The scalar heads and the reward model's contract: rows 21 and 26."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plaudit.errors import UserError
from plaudit.models.heads import HEAD, ScalarHead, load_head, save_head
from plaudit.rewards.contract import CONTRACT, RewardContract

CONTRACTED = RewardContract(
    mean=(0.5,), std=(2.0,), eos_id=2, system="Be kind.", template_sha256="abc", golden=((1.5,), (-2.0,))
)


def test_head_is_float32_whatever_the_trunk() -> None:
    head = ScalarHead(4, bias=True)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        head.bias.fill_(0.5)
    out = head(torch.ones(2, 3, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert out.tolist() == [[10.5] * 3] * 2


def drawn(bias: bool) -> ScalarHead:
    head = ScalarHead(8, bias=bias)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


def test_initial_weights() -> None:
    assert not ScalarHead(64, bias=True).weight.any()
    assert ScalarHead(64, bias=False, to_load=True).weight.isnan().all()
    assert ScalarHead(4, bias=False).bias is None


@pytest.mark.row(26)
def test_row_26_round_trip(tmp_path: Path) -> None:
    head = drawn(bias=True)
    save_head(head, tmp_path / "new")
    other = ScalarHead(8, bias=True)
    load_head(other, tmp_path / "new")
    assert torch.equal(head.weight, other.weight)
    assert torch.equal(head.bias, other.bias)


@pytest.mark.row(26)
def test_row_26_a_missing_head_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"head\.safetensors is missing"):
        load_head(ScalarHead(8, bias=False), tmp_path)


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(9)},
        {"weight": torch.zeros(8), "bias": torch.zeros(())},
        {"score": torch.zeros(8)},
    ],
    ids=["wider", "with a bias", "other name"],
)
def test_row_26_a_head_of_another_model_is_an_error(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / HEAD)
    head = drawn(bias=False)
    before = head.weight.clone()
    with pytest.raises(UserError, match="belongs to another model"):
        load_head(head, tmp_path)
    assert torch.equal(head.weight, before)


def test_contract_round_trip(tmp_path: Path) -> None:
    CONTRACTED.save(tmp_path)
    assert RewardContract.load(tmp_path) == CONTRACTED
    stored = json.loads((tmp_path / CONTRACT).read_text())
    assert stored.pop("sha256")
    assert stored == {**asdict(CONTRACTED), "mean": [0.5], "std": [2.0], "golden": [[1.5], [-2.0]]}


def test_each_member_is_normalised_by_its_own_moments() -> None:
    """(1 − 0.5)/2 = 0.25 and (4 − 2)/4 = 0.5: their mean is 0.375."""
    contract = RewardContract((0.5, 2.0), (2.0, 4.0), 2, None, "abc")
    assert contract.normalised(torch.tensor([[1.0, 4.0], [0.5, 2.0]])).tolist() == [0.375, 0.0]
    with pytest.raises(AssertionError):
        contract.normalised(torch.zeros(3, 1))


def test_the_aggregate_is_taken_of_normalised_scores() -> None:
    """The member whose scores are ten times as wide does not win by that: normalised they are 1 and 3."""
    raw_BM = torch.tensor([[1.0, 30.0]])
    for rule, expected in (("min", 1.0), ("mean", 2.0), ("mean_minus_std", 1.5)):
        contract = RewardContract((0.0, 0.0), (1.0, 10.0), 2, None, "abc", aggregate=rule, k=0.5)
        assert contract.normalised(raw_BM).item() == expected
    contract = RewardContract((0.0, 0.0), (1.0, 10.0), 2, None, "abc", aggregate="pessimistic", beta=2.0)
    assert contract.normalised(raw_BM).item() == pytest.approx(-2 * math.log((math.exp(-0.5) + math.exp(-1.5)) / 2))


def test_missing_contract(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="normalisation is unknown"):
        RewardContract.load(tmp_path)


@pytest.mark.row(21)
def test_row_21_the_same_rules_pass() -> None:
    CONTRACTED.check(2, "Be kind.", "abc")


@pytest.mark.row(21)
@pytest.mark.parametrize(
    ("changed", "now"),
    [("eos_id", (3, "Be kind.", "abc")), ("system", (2, None, "abc")), ("template_sha256", (2, "Be kind.", "abd"))],
)
def test_row_21_other_rules_are_refused(changed: str, now: tuple[int, str | None, str]) -> None:
    with pytest.raises(UserError, match=f"was trained with {changed}="):
        CONTRACTED.check(*now)
