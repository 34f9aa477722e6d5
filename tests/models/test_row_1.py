"""Row 1 as it stands in the list: a reply's log-probs alone = left-padded = right-padded = packed, 0..k pads."""

import numpy as np
import pytest
import torch
from test_packed_attention import MODELS, build
from torch import Tensor

from conftest import CPU
from plaudit.data.packing import Example
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import use_packed_attention
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import pack_examples, pad_right
from plaudit.rollout.inprocess import InProcessEngine

PROMPT, REPLY_LENGTH, MOST_PADS = [7, 30, 41], 4, 6
TOLERANCE = 1e-5


def by_the_book(architecture: str, ids: list[int]) -> Tensor:
    """log π of the reply's tokens from the full logits of the row alone: nothing padded, nothing packed, in float64."""
    with torch.no_grad():
        logits_TV = build(architecture).double()(input_ids=torch.tensor([ids])).logits[0]
    q_TV = torch.log_softmax(logits_TV, dim=-1)
    return torch.stack([q_TV[t - 1, ids[t]] for t in range(len(PROMPT), len(ids))]).float()


@pytest.mark.row(1)
@pytest.mark.parametrize("architecture", MODELS)
def test_row_1_alone_left_padded_right_padded_and_packed_are_one(architecture: str) -> None:
    """Left padding is the sampler's, beside a prompt that is 0..6 tokens longer; right padding is the trainer's, beside
    a longer row; packed are the rows of one sequence, with a stranger before and behind."""
    # No token ends a reply here (the id is beyond the vocabulary), so the sampler gives all its tokens.
    engine = InProcessEngine(build(architecture), eos_id=340)
    trainer, packing = build(architecture).requires_grad_(False), build(architecture)
    assert use_packed_attention(packing) is None
    packed_roles = Roles(packing, trained="policy", lora=LoraSettings(r=4, alpha=8))
    draws = np.random.default_rng(0).random((2, REPLY_LENGTH), dtype=np.float32)
    (alone,) = engine.generate([PROMPT], draws[:1])
    ids = [*PROMPT, *alone.ids]
    assert len(alone.ids) == REPLY_LENGTH
    expected = by_the_book(architecture, ids)
    assert expected.abs().min() > 0.01

    found = {"sampled alone": torch.tensor(alone.logprobs)}
    columns = slice(len(PROMPT) - 1, len(ids) - 1)
    for pads in range(MOST_PADS + 1):
        stranger = list(range(50, 50 + len(PROMPT) + pads))
        left, _ = engine.generate([PROMPT, stranger], draws)
        assert left.ids == alone.ids
        found[f"left, {pads} pads"] = torch.tensor(left.logprobs)
        right = pad_right([PROMPT, stranger], [alone.ids, [9] * REPLY_LENGTH], 3, CPU)
        found[f"right, {pads} pads"] = plain_logprobs(trainer, right, 1.0)[0, columns]
        learnt = tuple(t >= len(PROMPT) for t in range(len(ids)))
        other = Example(tuple(stranger), (False, *[True] * (len(stranger) - 1)), "x")
        row = pack_examples([other, Example(tuple(ids), learnt, "x"), other], CPU)
        with torch.no_grad():
            logprobs_BT = packed_roles(row, "policy", frozenset({"logprobs"})).logprobs_BT
        start = len(stranger)
        found[f"packed behind {start}"] = logprobs_BT[0, start + columns.start : start + columns.stop]
    for name, logprobs in found.items():
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.row(1)
def test_row_1_the_mistake_itself_is_seen_at_this_tolerance() -> None:
    """Left padding with the mask but without position ids moves every log-prob of a model of absolute positions."""
    ids = [*PROMPT, 12, 99, 200, 31]
    pads = 3
    model = build("gpt2")
    tokens = torch.tensor([[3] * pads + ids])
    mask = torch.tensor([[0] * pads + [1] * len(ids)])
    with torch.no_grad():
        q_TV = torch.log_softmax(model(input_ids=tokens, attention_mask=mask).logits[0, pads:], dim=-1)
    wrong = torch.stack([q_TV[t - 1, ids[t]] for t in range(len(PROMPT), len(ids))])
    assert (wrong - by_the_book("gpt2", ids)).abs().max() > 100 * TOLERANCE
