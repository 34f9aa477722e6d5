"""Gradient checkpointing: the gradient of a plain pass, whatever the roles, the layout and the order of the passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from conftest import ARCHITECTURES
from plaudit.errors import UserError
from plaudit.models import recompute
from plaudit.models.config import LoraSettings
from plaudit.models.full import FullReward, raw_scores
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens

Load = Callable[[Path], PreTrainedModel]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every layer that was checkpointed."""
    found: list[int] = []
    own = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: (found.append(1), own(*a, **k))[1])
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() and len(first) > 2
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-6, atol=1e-9, msg=name)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_and_a_critic_of_its_own_in_one_backward_pass(
    architecture: str,
    packs: bool,
    tiny_model: Callable[..., Path],
    load: Load,
    stirred: Callable[..., Roles],
    ragged: Tokens,
    calls: list[int],
) -> None:
    """The critic's pass comes last, so its adapter is the active one when the policy's layers are computed again."""

    def learnt(again: bool) -> dict[str, Tensor]:
        base = load(tiny_model(architecture))
        roles = stirred(base, seed=2, trained="policy", critic=LoraSettings(r=2, alpha=4))
        if packs and prepare_attention(base).kind == "shared":
            roles.packs = True
        if again:
            recompute_activations(base)
        policy = roles(ragged, "policy", frozenset({"logprobs"}))
        critic = roles(ragged, "critic", frozenset({"values"}))
        assert policy.logprobs_BT is not None and critic.values_BT is not None
        (policy.logprobs_BT.sum() + policy.entropy_BT.sum() + critic.values_BT.square().sum()).backward()
        assert not any(module.training for module in roles.modules())
        return gradients(roles)

    plain = learnt(again=False)
    assert not calls
    same(plain, learnt(again=True))
    assert len(calls) == 4, "two layers, two passes"


def test_a_full_reward_model(tiny_model: Callable[..., Path], load: Load, ragged: Tokens, calls: list[int]) -> None:
    def learnt(again: bool) -> dict[str, Tensor]:
        base = load(tiny_model())
        model = FullReward(base, torch.float32, learns=True)
        model.score_heads[0].get_parameter("weight").data = torch.linspace(-1, 1, 32)
        if again:
            recompute_activations(base)
        raw_scores(model, ragged).sum().backward()
        return gradients(model)

    same(learnt(again=False), learnt(again=True))
    assert len(calls) == 2


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_checkpointing=true: Linear has no layers"):
        recompute_activations(torch.nn.Linear(2, 2))
