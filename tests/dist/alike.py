"""That a PPO stage of two ranks has left the numbers of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5
SUMS = {"kl": 8, "sampler_gap_p99": 8}
"""Columns that may be off by so many tolerances: the KL is a sum over up to 8 tokens of a reply, each of which is held
to one; the gap is rounding and nothing else, and this nearly the largest of up to 72."""


def alike(one: Path, two: Path) -> None:
    """Metrics, evaluations, kept replies, every tensor of every rollout, and what learnt with its optimiser's state."""
    files, others = (
        {
            str(file.relative_to(home))
            for file in (home / "run/ppo").rglob("*")
            if file.is_file() and file.parent.name != "sampled"  # by a server; under the bits of its policy
        }
        for home in (one, two)
    )
    assert files == others
    assert {"run/ppo/metrics.jsonl", "run/ppo/adapter/adapter_model.safetensors"} <= files
    logs = sorted(name for name in files if name.endswith(".jsonl") and not name.endswith("times.jsonl"))
    for name in logs:
        for number, (row, other) in enumerate(zip(rows(one / name), rows(two / name), strict=True)):
            close(other, row, f"{name}, row {number}")
    tensors = [name for name in files if name.endswith(".safetensors")]
    assert sum("rollouts" in name for name in tensors) == 3
    for name in tensors:
        close(load_file(two / name), load_file(one / name), name)
    summary, other = (json.loads((home / "run/ppo/summary.json").read_text()) for home in (one, two))
    close(other | {"seconds_per_update": 0}, summary | {"seconds_per_update": 0}, "summary")
    state = load_file(one / "state-0.safetensors")
    assert any(name.startswith("optimiser.") and value.abs().max() > 0 for name, value in state.items())
    close(load_file(two / "state-0.safetensors"), state, "what learnt")


def close(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Numbers within the tolerance, texts and truth values equal, and nothing more or less on either side."""
    assert found.keys() == expected.keys(), where
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[key], value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{where}, {key}")
        elif isinstance(value, Mapping):
            close(found[key], value, f"{where}, {key}")
        elif isinstance(value, float):
            near = pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE * SUMS.get(key, 1))
            assert found[key] == near, f"{where}, {key}"
        else:
            assert found[key] == value, f"{where}, {key}"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
