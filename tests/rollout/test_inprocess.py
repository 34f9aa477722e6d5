"""The in-process engine: its sampling law, and replies that depend on their own prompt and random numbers alone."""

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from conftest import ARCHITECTURES, CPU
from plaudit import rng
from plaudit.errors import RunStopped
from plaudit.models.config import Quantise
from plaudit.models.kernels.attention import PACKED, use_packed_attention
from plaudit.models.kernels.decoder import BorrowingDecoder
from plaudit.models.load import load_model
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import pad_right
from plaudit.rollout.batch import per_token
from plaudit.rollout.inprocess import InProcessEngine, Sampled, sample

NEVER = -1
LENGTH = 10
ALMOST_ONE = 1 - 2**-24
PROMPTS = [
    [9],
    [11, 12, 13, 14, 15],
    [200, 7],
    [40, 41, 42, 43, 44, 45, 46, 47, 48],
    [5, 6, 7],
    [100, 101, 102, 103],
    [9, 9, 9, 9, 9, 9],
    [250, 1, 90],
    [33, 34, 35, 36, 37, 38, 39],
    [8, 60],
]


def draws(samples: list[int], length: int = LENGTH) -> np.ndarray:
    return rng.uniforms(0, "test", 0, samples, length)


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(request.param)


@pytest.fixture
def engine_of(folder: Path, load: Callable[[Path], PreTrainedModel]) -> Callable[..., InProcessEngine]:
    def build(**arguments: object) -> InProcessEngine:
        return InProcessEngine(load(folder), **{"eos_id": NEVER, **arguments})

    return build


def generate(engine: InProcessEngine, rows: list[int]) -> list[Sampled]:
    """Replies to the given prompts, each with its own random numbers."""
    return engine.generate([PROMPTS[i] for i in rows], draws(rows))


ALL = list(range(len(PROMPTS)))


# The sampling law.


