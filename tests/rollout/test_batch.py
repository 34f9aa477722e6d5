"""The rollout record: numbers of a sampler in the right columns, and one file with glossary names."""

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file

from conftest import CPU
from plaudit.models.tokens import pad_right
from plaudit.rollout.batch import RolloutBatch, minibatches, per_token


def test_per_token_by_hand() -> None:
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    out_BT = per_token([[-0.5, -0.25], [-1.0, -2.0, -3.0]], tokens)
    assert out_BT.tolist() == [[0, 0, -0.5, -0.25, 0], [-1.0, -2.0, -3.0, 0, 0]]
    assert torch.equal(out_BT != 0, tokens.mask_BT)


def test_every_tensor_is_saved_under_its_name(tmp_path: Path) -> None:
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    names = [field.name for field in fields(RolloutBatch) if field.name not in ("tokens", "metrics")]
    values = {name: torch.rand(2) if name.endswith("_B") else torch.rand(2, 5) for name in names}
    batch = RolloutBatch(tokens=tokens, **values)
    batch.save(tmp_path / "rollouts" / "00001.safetensors")
    saved = load_file(tmp_path / "rollouts" / "00001.safetensors")
    assert set(saved) == {*names, "tokens_BT", "prompt_lengths_B", "lengths_B", "mask_BT"}
    assert torch.equal(saved["tokens_BT"], tokens.tokens_BT)
    assert torch.equal(saved["mask_BT"], batch.mask_BT)
    for name in names:
        assert torch.equal(saved[name], values[name])


def test_without_a_critic_there_is_nothing_to_save_of_it(tmp_path: Path) -> None:
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    names = [field.name for field in fields(RolloutBatch) if field.name not in ("tokens", "metrics")]
    values = {name: torch.rand(2) if name.endswith("_B") else torch.rand(2, 5) for name in names}
    absent = {"values_BT", "returns_BT", "last_values_B"}
    RolloutBatch(tokens=tokens, **{**values, **dict.fromkeys(absent)}).save(tmp_path / "1.safetensors")
    assert set(load_file(tmp_path / "1.safetensors")) & set(names) == set(names) - absent


def test_minibatches_by_hand() -> None:
    lengths, order = [9, 2, 5, 4, 7, 3], [5, 0, 2, 1, 4, 3]
    # Stretches of the order, each sorted by length: rows 5, 2, 0 (3, 5, 9 tokens), then 1, 3, 4 (2, 4, 7).
    assert minibatches(lengths, range(6), order, 3, rows=2) == [[[5, 2], [0]], [[1, 3], [4]]]
    assert minibatches(lengths, range(6), order, 3, rows=3) == [[[5, 2, 0]], [[1, 3, 4]]]
    # Two rows of at most 5 tokens fit into 10; the row of 9 would need 27 beside them.
    assert minibatches(lengths, range(6), order, 3, tokens=10) == [[[5, 2], [0]], [[1, 3], [4]]]
    assert minibatches(lengths, range(6), order, 3, tokens=9) == [[[5], [2], [0]], [[1, 3], [4]]]
    assert minibatches(lengths, range(6), order, 3, tokens=1) == [[[5], [2], [0]], [[1], [3], [4]]]
    assert minibatches(lengths, range(6), order, 6, tokens=1000) == [[[1, 5, 3, 2, 4, 0]]]
    # Both bounds: 1000 tokens would hold all, but ranks that share the work want two parts.
    assert minibatches(lengths, range(6), order, 6, rows=3, tokens=1000) == [[[1, 5, 3], [2, 4, 0]]]


def test_replies_to_one_prompt_stay_together() -> None:
    """They share its work, so they are moved to the first of them, in minibatches and in micro-batches."""
    lengths, prompts, order = [9, 2, 5, 4, 7, 3], ["a", "b", "c", "a", "b", "c"], [5, 0, 2, 1, 4, 3]
    # c: rows 5, 2 (3 and 5 tokens), a: 0, 3 (9 and 4), b: 1, 4 (2 and 7).
    assert minibatches(lengths, prompts, order, 4, rows=2) == [[[5, 2], [3, 0]], [[1, 4]]]
    assert minibatches(lengths, prompts, order, 6, rows=2) == [[[5, 2], [1, 4], [3, 0]]]
    # A shorter row behind a longer one is padded to it: rows 5, 2 and 1 need 3 · 5 tokens, rows 4 and 3 need 2 · 7.
    assert minibatches(lengths, prompts, order, 6, tokens=20) == [[[5, 2, 1], [4, 3], [0]]]
    # A minibatch that ends within a prompt's replies takes the rest in the next one.
    assert minibatches(lengths, prompts, order, 3, rows=3) == [[[5, 2, 0]], [[3, 1, 4]]]
