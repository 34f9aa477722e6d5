"""A reply and its log-probabilities are the same bits whatever is decoded beside it: the fused decoder on a CPU."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from plaudit import rng
from plaudit.models.kernels import fixed_rows
from plaudit.models.kernels.fixed_rows import UNIT, attends_alike, in_pieces, pieces_of, whole_rooms, whole_units
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.rollout.inprocess import InProcessEngine, Sampled

SIZES = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
    "attention_bias": True,
}
ENDS = set(range(0, 300, 30))
LENGTH, ROWS = 30, 19
PROMPTS = [[(7 * t + 11 * row) % 290 + 3 for t in range(1 + (17 * row) % 75)] for row in range(ROWS - 2)]
PROMPTS += [PROMPTS[3], PROMPTS[3]]  # read once for three replies, in whichever batch they are
UNIFORMS = rng.uniforms(0, "invariance", 0, list(range(ROWS)), LENGTH)


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rest of the tests is run without them."""
    monkeypatch.delenv("PLAUDIT_PLAIN", raising=False)


@functools.cache
def model_of(family: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[family](**SIZES)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    return model


def replies(model: PreTrainedModel, rows: list[int], batch_rows: int) -> list[Sampled]:
    # Named, since in bfloat16 another order of sums may be too much for the look that chooses a decoder.
    engine = InProcessEngine(model, eos_id=ENDS, batch_rows=batch_rows, decoder=FusedDecoder(model))
    assert engine.joins is not None
    return engine.generate([PROMPTS[i] for i in rows], UNIFORMS[rows])


@pytest.mark.row(1, 34)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_row_1_no_bit_of_a_reply_depends_on_its_neighbours(family: str, dtype: torch.dtype) -> None:
    """Batches of 1 to 9, of all, and alone; rows that end leave their places to prompts that wait."""
    model, every = model_of(family, dtype), list(range(ROWS))
    whole = replies(model, every, ROWS)
    lengths = {len(reply.ids) for reply in whole}
    assert len(lengths) > 2 and min(lengths) < LENGTH, "some end early, at several lengths"
    for batch_rows in range(1, 10):
        assert replies(model, every, batch_rows) == whole
    shuffled = [int(i) for i in np.random.default_rng(0).permutation(ROWS)]
    assert replies(model, shuffled, 5) == [whole[i] for i in shuffled]
    assert [replies(model, [i], 1)[0] for i in (0, 3, 11)] == [whole[i] for i in (0, 3, 11)]


@pytest.mark.row(1)
def test_row_1_nor_where_rows_may_not_attend_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose kernels differ by the number of rows and columns each row attends by itself."""
    model, every = model_of("llama", torch.float32), list(range(ROWS))
    expected = replies(model, every, 7)
    monkeypatch.setattr("plaudit.models.kernels.fused_decoder.attends_alike", lambda *_: False)
    alone = replies(model, every, 7)
    assert [reply.ids for reply in alone] == [reply.ids for reply in expected]
    assert alone == replies(model, every, 4)


def test_places_are_taken_by_prompts_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than batch by batch; a quarter of the places is free before anybody comes in."""
    model, steps, joined = model_of("llama", torch.float32), [0], list[int]()
    step, join = FusedDecoder.step, FusedDecoder.join

    def stepped(self: FusedDecoder, tokens_B: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        return step(self, tokens_B)

    def came(self: FusedDecoder, rows: torch.Tensor, prompts: list[list[int]]) -> torch.Tensor:
        joined.append(len(prompts))
        return join(self, rows, prompts)

    monkeypatch.setattr(FusedDecoder, "step", stepped)
    monkeypatch.setattr(FusedDecoder, "join", came)
    together = replies(model, list(range(ROWS)), 8)
    one_by_one = steps[0]
    assert sum(joined) >= ROWS - 2 and all(count >= 2 for count in joined[1:-1])
    monkeypatch.setattr(InProcessEngine, "joins", None)
    engine = InProcessEngine(model, eos_id=ENDS, batch_rows=8, decoder=FusedDecoder(model))
    steps[0] = 0
    assert engine.generate(PROMPTS, UNIFORMS) == together
    assert one_by_one < steps[0]


def test_rows_are_filled_up_and_cut_by_hand() -> None:
    assert [whole_units(n) for n in (1, 8, 9)] == [8, 8, 16]
    assert [whole_rooms(n) for n in (1, 64, 65)] == [64, 64, 128]
    seen: list[int] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return 2 * x

    x = torch.arange(56.0)[:, None]
    assert torch.equal(in_pieces(double, (32, 16, UNIT), x), 2 * x)
    assert seen == [32, 16, 8]


def test_only_pieces_that_give_the_same_bits_are_taken() -> None:
    """A product that rounds otherwise from 64 rows on."""
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))

    def product(x: torch.Tensor) -> torch.Tensor:
        found = (x[:, :, None] * weight).sum(dim=1)
        return found * (1 + 2**-20) if len(x) >= 64 else found

    assert pieces_of("planted", product, 40, weight) == (32, 16, UNIT)
    assert pieces_of("elementwise", lambda x: x[:, :1] * 3, 40, weight) == (*fixed_rows.PIECES, UNIT)


def test_the_look_at_attention_finds_a_kernel_that_hangs_on_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fixed_rows.attention
    monkeypatch.setattr(fixed_rows, "attention", lambda q, *rest: real(q, *rest) * (1 + 1e-6 * (len(q) == 3)))
    attends_alike.cache_clear()
    assert not attends_alike(3, 2, 16, torch.float32)
    attends_alike.cache_clear()