def test_inverse_cdf_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): u below 1/2 gives 0, below 3/4 gives 1, the rest 2."""
    logits_BV = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(6, 1)
    uniforms_B = torch.tensor([0.0, 0.499, 0.501, 0.749, 0.751, ALMOST_ONE])
    tokens_B, logprobs_B = sample(logits_BV, uniforms_B, 1.0)
    assert tokens_B.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(logprobs_B.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))


def test_temperature_by_hand() -> None:
    """At temperature 1/2 the odds are squared: (1/2, 1/4, 1/4) becomes (2/3, 1/6, 1/6)."""
    logits_BV = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(3, 1)
    tokens_B, logprobs_B = sample(logits_BV, torch.tensor([0.66, 0.67, 0.84]), 0.5)
    assert tokens_B.tolist() == [0, 1, 2]
    torch.testing.assert_close(logprobs_B.exp(), torch.tensor([2 / 3, 1 / 6, 1 / 6]))


@pytest.mark.parametrize(
    ("logits", "u", "token"),
    [
        ((0.0, 0.0, -math.inf, -math.inf), ALMOST_ONE, 1),
        ((-math.inf, 0.0, 0.0, -math.inf), 0.0, 1),
        ((-math.inf, -math.inf, 3.0, -math.inf), 0.5, 2),
        ((0.0, -200.0, -200.0, -200.0), ALMOST_ONE, 0),
    ],
)
def test_a_token_without_probability_is_never_sampled(logits: tuple[float, ...], u: float, token: int) -> None:
    tokens_B, logprobs_B = sample(torch.tensor([logits]), torch.tensor([u]), 1.0)
    assert tokens_B.item() == token
    assert math.isfinite(logprobs_B.item())


@pytest.mark.parametrize("u", [0.0, 2**-24, 0.5, ALMOST_ONE])
def test_the_ends_of_a_large_vocabulary(u: float) -> None:
    """The sum of 50,000 rounded probabilities is not 1; u next to 1 must still give a token that has probability."""
    logits_BV = 3 * torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0))
    tokens_B, logprobs_B = sample(logits_BV, torch.full((64,), u), 1.0)
    assert tokens_B.min() >= 0
    assert tokens_B.max() < 50_000
    torch.testing.assert_close(logprobs_B, torch.log_softmax(logits_BV, -1).gather(1, tokens_B[:, None]).squeeze(1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    """Chi-square with five degrees of freedom: below 20.5 in 999 of 1000 cases; the numbers here are fixed."""
    logits_V = torch.tensor([1.0, 0.0, -1.0, 0.5, 2.0, -0.5])
    uniforms_B = torch.from_numpy(rng.uniforms(0, "chi-square", 0, [0], 20_000)[0])
    tokens_B, _ = sample(logits_V.expand(20_000, -1), uniforms_B, temperature)
    expected_V = 20_000 * torch.softmax(logits_V.double() / temperature, dim=0)
    counts_V = torch.bincount(tokens_B, minlength=6)
    assert ((counts_V - expected_V) ** 2 / expected_V).sum().item() < 20.5


# Replies.


def same(found: list[Sampled], expected: list[Sampled]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.row(1, 34)
def test_row_1_a_reply_does_not_depend_on_its_batch(engine_of: Callable[..., InProcessEngine]) -> None:
    """Row 1: alone = in one batch with longer prompts (left padding) = other batch sizes = another order."""
    together = generate(engine_of(), ALL)
    assert all(len(reply.ids) == len(reply.logprobs) == LENGTH for reply in together)
    assert len({tuple(reply.ids) for reply in together}) == len(together)
    same([generate(engine_of(), [i])[0] for i in ALL], together)
    for rows in (1, 3, 4):
        same(generate(engine_of(batch_rows=rows), ALL), together)
    shuffled = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
    same(generate(engine_of(), shuffled), [together[i] for i in shuffled])


@pytest.mark.row(5)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree(
    temperature: float, engine_of: Callable[..., InProcessEngine], load: Callable[[Path], PreTrainedModel], folder: Path
) -> None:
    """Rows 5 and 8: the log-probs that the cached, left-padded sampler reports are those of one plain pass."""
    replies = generate(engine_of(temperature=temperature), ALL)
    tokens = pad_right(PROMPTS, [reply.ids for reply in replies], 3, CPU)
    sampler_BT = per_token([reply.logprobs for reply in replies], tokens)
    trainer_BT = plain_logprobs(load(folder), tokens, temperature)
    assert (sampler_BT != 0).sum() == len(PROMPTS) * LENGTH
    assert (sampler_BT - trainer_BT).abs().max().item() < 1e-4


@pytest.mark.parametrize("batch_rows", [4, 40])
def test_replies_end_at_the_end_of_turn(batch_rows: int, engine_of: Callable[..., InProcessEngine]) -> None:
    """Stopping, and taking ended rows out of the batch, changes nothing: a reply is the endless one, cut after EOS.

    A batch is made smaller when a quarter of its rows have ended; forty rows also keep ended ones for a while.
    """
    prompts, numbers = PROMPTS * 4, draws(list(range(40)))
    endless = engine_of(temperature=0.3).generate(prompts, numbers)

    def ends(eos_id: int) -> list[int]:
        return [reply.ids.index(eos_id) + 1 if eos_id in reply.ids else LENGTH + 1 for reply in endless]

    eos_id = max(
        sorted({token for reply in endless for token in reply.ids}), key=lambda t: sum(end <= LENGTH for end in ends(t))
    )
    assert len(set(ends(eos_id))) > 3, "rows should end at different times"

    engine = engine_of(eos_id=eos_id, temperature=0.3, batch_rows=batch_rows)
    selected, keep = [], engine.decoder.keep
    engine.decoder.keep = lambda rows: (selected.append(len(rows)), keep(rows))[1]
    replies = engine.generate(prompts, numbers)
    assert sorted(selected) != selected, "no batch was made smaller"
    same(replies, [Sampled(r.ids[:end], r.logprobs[:end]) for r, end in zip(endless, ends(eos_id), strict=True)])
    for reply in replies:
        assert eos_id not in reply.ids[:-1]
        assert reply.ids[-1] == eos_id or len(reply.ids) == LENGTH


def test_a_prompt_is_read_once_however_many_replies_it_gets(engine_of: Callable[..., InProcessEngine]) -> None:
    """Replies to one prompt in one batch are those of batches of their own."""
    engine, read = engine_of(), []
    start = engine.decoder.start
    engine.decoder.start = lambda prompts: (read.append(len(prompts)), start(prompts))[1]
    prompts = [PROMPTS[i] for i in (1, 4, 1, 1, 4, 0)]
    replies = engine.generate(prompts, draws([3, 5, 7, 9, 11, 13]))
    assert read == [3]
    alone = [engine.generate([p], draws([n]))[0] for p, n in zip(prompts, [3, 5, 7, 9, 11, 13], strict=True)]
    same(replies, alone)


def test_the_limit_is_the_number_of_draws(engine_of: Callable[..., InProcessEngine]) -> None:
    """A longer limit changes no earlier token: position p has its own number."""
    long = generate(engine_of(), ALL)
    short = engine_of().generate(PROMPTS, draws(ALL, 4))
    same(short, [Sampled(reply.ids[:4], reply.logprobs[:4]) for reply in long])


@pytest.mark.row(31)
def test_load_weights_replaces_the_policy(
    engine_of: Callable[..., InProcessEngine],
    folder: Path,
    load: Callable[[Path], PreTrainedModel],
    stirred: Callable[..., Roles],
) -> None:
    engine = engine_of()
    before = generate(engine, ALL)
    roles = stirred(load(folder), trained="policy")
    engine.load_weights(roles.merged_weights("policy", None))
    after = generate(engine, ALL)
    assert [r.ids for r in after] != [r.ids for r in before]
    tokens = pad_right(PROMPTS, [reply.ids for reply in after], 3, CPU)
    trainer_BT = roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT.detach()
    assert (per_token([r.logprobs for r in after], tokens) - trainer_BT).abs().max().item() < 1e-4


@pytest.mark.row(31)
def test_loading_twice_does_not_add_up(
    engine_of: Callable[..., InProcessEngine],
    folder: Path,
    load: Callable[[Path], PreTrainedModel],
    stirred: Callable[..., Roles],
) -> None:
    engine, roles = engine_of(), stirred(load(folder), trained="policy")
    engine.load_weights(roles.merged_weights("policy", None))
    once = generate(engine, ALL)
    engine.load_weights(roles.merged_weights("policy", None))
    assert generate(engine, ALL) == once


@pytest.mark.row(31)
@pytest.mark.parametrize("how", [None, "int8"])
def test_without_a_copy_the_policy_itself_is_sampled(
    how: Quantise | None, tiny_model: Callable[..., Path], load: Callable[[Path], PreTrainedModel], stirred: Any
) -> None:
    """Beside a merged copy, though another role had the last pass; and training's attention is there again."""
    base = load_model(str(tiny_model()), torch.float32, CPU, how)
    roles = stirred(base, trained="policy")
    decoder = BorrowingDecoder(base, roles.as_policy)
    assert use_packed_attention(base) is None
    copy = InProcessEngine(load(tiny_model()), eos_id=2)
    copy.load_weights(roles.merged_weights("policy", None))
    expected, tokens = generate(copy, ALL), pad_right(PROMPTS, [[5, 6]] * len(PROMPTS), 3, CPU)
    for _ in range(2):
        reference = roles(tokens, "reference", frozenset({"logprobs"})).logprobs_BT
        same(generate(InProcessEngine(base, eos_id=2, decoder=decoder), ALL), expected)
        assert base.config._attn_implementation == PACKED
        assert torch.equal(roles(tokens, "reference", frozenset({"logprobs"})).logprobs_BT, reference)


