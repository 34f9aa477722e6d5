"""Fused adapters and norms against PEFT and transformers: the same numbers and gradients, and only where they fit."""

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from plaudit.models.kernels import fused
from plaudit.models.kernels.fused import fuse

IDS = torch.randint(300, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rest of the tests is run without them."""
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)


def model_of(dtype: torch.dtype = torch.float32, mlp_bias: bool = False, **lora: object) -> PeftModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=mlp_bias,
        initializer_range=0.3,
    )
    base: PreTrainedModel = LlamaForCausalLM(config).to(dtype)
    lora.setdefault("target_modules", "all-linear")
    settings = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **lora)
    model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def states_and_gradients(model: PeftModel) -> dict[str, Tensor]:
    model.zero_grad()
    hidden = model.get_base_model().model(input_ids=IDS, use_cache=False).last_hidden_state
    (hidden.float() * torch.linspace(-1, 1, 32)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), **gradients}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        gap, size = (found[name].float() - expected[name].float()).norm(), expected[name].float().norm()
        assert gap <= bound * size, (name, gap, size)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the fused operations were used."""
    used: list[str] = []
    for name in ("_Lora", "_RmsNorm", "_GatedMlp"):
        plain = getattr(fused, name).apply
        monkeypatch.setattr(
            getattr(fused, name), "apply", lambda *given, n=name, p=plain: (used.append(n), p(*given))[1]
        )
    return used


def test_states_and_gradients_equal_the_libraries(calls: list[str]) -> None:
    model = model_of()
    expected = states_and_gradients(model)
    names = [name for name, _ in model.named_parameters()]
    fuse(model)
    calls.clear()
    close(states_and_gradients(model), expected, 1e-5)
    # Of each of two layers q, k and v together, and one other; the three of the MLP.
    assert [calls.count(name) for name in ("_Lora", "_RmsNorm", "_GatedMlp")] == [4, 5, 2]
    assert [name for name, _ in model.named_parameters()] == names


def test_in_bfloat16_they_are_as_near_the_truth_as_the_libraries() -> None:
    """The truth is float32's with the same, rounded weights; both roundings are a few per cent away from it."""
    model = model_of(torch.bfloat16)
    plain = states_and_gradients(model)
    truth = states_and_gradients(copy.deepcopy(model).float())
    fuse(model)
    fast = states_and_gradients(model)
    errors = {
        name: sum((found[key].float() - truth[key]).norm() / truth[key].norm() for key in truth) / len(truth)
        for name, found in (("plain", plain), ("fast", fast))
    }
    assert errors["fast"] < 1.1 * errors["plain"] < 0.1
    assert {tensor.dtype for tensor in fast.values()} == {torch.bfloat16}


@pytest.mark.row(31)
@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_keeps_a_small_adapter(bias: bool) -> None:
    """Kept: ⟨y − Wx, δ⟩/⟨δ, δ⟩ with δ = s·BAx and both in float32; 1 where y is rounded once, without a bend, and half
    of it or less where W·x is rounded first, of whose steps δ is a small part. The same of the gradient of x."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(576, 576, bias=bias, dtype=torch.bfloat16))
    model = get_peft_model(layers, LoraConfig(r=16, target_modules=["0"]), autocast_adapter_dtype=False)
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b, std=2e-4)
    x, g = (torch.randn(64, 576).bfloat16() for _ in range(2))

    def kept() -> tuple[float, float]:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (slope,) = torch.autograd.grad(y, leaf, g)
        weight, low = layer.get_base_layer().weight.float(), layer.scaling["default"] * b.float() @ a.float()
        offset = layer.get_base_layer().bias.float() if bias else torch.zeros(())
        pairs = (
            (y - (x.float() @ weight.T + offset), x.float() @ low.T),
            (slope - g.float() @ weight, g.float() @ low),
        )
        forward, backward = (((found * delta).sum() / delta.square().sum()).item() for found, delta in pairs)
        return forward, backward

    with_peft, as_peft = kept(), copy.deepcopy(model)
    fuse(model)
    assert max(with_peft) < 0.8
    assert kept() == pytest.approx((1.0, 1.0), abs=0.1)
    fuse(as_peft, base_first=True)
    layer = as_peft.base_model.model[0]
    assert kept()[0] == pytest.approx(with_peft[0], abs=0.05)


def test_without_adapters_and_with_another_one() -> None:
    model = model_of()
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]), autocast_adapter_dtype=False)
    plain = {"default": states_and_gradients(model)}
    with model.disable_adapter():
        plain["none"] = {"hidden": model.get_base_model().model(input_ids=IDS).last_hidden_state.detach()}
    model.set_adapter("other")
    plain["other"] = states_and_gradients(model)
    fuse(model)
    close(states_and_gradients(model), plain["other"], 1e-5)
    model.set_adapter("default")
    close(states_and_gradients(model), plain["default"], 1e-5)
    with model.disable_adapter():
        found = model.get_base_model().model(input_ids=IDS).last_hidden_state.detach()
    torch.testing.assert_close(found, plain["none"]["hidden"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("base_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit_of_a_layer_with_a_bias(dtype: torch.dtype, base_first: bool) -> None:
    """Qwen 2's q, k and v have one; a library adds it before it rounds, and of 896 float32 products to the first."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: nn.Linear(896, 64, dtype=dtype) for name in ("q_proj", "k_proj", "other")})
    settings = LoraConfig(r=4, target_modules=["q_proj", "k_proj"])
    model = get_peft_model(layers, settings, autocast_adapter_dtype=False)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["k_proj"]), autocast_adapter_dtype=False)
    plain, x = copy.deepcopy(model), torch.randn(3, 20, 896, dtype=dtype)

    def read(one: PeftModel) -> list[Tensor]:
        return [one.base_model.model[name](x) for name in layers]

    library = [nn.functional.linear(x, layers[name].weight, layers[name].bias) for name in layers]
    fuse(model, base_first=base_first)
    fresh = read(model)
    model.set_adapter("second")  # of which one layer has nothing
    second = read(model)
    with model.disable_adapter():
        reference = read(model)
    for found in (reference, second):
        assert all(map(torch.equal, found, fresh))
    torch.testing.assert_close(fresh, library, rtol=2e-2, atol=1e-2)
    fuse(plain, plain_base=True)
    with plain.disable_adapter():
        assert all(map(torch.equal, read(plain), library))


