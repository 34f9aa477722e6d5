"""Models that scale or cap their logits, or whose head has a bias: log-probabilities are those of the model itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import CPU
from plaudit.errors import UserError
from plaudit.models.kernels.logits import PLAIN, LogitShape, learn_shape, shape_of, shaped
from plaudit.models.load import load_model
from plaudit.models.logprobs import completion_loss, token_logprobs
from plaudit.models.roles import plain_logprobs, plain_loss
from plaudit.models.tokens import Tokens
from plaudit.rollout.inprocess import InProcessEngine

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}
SIZES |= {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def gemma4() -> PreTrainedModel:
    """The text part lies inside a wrapper for images, and the cap in its section of the configuration."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {**SIZES, "pad_token_id": 3, "head_dim": 8, "global_head_dim": 8, "sliding_window": 64}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    text |= {"vocab_size_per_layer_input": 300, "final_logit_softcapping": 3.0}
    images = {f"{what}_token_id": 4 + i for i, what in enumerate(("image", "video", "audio", "boi", "eoi"))}
    return Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=text, vision_config=None, audio_config=None, **images)
    )


def of(kind: str, **more: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        from transformers import CONFIG_MAPPING

        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **more}))

    return build


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], LogitShape]] = {
    "llama": (of("llama"), PLAIN),
    "cohere, scaled": (of("cohere", logit_scale=0.0625), LogitShape(0.0625)),
    "granite, divided": (of("granite", logits_scaling=6.0), LogitShape(1 / 6)),
    "gemma 2, capped": (of("gemma2", head_dim=8, final_logit_softcapping=30.0), LogitShape(1.0, 30.0)),
    "gemma 4, capped inside a wrapper": (gemma4, LogitShape(1.0, 3.0)),
    "phi, a bias": (of("phi", num_key_value_heads=4), PLAIN),
}


@pytest.fixture(params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PreTrainedModel, LogitShape]:
    """A model with its folder, and what it does to its logits."""
    build, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            model.get_output_embeddings().bias.normal_()
    model.save_pretrained(tmp_path)
    return tmp_path, model, shape


@pytest.mark.row(32)
@torch.no_grad()
def test_row_32_the_models_own_logits_decide(saved: tuple[Path, PreTrainedModel, LogitShape], ragged: Tokens) -> None:
    """Training's log-probabilities, SFT's loss and the sampler's law against transformers' own `.logits`."""
    folder, theirs, shape = saved
    model = load_model(str(folder), torch.float32, CPU)
    assert shape_of(model) == shape
    logits_BTV = theirs(input_ids=ragged.tokens_BT, use_cache=False).logits
    targets_BT1 = ragged.tokens_BT.roll(-1, dims=1)[..., None]
    for temperature in (1.0, 0.7):
        expected_BT = (logits_BTV / temperature).log_softmax(-1).gather(-1, targets_BT1)[..., 0]
        found_BT = plain_logprobs(model, ragged, temperature)
        torch.testing.assert_close(found_BT[ragged.mask_BT], expected_BT[ragged.mask_BT], rtol=1e-4, atol=1e-4)
        if temperature == 1.0:
            assert plain_loss(model, ragged).item() == pytest.approx(-found_BT[ragged.mask_BT].sum().item(), rel=1e-5)
    decoder = InProcessEngine(model, eos_id=2).decoder
    prompt = [9, 8, 7, 30, 31]
    hidden_BD = decoder.start([prompt])
    expected_V = theirs(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(decoder.logits(hidden_BD)[0].float(), expected_V, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_same_is_found(saved: tuple[Path, PreTrainedModel, LogitShape]) -> None:
    """The probe reads what rounding leaves; numbers of the configuration are taken as they stand there."""
    folder, _, shape = saved
    assert shape_of(load_model(str(folder), torch.bfloat16, CPU)) == shape


@pytest.mark.parametrize(
    ("dtype", "fix"), [(torch.bfloat16, "try dtype: float32"), (torch.float32, "architecture is not supported")]
)
def test_a_model_that_fails_in_a_format_is_sent_to_float32(dtype: torch.dtype, fix: str) -> None:
    """Mamba's slow path multiplies float32 with bfloat16."""
    model = of("llama")().to(dtype)
    model.lm_head.register_forward_pre_hook(lambda head, args: (args[0].double(),))
    with pytest.raises(UserError, match=rf"cannot be traced to its LM head \(RuntimeError.*{fix}$"):
        learn_shape(model, "folder")


def test_another_change_of_the_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    of("llama")().save_pretrained(tmp_path)
    right = LlamaForCausalLM.forward

    def shifted(self: Any, *arguments: Any, **options: Any) -> Any:
        output = right(self, *arguments, **options)
        output.logits = output.logits - 0.1 * output.logits**2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)
    with pytest.raises(UserError, match="not those of its LM head"):
        load_model(str(tmp_path), torch.float32, CPU)


@pytest.mark.parametrize("shape", [PLAIN, LogitShape(0.25), LogitShape(1.0, 2.0), LogitShape(0.5, 3.0)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_equal_those_of_the_full_logits(shape: LogitShape, biased: bool) -> None:
    """Of the log-probabilities, of the entropy bonus, and of SFT's loss with everything learning."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=draw) for size in ((6, 5), (7, 5), (7,)))
    targets, factors = torch.randint(7, (6,), generator=draw), torch.randn(2, 6, generator=draw)

    def full(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        z = h @ w.T + (b if biased else 0)
        logits = torch.tanh(z * shape.scale / shape.cap) * shape.cap if shape.cap else z * shape.scale
        q = (logits / 0.7).log_softmax(dim=1)
        return q.gather(1, targets[:, None])[:, 0], -(q.exp() * q).sum(dim=1)

    def gradient(both: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        h = hidden.clone().requires_grad_()
        logprobs, entropy = both(h)
        (logprobs @ factors[0] + entropy @ factors[1]).backward()
        assert h.grad is not None
        return logprobs.detach(), entropy.detach(), h.grad

    more: dict[str, Any] = {"bias_V": bias if biased else None, "shape": shape}
    ours = gradient(lambda h: token_logprobs(h, weight, targets, 0.7, **more))
    for found, expected in zip(ours, gradient(lambda h: full(h, weight, bias)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def learnt(loss: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        loss(*leaves).backward()
        return [x.grad for x in leaves if x.grad is not None]

    def own(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return completion_loss(h, w, targets, bias_V=b if biased else None, shape=shape)

    def theirs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = h @ w.T + (b if biased else 0)
        logits = torch.tanh(z * shape.scale / shape.cap) * shape.cap if shape.cap else z * shape.scale
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    for found, expected in zip(learnt(own), learnt(theirs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_sampler_shapes_in_float32(tmp_path: Path) -> None:
    of("gemma2", head_dim=8, final_logit_softcapping=5.0)().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), torch.bfloat16, CPU)
    found = shaped(model, torch.tensor([4.0, -40.0]).to(torch.bfloat16))
    torch.testing.assert_close(found, 5 * torch.tanh(torch.tensor([0.8, -8.0])))
