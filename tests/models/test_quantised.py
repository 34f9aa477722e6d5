"""A base in few bits: what the bits stand for is the model, of every role, of the gradient and of what is merged."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from conftest import CPU
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings, Quantise
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.kernels.merge import merge_into
from plaudit.models.kernels.probe import relative_error
from plaudit.models.load import load_model
from plaudit.models.quantised import QuantisedLinear, check_quantise
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens
from plaudit.rollout.inprocess import InProcessEngine

LOGPROBS, SCORES = frozenset({"logprobs"}), frozenset({"scores"})
LORA = LoraSettings(r=4, alpha=8)
Load = Callable[[Path], PreTrainedModel]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra quantise)"
)
BOTH = pytest.mark.parametrize("how", [pytest.param("nf4", marks=needs_bitsandbytes), "int8"])


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def test_int8_by_hand() -> None:
    """Largest 1.0: the smallest power of two that 127 of reach it is 1/64. Largest 100: it is 1."""
    weight = torch.tensor([[1.0, -0.5, 0.01, 0.0234], [100.0, -3.4, 0.6, 0.0]])
    found = QuantisedLinear(linear(weight), "int8")
    assert found.scales.flatten().tolist() == [1 / 64, 1.0]
    assert found.weight.tolist() == [[64, -32, 1, 1], [100, -3, 1, 0]]
    assert found.dequantised().tolist() == [[1.0, -0.5, 1 / 64, 1 / 64], [100.0, -3.0, 1.0, 0.0]]
    assert QuantisedLinear(linear(torch.zeros(2, 4)), "int8").dequantised().abs().max() == 0


@needs_bitsandbytes
def test_nf4_keeps_its_own_numbers() -> None:
    """The quantiles of the paper's appendix E, times a block's largest."""
    table = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    table += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    weight = torch.tensor([table * 8]) * torch.tensor([3.0, 0.25]).repeat_interleave(64)
    torch.testing.assert_close(QuantisedLinear(linear(weight), "nf4").dequantised(), weight, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_plain_one_with_the_weights_that_its_bits_stand_for(how: Quantise, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    own = nn.Linear(48, 32).to(dtype)
    layer, plain = QuantisedLinear(own, how), nn.Linear(48, 32).to(dtype)
    plain.load_state_dict({"weight": layer.dequantised(), "bias": own.bias})
    error = (plain.weight.float() - own.weight.float()).norm() / own.weight.float().norm()
    assert error < (0.12 if how == "nf4" else 0.01)
    assert layer.weight.numel() * layer.weight.element_size() == 48 * 32 // (2 if how == "nf4" else 1)
    assert torch.equal(QuantisedLinear(plain, how).dequantised(), plain.weight), "quantised twice it is the same"
    found, expected = (torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours = layer(found.requires_grad_())
    theirs = plain(expected.requires_grad_())
    (ours * ours.detach()).sum().backward(), (theirs * theirs.detach()).sum().backward()
    assert torch.equal(ours, theirs) and torch.equal(found.grad, expected.grad)
    assert not any(tensor.shape == plain.weight.shape for tensor in kept), "a plain weight waits for the backward pass"


def dequantised(folder: Path, how: Quantise, load: Load) -> PreTrainedModel:
    """The plain model whose weights are those that the bits stand for."""
    model, bits = load(folder), load_model(str(folder), torch.float32, CPU, how)
    layers = {f"{name}.weight": m.dequantised() for name, m in bits.named_modules() if isinstance(m, QuantisedLinear)}
    assert len(layers) == 14, "seven layers in each of two blocks; neither embedding nor head"
    merge_into(model, iter(layers.items()))
    return model


@BOTH
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_every_role_is_that_of_the_dequantised_model(
    how: Quantise,
    packs: bool,
    tiny_model: Callable[..., Path],
    load: Load,
    stirred: Callable[..., Roles],
    ragged: Tokens,
    tmp_path: Path,
) -> None:
    folder = tiny_model()
    stirred(load(folder), seed=1, trained="reward").save_adapter(tmp_path / "reward")
    found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for base in (load_model(str(folder), torch.float32, CPU, how), dequantised(folder, how, load)):
        roles = stirred(base, seed=2, trained="policy", reward=[tmp_path / "reward"], critic=LORA)
        roles.score_heads[0].weight.data = torch.linspace(-1, 1, 32)
        roles.packs = packs and prepare_attention(base).kind == "shared"
        said = {
            "policy": roles(ragged, "policy", LOGPROBS).logprobs_BT,
            "critic": roles(ragged, "critic", frozenset({"values"})).values_BT,
            "reference": roles(ragged, "reference", LOGPROBS).logprobs_BT,
            "reward": roles(ragged, "reward", SCORES).scores_BM,
        }
        said["critic"].square().sum().backward()
        roles(ragged, "policy", LOGPROBS).logprobs_BT.sum().backward()
        found.append((said, {name: p.grad for name, p in roles.trainable().items() if p.grad is not None}))
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert relative_error(ours[name], theirs[name]) < 1e-5, name


@BOTH
def test_adapters_on_adapters_are_merged_into_what_the_bits_stand_for(
    how: Quantise,
    tiny_model: Callable[..., Path],
    load: Load,
    stirred: Callable[..., Roles],
    ragged: Tokens,
    tmp_path: Path,
) -> None:
    """Reference, policy and sampler beside plain models; an adapter that leaves layers out leaves them quantised."""
    folder, few = tiny_model(), LoraSettings(r=2, alpha=8, target_modules=["q_proj", "down_proj"])

    def bits() -> PreTrainedModel:
        return load_model(str(folder), torch.float32, CPU, how)

    sft = stirred(bits(), seed=1, trained="policy", lora=few)
    sft.save_adapter(tmp_path / "sft")
    after_sft = load(folder)
    merge_into(after_sft, sft.merged_weights("policy", None))
    expected = plain_logprobs(after_sft, ragged, 1.0)
    torch.testing.assert_close(sft(ragged, "policy", LOGPROBS).logprobs_BT.detach(), expected, rtol=0, atol=1e-5)

    roles = stirred(bits(), seed=2, trained="policy", lora=LORA, under=tmp_path / "sft")
    assert all(".policy." in name or "value_head" in name for name in roles.trainable())
    assert any(".sft." in name for name, _ in roles.base_tensors())
    reference = roles(ragged, "reference", LOGPROBS).logprobs_BT
    torch.testing.assert_close(reference, expected, rtol=0, atol=1e-5)
    policy = roles(ragged, "policy", LOGPROBS).logprobs_BT.detach()
    assert (policy - expected).abs().max() > 1e-2
    engine = InProcessEngine(load(folder), eos_id=2)
    engine.load_weights(roles.merged_weights("policy", None))
    torch.testing.assert_close(plain_logprobs(engine.model, ragged, 1.0), policy, rtol=0, atol=1e-5)


def test_without_bitsandbytes_nf4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quantise=nf4 needs bitsandbytes: pip install 'plaudit\[quantise\]'"):
        check_quantise("nf4")
    check_quantise("int8")


def test_a_model_without_plain_linear_layers_is_refused(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"quantise=int8: .* has no plain linear layer"):
        load_model(str(tiny_model("gpt2")), torch.float32, CPU, "int8")
