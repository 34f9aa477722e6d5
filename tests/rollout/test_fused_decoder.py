"""The fused decoder against transformers' own step: who gets one, and that it computes the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from plaudit.models.kernels import fused_decoder
from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.decoder import Decoder, LibraryDecoder, cache_name, rounding
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.models.kernels.merge import merge_into

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KNOWN = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama 3": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma, by its own norm and embedding": GemmaConfig(**SIZES, hidden_act="gelu_pytorch_tanh"),
    "mistral without a window": MistralConfig(**SIZES, sliding_window=None),
}
UNKNOWN = {
    "gpt2, of other parts": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4),
    "granite, which scales its residuals": GraniteConfig(**SIZES, residual_multiplier=0.5),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=8),
}


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rest of the tests is run without them."""
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)


def build(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if name.endswith("bias") or "norm" in name:  # random too, or a wrong use of them would not show
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + name.endswith("weight"))
    return model


def decoded(decoder: Decoder, steps: int) -> torch.Tensor:
    """Hidden states of rows of several lengths, of which one leaves on the way."""
    generator = torch.Generator().manual_seed(1)
    found = [decoder.start([[5, 17, 9, 30, 11], [8], [21, 3, 7]])]
    device = found[0].device
    for step in range(steps):
        if step == steps // 2:
            decoder.keep(torch.tensor([2, 0], device=device))
        tokens = torch.randint(300, (len(found[-1]) - (step == steps // 2),), generator=generator)
        found.append(decoder.step(tokens.to(device)))
    return torch.cat(found)


@pytest.mark.parametrize("name", KNOWN)
def test_it_computes_what_transformers_computes(name: str) -> None:
    """Over a cache that grows several times."""
    model = build(KNOWN[name])
    expected = decoded(LibraryDecoder(model), 80)
    decoder = FusedDecoder.of(model)
    assert decoder is not None
    torch.testing.assert_close(decoded(decoder, 80), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded(decoder, 3), decoded(LibraryDecoder(model), 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", UNKNOWN)
def test_other_models_are_left_to_transformers(name: str, dtype: torch.dtype) -> None:
    assert FusedDecoder.of(build(UNKNOWN[name], dtype)) is None


def test_a_bound_of_rounding_where_the_library_has_one_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may give a row the same bits in every batch: then the library's ways differ by nothing, and a bound of
    nothing would refuse every other order of sums. A number that is rounded once is half an eps off, at most."""
    monkeypatch.setattr("plaudit.models.kernels.decoder.LibraryDecoder", OneWay)
    assert rounding(build(KNOWN["llama"], torch.bfloat16)) > torch.finfo(torch.bfloat16).eps


class OneWay(LibraryDecoder):
    """A step as the whole pass computes it, each row by itself."""

    def start(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        self.prompts = prompts
        return self._last([list(prompt) for prompt in prompts])

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        return self._last([[*prompt, token] for prompt, token in zip(self.prompts, tokens_B.tolist(), strict=True)])

    def _last(self, rows: list[list[int]]) -> torch.Tensor:
        """As `rounding` computes them alone: the row with one token more, of which the last one is not looked at."""
        whole = [[*prompt, token] for prompt, token in zip(self.prompts, (12, 7), strict=True)]
        states = [hidden_states(self.model, torch.tensor([row]))[0] for row in whole]
        return torch.stack([state[len(row) - 1] for state, row in zip(states, rows, strict=True)])


def test_plain_paths_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_PLAIN", "1")
    assert FusedDecoder.of(build(KNOWN["llama"])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_are_the_ones_used(dtype: torch.dtype) -> None:
    """All of another model's weights, those of no product included; in bf16 laid out anew, and held once."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 products")
    config = KNOWN["llama with biases"]
    model, other = build(config, dtype), build(config, dtype, seed=1)
    decoder = FusedDecoder.of(model)
    assert decoder is not None
    decoder.load((name, parameter.detach()) for name, parameter in other.named_parameters())
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.04}[dtype]
    expected = decoded(LibraryDecoder(other), 5).float()
    assert (decoded(decoder, 5).float() - expected).norm() < bound * expected.norm()
    weights = dict(model.named_parameters())
    products = {name: product for name, (product, _) in decoder.products.items()}
    assert len(set(products.values())) == 5 * len(decoder.layers), "queries, keys and values are one product"
    packed = {name for name, product in products.items() if product.packed is not None}
    assert packed == (set(products) if dtype == torch.bfloat16 else set())
    assert all(weights[name].numel() == 0 and products[name].weight is None for name in packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_of_the_layers_of_a_product_are_loaded(dtype: torch.dtype) -> None:
    """An adapter on a few layers changes no other: before the first load of all, and behind it."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 products")
    config = KNOWN["llama with biases"]
    model, other, third = (build(config, dtype, seed=seed) for seed in range(3))
    decoder = FusedDecoder.of(model)
    assert decoder is not None
    expected = build(config, dtype, seed=0)
    for source, chosen in ((other, ("q_proj", "v_proj")), (third, ("k_proj", "down_proj")), (other, ("k_proj",))):
        few = {name: weight for name, weight in source.named_parameters() if any(part in name for part in chosen)}
        decoder.load((name, weight.detach()) for name, weight in few.items())
        merge_into(expected, iter(few.items()))
        bound = {torch.float32: 1e-4, torch.bfloat16: 0.04}[dtype]
        wanted = decoded(LibraryDecoder(expected), 5).float()
        assert (decoded(decoder, 5).float() - wanted).norm() < bound * wanted.norm()


class Noted:
    """What stands for a recording where there is no GPU: the step itself, over the tensors that were there."""

    made = 0

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], tokens_B: torch.Tensor):
        self.step, self.rows = step, len(tokens_B)
        self.decoder: FusedDecoder = step.__self__  # type: ignore[attr-defined]
        self.places = self.pointers()
        Noted.made += 1

    def pointers(self) -> list[int]:
        decoder = self.decoder
        written = [decoder.mask_BS, decoder.positions_B1, decoder.columns_B]
        written += [tensor for layer in decoder.layers for tensor in (layer.keys, layer.values)]
        return [tensor.data_ptr() for tensor in written]

    def __call__(self, tokens_B: torch.Tensor) -> torch.Tensor:
        assert len(tokens_B) == self.rows and self.pointers() == self.places, "replayed over other tensors"
        return self.step(tokens_B)


@pytest.fixture
def recording() -> tuple[FusedDecoder, torch.Tensor]:
    """A decoder that records as on a GPU, and what 130 steps give."""
    model = build(KNOWN["llama"])
    expected, decoder = decoded(LibraryDecoder(model), 130), FusedDecoder.of(model)
    assert decoder is not None
    decoder.records = True
    return decoder, expected


def test_a_recording_goes_with_the_tensors_it_was_recorded_with(
    recording: tuple[FusedDecoder, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the cache grows, when rows leave and with every new batch."""
    decoder, expected = recording
    monkeypatch.setattr(fused_decoder, "_Recorded", Noted)
    for _ in range(2):
        before = Noted.made
        torch.testing.assert_close(decoded(decoder, 130), expected, rtol=1e-4, atol=1e-4)
        assert Noted.made - before == 4  # 5 tokens to 64, 128 and 192 columns, and the row that leaves


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(
    recording: tuple[FusedDecoder, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Any, tokens_B: torch.Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    decoder, expected = recording
    monkeypatch.setattr(fused_decoder, "_Recorded", refuse)
    torch.testing.assert_close(decoded(decoder, 130), expected, rtol=1e-4, atol=1e-4)
    assert not decoder.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", KNOWN)
def test_a_gpu_replays_what_transformers_computes(name: str) -> None:
    model = build(KNOWN[name]).to("cuda")
    expected = decoded(LibraryDecoder(model), 300)
    decoder = FusedDecoder.of(model)
    assert decoder is not None
    torch.testing.assert_close(decoded(decoder, 300), expected, rtol=1e-3, atol=1e-3)
    assert decoder.records and decoder.recorded is not None


def test_the_cache_has_the_name_that_the_trunk_gives_it() -> None:
    class Before(torch.nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class Since(torch.nn.Module):
        def forward(self, input_ids: Any, cache: Any = None, **kwargs: Any) -> None: ...

    assert (cache_name(Before()), cache_name(Since())) == ("past_key_values", "cache")