@pytest.mark.row(31)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_whose_every_weight_moved_is_taken_over(dtype: torch.dtype, tiny_model: Callable[..., Path]) -> None:
    """Embedding and LM head, which are one here, among them: on a CPU with bf16 the engine has the head twice."""
    own, other = (load_model(str(tiny_model(seed=seed)), dtype, CPU) for seed in (0, 1))
    engine, there = (InProcessEngine(model, eos_id=2) for model in (own, other))
    engine.load_weights((name, p.detach().clone()) for name, p in other.named_parameters())
    found, expected = (e.decoder.logits(e.decoder.start(PROMPTS)) for e in (engine, there))
    # In bf16 the probe may choose another decoder for one of them; the models themselves are whole units apart.
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if dtype == torch.float32 else 0.15)


def test_temperature_changes_the_replies(engine_of: Callable[..., InProcessEngine]) -> None:
    hot, cold = generate(engine_of(), ALL), generate(engine_of(temperature=1e-3), ALL)
    assert [r.ids for r in hot] != [r.ids for r in cold]
    other = engine_of(temperature=1e-3).generate(PROMPTS, draws([i + 100 for i in ALL]))
    assert [r.ids for r in cold] == [r.ids for r in other], "next to temperature 0 the numbers drawn do not matter"


def test_progress_counts_every_reply(engine_of: Callable[..., InProcessEngine]) -> None:
    told: dict[int, Sampled] = {}
    found = engine_of(batch_rows=4).generate(PROMPTS, draws(ALL, 2), told.__setitem__)
    assert [told[i] for i in ALL] == found


def test_where_memory_runs_out_fewer_rows_are_decoded_at_a_time(
    engine_of: Callable[..., InProcessEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten replies where two fit: 10, 5 and 2 are tried; and each reply is the one that it would have been."""
    expected, engine, asked = generate(engine_of(), ALL), engine_of(), list[int]()
    own = InProcessEngine._generate_batch

    def small(self: InProcessEngine, prompts: Any, uniforms: Any, waiting: list[int], finished: Any) -> None:
        asked.append(min(self.batch_rows, len(waiting)))
        if asked[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        own(self, prompts, uniforms, waiting, finished)

    monkeypatch.setattr(InProcessEngine, "_generate_batch", small)
    fits = 2
    same(generate(engine, ALL), expected)
    assert asked[:3] == [10, 5, 2]
    assert engine.batch_rows == 2
    fits = 0
    with pytest.raises(RunStopped, match="sampling: out of memory with micro-batches of 1"):
        generate(engine, ALL)


def test_nothing_is_kept_of_a_batch_that_is_done(engine_of: Callable[..., InProcessEngine]) -> None:
    engine = engine_of()
    generate(engine, ALL[:1])  # what the library makes once for all
    gc.collect()
    held = _tensor_bytes()
    generate(engine, ALL)
    gc.collect()
    # A few rows of states may wait for the collector; the cache is ten times that.
    assert _tensor_bytes() <= held + 4000


def _tensor_bytes() -> int:
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def test_no_prompts(engine_of: Callable[..., InProcessEngine]) -> None:
    assert engine_of().generate([], draws([])) == []
