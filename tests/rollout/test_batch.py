"""The rollout record: numbers of a sampler in the right columns, and one file with glossary names."""

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file

from conftest import CPU
from plaudit.models.tokens import pad_right
from plaudit.rollout.batch import RolloutBatch, per_token


def test_per_token_by_hand() -> None:
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    out_BT = per_token([[-0.5, -0.25], [-1.0, -2.0, -3.0]], tokens)
    assert out_BT.tolist() == [[0, 0, -0.5, -0.25, 0], [-1.0, -2.0, -3.0, 0, 0]]
    assert torch.equal(out_BT != 0, tokens.mask_BT)


def test_every_tensor_is_saved_under_its_name(tmp_path: Path) -> None:
    tokens = pad_right([[5, 6, 7], [8]], [[9, 2], [4, 4, 2]], 0, CPU)
    names = [field.name for field in fields(RolloutBatch) if field.name != "tokens"]
    values = {name: torch.rand(2) if name.endswith("_B") else torch.rand(2, 5) for name in names}
    batch = RolloutBatch(tokens=tokens, **values)
    batch.save(tmp_path / "rollouts" / "00001.safetensors")
    saved = load_file(tmp_path / "rollouts" / "00001.safetensors")
    assert set(saved) == {*names, "tokens_BT", "prompt_lengths_B", "lengths_B", "mask_BT"}
    assert torch.equal(saved["tokens_BT"], tokens.tokens_BT)
    assert torch.equal(saved["mask_BT"], batch.mask_BT)
    for name in names:
        assert torch.equal(saved[name], values[name])
