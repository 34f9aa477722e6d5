"""Our execution of LoRA layers against PEFT's: the same numbers and gradients."""

from collections.abc import Callable

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from conftest import make_model
from plaudit.models.lora import fuse
from plaudit.models.roles import LoraSettings, Roles
from plaudit.models.tokens import Tokens

LORA = LoraSettings(r=4, alpha=8)
LOGPROBS = frozenset({"logprobs"})


def gradients(roles: Roles, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    out = roles(tokens, "policy", LOGPROBS).logprobs_BT
    out.sum().backward()
    return out.detach(), {name: p.grad for name, p in roles.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_equal_to_peft(architecture: str, stirred: Callable[..., Roles], ragged: Tokens) -> None:
    """Values and gradients in float32; the reference stays the base; GPT-2's layers stay PEFT's."""
    plain, ours = (
        stirred(make_model(architecture, 340), trained="policy", lora=LORA, fused=fused) for fused in (False, True)
    )
    expected, found = gradients(plain, ragged), gradients(ours, ragged)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[1][name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)
    reference = [roles(ragged, "reference", LOGPROBS).logprobs_BT for roles in (plain, ours)]
    assert torch.equal(*reference)
    layers = [module for module in ours.modules() if isinstance(module, LoraLayer)]
    assert fuse(layers) == (0 if architecture == "gpt2" else len(layers))


def test_in_bfloat16_it_is_as_near_to_float32_as_peft(stirred: Callable[..., Roles], ragged: Tokens) -> None:
    """A and B are rounded for the pass: the error may not grow beyond what bfloat16 costs anyway."""
    exact = gradients(stirred(make_model("llama", 340), trained="policy", lora=LORA), ragged)
    errors = []
    for fused in (False, True):
        low = make_model("llama", 340).to(torch.bfloat16)
        logprobs, found = gradients(stirred(low, trained="policy", lora=LORA, fused=fused), ragged)
        gaps = [(found[name] - gradient).norm() / gradient.norm() for name, gradient in exact[1].items()]
        errors.append(((logprobs - exact[0]).norm().item(), max(gaps).item()))
    (peft_value, peft_gradient), (our_value, our_gradient) = errors
    assert our_value < 2 * peft_value
    assert our_gradient < 2 * peft_gradient