@pytest.mark.parametrize(
    ("lora", "count"),
    [
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 6}}, 4),  # another rank, the same scale
        ({"alpha_pattern": {"k_proj": 1, "up_proj": 5}}, 14),  # another scale: everyone alone
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, 4),
    ],
    ids=["ranks", "scales", "some"],
)
def test_siblings_that_are_not_alike(lora: dict[str, object], count: int, calls: list[str]) -> None:
    model = model_of(**lora)
    expected = states_and_gradients(model)
    fuse(model)
    calls.clear()
    close(states_and_gradients(model), expected, 1e-5)
    assert calls.count("_Lora") == count


@pytest.mark.parametrize(
    "lora", [{"lora_bias": True}, {"use_dora": True}, {"lora_dropout": 0.5}], ids=["bias", "dora", "dropout"]
)
def test_what_is_no_plain_lora_is_left_to_peft(lora: dict[str, object], calls: list[str]) -> None:
    model = model_of(**lora)
    fuse(model)
    model.train()
    calls.clear()
    states_and_gradients(model)
    assert "_Lora" not in calls and "_GatedMlp" not in calls


def test_adapters_in_another_format_are_left_to_peft(calls: list[str]) -> None:
    model = model_of(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    fuse(model)
    states_and_gradients(model)
    assert "_Lora" not in calls and "_GatedMlp" not in calls


def test_merged_adapters_are_not_added_again(calls: list[str]) -> None:
    model = model_of()
    expected = states_and_gradients(model)["hidden"]
    fuse(model)
    model.merge_adapter()
    calls.clear()
    found = model.get_base_model().model(input_ids=IDS).last_hidden_state.detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "_Lora" not in calls and "_GatedMlp" not in calls


def kept(model: PeftModel) -> int:
    """Bytes of what a pass keeps for its backward pass, the model's own weights not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_base_model().model(input_ids=IDS, use_cache=False).last_hidden_state
    size = sum(found.values())  # while what was kept is alive, and no address is used twice
    del hidden
    return size


@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mlp_in_one_step_keeps_half_as_much_and_gives_the_same_bits(
    dtype: torch.dtype, mlp_bias: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(dtype, mlp_bias=mlp_bias)
    with monkeypatch.context() as without:
        without.setattr(fused, "_is_gated_mlp", lambda module: False)
        apart = copy.deepcopy(model)
        fuse(apart)
    fuse(model)
    expected = states_and_gradients(apart)
    assert "_GatedMlp" not in calls
    found = states_and_gradients(model)
    assert calls.count("_GatedMlp") == 2
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Of 48 inner features SiLU(gate(x)) and what down reads: two numbers a feature, layer and token.
    assert kept(apart) - kept(model) == 2 * 48 * 2 * IDS.numel() * dtype.itemsize


class Doubled(LlamaMLP):
    """What no name tells."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Limited(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-7, 7))


@pytest.mark.parametrize(("kind", "act"), [(Doubled, "silu"), (Limited, "silu"), (LlamaMLP, "gelu")])
def test_other_mlps_are_left_alone(kind: type[LlamaMLP], act: str, calls: list[str]) -> None:
    mlp = kind(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, hidden_act=act))
    layers = ["gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(mlp, LoraConfig(r=2, target_modules=layers), autocast_adapter_dtype=False)
    fuse(model)
    model(torch.randn(3, 8)).sum().backward()
    assert "_GatedMlp" not in calls and "_Lora" in calls


def test_a_norm_that_learns_again_gets_its_gradient() -> None:
    norm = LlamaRMSNorm(8)
    norm.weight.requires_grad_(False)
    fuse(norm)
    norm.weight.requires_grad_(True)
    norm(torch.randn(3, 8)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("norm", [GemmaRMSNorm(8), nn.LayerNorm(8), nn.RMSNorm(8)], ids=["gemma", "layer", "torch"])
def test_other_norms_are_left_alone(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    fuse(norm)
    assert "forward" not in vars(norm)


def test_plain_paths_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_PLAIN", "1")
    model = model_of()
    fuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_roles_are_fused(
    tiny_model: Callable[..., Path], load: Callable[[Path], PreTrainedModel], stirred: Callable[..., nn.Module]
) -> None:
    roles = stirred(load(tiny_model("llama")), trained="policy")
    assert sum("forward" in vars(module) for module in roles.modules()) > 14


def test_passes_of_two_threads_do_not_mix() -> None:
    """Siblings fetch what the first of them left for their input, never what another thread's left meanwhile."""
    model, inputs = model_of(), [(IDS + shift) % 300 for shift in range(2)]
    fuse(model)

    def states(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state

    expected = [states(ids) for ids in inputs]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(states, inputs * 200))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.allclose(one, expected[place % 2], atol=1e-5) for place, one in enumerate(found))
