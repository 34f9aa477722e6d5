"""Packed = padded = one by one: loss and LoRA gradients, for every kind of attention and every kind of template."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from conftest import CPU, make_model, shaped_tokenizer, tiny_rows
from plaudit.data.chat import ChatFormat
from plaudit.data.examples import Encoder
from plaudit.data.packing import Example
from plaudit.models.config import LoraSettings
from plaudit.models.kernels import attention
from plaudit.models.kernels.attention import prepare_attention, use_packed_attention
from plaudit.models.roles import Roles
from plaudit.models.tokens import Batch, pack_examples, pad_examples
from plaudit.records import Demonstration, Message, Prompt

pytestmark = pytest.mark.usefixtures("dense")
WINDOW = 7
MODELS = ("llama", "mistral", "gpt2", "qwen2")


def build(architecture: str, vocabulary: int = 340) -> PreTrainedModel:
    """A fresh tiny model; Mistral's window is shorter than the examples."""
    if architecture != "mistral":
        return make_model(architecture, vocabulary)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    model = MistralForCausalLM(config)
    model.set_attn_implementation("sdpa")
    return model.eval()


def ragged_examples() -> list[Example]:
    """Five examples of 2 to 29 tokens with one or two learnt stretches each."""
    generator = torch.Generator().manual_seed(4)
    examples = []
    for length in (11, 2, 29, 17, 5):
        ids = torch.randint(4, 250, (length,), generator=generator).tolist()
        learnt = [i > 0 and (i % 5 != 2) for i in range(length)]
        examples.append(Example(tuple(ids), tuple(learnt), "instruction"))
    return examples


def loss_and_gradients(roles: Roles, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    total = 0.0
    roles.zero_grad(set_to_none=True)
    for batch in batches:
        loss = roles(batch, "policy", frozenset({"loss"})).loss
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in roles.trainable().items() if p.grad is not None}


def check_equal(architecture: str, examples: list[Example], stirred: Callable[..., Roles], vocabulary: int) -> None:
    """The plain model, one example at a time, by full logits, is what the three layouts are held against."""
    lora = LoraSettings(r=4, alpha=8)
    usual = stirred(build(architecture, vocabulary), trained="policy", lora=lora)
    reference = 0.0
    for example in examples:
        logits = usual.peft(input_ids=torch.tensor([example.ids])).logits[0]
        q = torch.log_softmax(logits.double(), dim=-1)
        reference -= sum(q[i - 1, example.ids[i]].item() for i in range(1, len(example.ids)) if example.learnt[i])
    packing = build(architecture, vocabulary)
    assert use_packed_attention(packing) is None
    packed = stirred(packing, trained="policy", lora=lora)
    found = {
        "alone": loss_and_gradients(usual, [pad_examples([example], 3, CPU) for example in examples]),
        "padded": loss_and_gradients(usual, [pad_examples(examples, 3, CPU)]),
        "packed": loss_and_gradients(packed, [pack_examples(examples, CPU)]),
        "packed, padded": loss_and_gradients(packed, [pad_examples(examples, 3, CPU)]),
        "packed, shared": loss_and_gradients(packed, [pack_examples(examples, CPU, share=True)]),
    }
    count = sum(example.targets for example in examples)
    expected = found["alone"][1]
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    assert expected and scale > 0
    for name, (loss, gradients) in found.items():
        assert loss / count == pytest.approx(reference / count, rel=1e-5), name
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient / scale, expected[key] / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.row(1)
@pytest.mark.parametrize("architecture", MODELS)
def test_packed_equals_padded_equals_alone(architecture: str, stirred: Callable[..., Roles]) -> None:
    check_equal(architecture, ragged_examples(), stirred, 340)


@pytest.mark.parametrize("architecture", MODELS)
def test_a_common_start_that_is_there_once_changes_nothing(architecture: str, stirred: Callable[..., Roles]) -> None:
    """A system message of twelve tokens, longer than Mistral's window, before each of five examples."""
    start, before = tuple(range(100, 112)), (False,) * 12
    examples = [Example(start + tuple(e.ids), before + tuple(e.learnt), e.kind) for e in ragged_examples()]
    tokens = sum(len(example.ids) for example in examples)
    # The two-token example is learnt from its second token on, so all of the start may be shared.
    assert pack_examples(examples, CPU, share=True).tokens_BT.numel() == tokens - 4 * 12
    check_equal(architecture, examples, stirred, 340)


