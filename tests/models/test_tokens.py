"""Right padding and its mask: rows 1 and 2 of the list of pitfalls."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from conftest import ARCHITECTURES, CPU, EOS
from plaudit.models.config import LoraSettings
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens, pack_tokens, pad_right


def test_mask_by_hand() -> None:
    """Column t stands for the action token t + 1, so a reply at columns 3 and 4 is masked in at 2 and 3."""
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    assert tokens.tokens_BT.tolist() == [[5, 6, 7, 9, 2], [8, 4, 4, 2, 0]]
    assert tokens.mask_BT.tolist() == [[False, False, True, True, False], [True, True, True, False, False]]
    assert tokens.lengths_B.tolist() == [5, 4]
    assert tokens.prompt_lengths_B.tolist() == [3, 1]
    assert tokens.replies == [[9, 2], [4, 4, 2]]
    assert tokens.reply_lengths_B.tolist() == tokens.mask_BT.sum(dim=1).tolist() == [2, 3]


def test_packed_tokens_by_hand() -> None:
    """Two replies to one prompt lie behind it, another prompt between them does not matter; padding is at place 0."""
    tokens = pad_right([[5, 6], [8], [5, 6]], [[9], [4, 4, 2], [7, 3]], 0, CPU)
    row, places_BT = pack_tokens(tokens)
    assert row.tokens_BT.tolist() == [[5, 6, 9, 7, 3, 8, 4, 4, 2]]
    assert row.segments == ((2, 1, 2), 4)
    assert row.columns_B.tolist() == [2, 8, 4]
    assert places_BT.tolist() == [[0, 1, 2, 0], [5, 6, 7, 8], [0, 1, 3, 4]]


def test_the_start_of_all_prompts_is_shared_where_that_saves_more() -> None:
    """A system message: 5, 6 are there once instead of four times. The prompt 5, 6, 7 is not, which would save less."""
    tokens = pad_right([[5, 6, 7], [5, 6], [5, 6, 8, 9], [5, 6, 7]], [[1], [2, 3], [4], [2]], 0, CPU)
    row, places_BT = pack_tokens(tokens)
    assert row.tokens_BT.tolist() == [[5, 6, 7, 1, 2, 3, 8, 9, 4, 7, 2]]
    assert row.segments == ((2, 2, 2, 3, 2),)
    assert row.columns_B.tolist() == [3, 5, 8, 10]
    assert places_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 5, 0], [0, 1, 6, 7, 8], [0, 1, 9, 10, 0]]


def test_last_column_is_always_masked(ragged: Tokens) -> None:
    assert not ragged.mask_BT[:, -1].any()


def test_rows_drop_the_columns_that_only_pad(ragged: Tokens) -> None:
    part = ragged.rows([2, 0])
    width = max(ragged.lengths_B[2], ragged.lengths_B[0])
    assert part.tokens_BT.shape == (2, width)
    assert torch.equal(part.tokens_BT, ragged.tokens_BT[[2, 0], :width])
    assert torch.equal(part.mask_BT, ragged.mask_BT[[2, 0], :width])
    assert not ragged.mask_BT[[2, 0], width:].any()


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(AssertionError):
        pad_right([[]], [[1]], 0, CPU)


@pytest.mark.row(1)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_1_padding_on_the_right_changes_no_logprob(
    architecture: str, tiny_model: Callable[..., Path], load: Callable[[Path], PreTrainedModel]
) -> None:
    """Row 1: the log-probs of a reply alone = the same reply followed by 0..6 pads, and beside longer rows."""
    model = load(tiny_model(architecture))
    prompt, reply = [7, 30, 41], [12, 99, 2]
    alone = pad_right([prompt], [reply], 3, CPU)
    expected = plain_logprobs(model, alone, 1.0)[0, 2:5]
    assert expected.abs().min() > 0
    for pads in range(7):
        longer = pad_right([prompt, [9, 8, 7]], [reply, [5] * (3 + pads)], 3, CPU)
        found = plain_logprobs(model, longer, 1.0)
        torch.testing.assert_close(found[0, 2:5], expected, rtol=0, atol=2e-6)
        assert not found[0, 5:].any()


@pytest.mark.row(2)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_2_the_pad_id_is_never_read(
    architecture: str, tiny_model: Callable[..., Path], load: Callable[[Path], PreTrainedModel], ragged: Tokens
) -> None:
    """Row 2: pad == EOS, pad == a common id, any pad: log-probs, entropies, values and mask are bit-equal."""
    roles = Roles(load(tiny_model(architecture, pad=EOS)), trained="policy", lora=LoraSettings(r=4))
    t = torch.arange(ragged.tokens_BT.shape[1])
    padding_BT = t >= ragged.lengths_B[:, None]
    assert padding_BT.any()
    outputs = []
    for pad_id in (0, 2, 3, 77):
        tokens = replace(ragged, tokens_BT=ragged.tokens_BT.masked_fill(padding_BT, pad_id))
        assert torch.equal(tokens.mask_BT, ragged.mask_BT)
        outputs.append(roles(tokens, "policy", frozenset({"logprobs", "values"})))
    for other in outputs[1:]:
        for name, tensor in vars(outputs[0]).items():
            assert tensor is None or torch.equal(tensor, getattr(other, name)), name


@pytest.mark.row(2)
def test_row_2_a_real_end_of_turn_counts_when_pad_is_the_same_id() -> None:
    tokens = pad_right([[5], [5, 6]], [[7, 2], [2]], 2, CPU)
    assert tokens.mask_BT.tolist() == [[True, True, False], [False, True, False]]