def test_a_shared_start_by_hand() -> None:
    """5, 6 are common and not learnt; so is 7, but what follows it is learnt, and is another token in each."""
    examples = [
        Example((5, 6, 7, 8), (False, False, False, True), "x"),
        Example((5, 6, 7, 9, 4), (False, False, False, True, True), "x"),
    ]
    row = pack_examples(examples, CPU, share=True)
    assert row.tokens_BT.tolist() == [[5, 6, 7, 8, 7, 9, 4]]
    assert row.segments == ((2, 2, 3),)
    assert row.mask_BT.tolist() == [[False, False, True, False, True, True, False]]
    assert row.mask_BT.sum() == sum(example.targets for example in examples)
    # One token of 22 is not worth it; and an example that teaches nothing limits nothing but its own length.
    long = [Example((5, *range(i, i + 10)), (False,) * 10 + (True,), "x") for i in (20, 40)]
    assert pack_examples(long, CPU, share=True).segments == (11, 11)
    silent = [examples[0], Example((5, 6), (False, False), "x")]
    assert pack_examples(silent, CPU, share=True).segments == ((1, 3, 1),)


@pytest.mark.parametrize("shape", ["chatml", "llama3", "mistral"])
@pytest.mark.parametrize("architecture", MODELS)
def test_packed_conversations(architecture: str, shape: str, stirred: Callable[..., Roles]) -> None:
    """The same with real templates, all assistant turns learnt."""
    tokenizer = shaped_tokenizer(shape)
    encoder = Encoder(ChatFormat(tokenizer), max_length=200, learn="all")
    earlier = (Message("user", "Hi"), Message("assistant", "Hello there."))
    examples = []
    for number, row in enumerate(tiny_rows()[1][::7]):
        messages = (*(earlier if number % 2 else ()), Message("user", row["prompt"] + " please" * 3 * number))
        example = encoder.encode(Demonstration(Prompt(row["id"], messages, row["kind"], "train"), row["completion"]))
        assert example is not None
        examples.append(example)
    assert len({len(example.ids) for example in examples}) > 2
    check_equal(architecture, examples, stirred, len(tokenizer))


def test_what_the_mask_of_a_packed_row_lets_see() -> None:
    """Two tokens alone, then a prompt of one token with two replies of one; and two and two inside a window of two."""
    seen = attention.sees((2, (1, 1, 1)), None, CPU)[0, 0]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 1],
    ]
    longer = attention.sees(((2, 2),), 2, CPU)[0, 0]
    assert longer.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("architecture", MODELS)
def test_no_token_sees_another_example(architecture: str) -> None:
    """Another neighbour, the same hidden states to the bit; without the segments they differ."""
    model = build(architecture)
    assert use_packed_attention(model) is None
    roles = Roles(model, trained="policy", lora=LoraSettings(r=2))
    first, second = ragged_examples()[0], ragged_examples()[3]
    other = Example(tuple(reversed(first.ids)), first.learnt, first.kind)

    def last(neighbour: Example, segments: bool) -> Tensor:
        batch = pack_examples([neighbour, second], CPU)
        batch = batch if segments else Batch(batch.tokens_BT, batch.mask_BT)
        out = roles(batch, "policy", frozenset({"logprobs"})).logprobs_BT
        return out[0, len(first.ids) :]

    assert torch.equal(last(first, True), last(other, True))
    assert not torch.equal(last(first, False), last(other, False))


def test_a_model_that_leaks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that ignore the segments are not packed, and the model goes on as before."""
    plain = attention.packed_attention

    def leaking(*arguments: object, segments: object = None, **rest: object) -> object:
        return plain(*arguments, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "packed_attention", leaking)
    model = build("llama")
    reason = use_packed_attention(model)
    assert reason is not None and "see other examples" in reason
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_want_a_mask_are_not_packed() -> None:
    """Qwen 4's indexer reads the mask that torch's kernel needs none of, and fails with an AttributeError."""
    model = build("llama")
    usual = model.config._attn_implementation

    def reads_the_mask(layer: Module, args: Any, named: dict[str, Any]) -> None:
        if model.config._attn_implementation != usual:
            assert named["attention_mask"].dtype == torch.bool

    model.model.layers[1].register_forward_pre_hook(reads_the_mask, with_kwargs=True)
    assert "no attribute 'dtype'" in str(use_packed_attention(model))
    assert model.config._attn_implementation == usual


def test_lost_positions_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's absolute positions must restart with every example."""
    probed = attention._probe

    def without_positions(model: PreTrainedModel, ids: list[int], segments: object = None) -> Tensor:
        if segments is None:
            return probed(model, ids)
        trunk = getattr(model, model.base_model_prefix)
        with torch.no_grad():
            return trunk(input_ids=torch.tensor([ids]), use_cache=False, segments=segments).last_hidden_state[0]

    monkeypatch.setattr(attention, "_probe", without_positions)
    reason = use_packed_attention(build("gpt2"))
    assert reason is not None and "otherwise than alone" in reason


def test_plain_leaves_attention_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_PLAIN", "1")
    model = build("llama")
    usual = model.config._attn_implementation
    assert str(prepare_attention(model)) == "padded: PLAUDIT_PLAIN=1"
    assert model.config._attn_implementation == usual
    monkeypatch.delenv("PLAUDIT_PLAIN")
    assert str(prepare_attention(model)) == "shared"
