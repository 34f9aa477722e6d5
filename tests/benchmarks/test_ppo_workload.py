"""W-PPO: that it runs, and that no reply ends before its limit, whatever a model's own settings end a text with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ppo as benchmark


def test_it_runs_where_every_token_could_end_a_text(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny_model(), tmp_path / "model")
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(5, size))}))
    monkeypatch.setenv("HOME", str(tmp_path))
    small = ["ppo.epochs=1", "sampling.max_new_tokens=6", "lora.r=2"]
    found = benchmark.measure(str(model), 2, 0, "float32", small)
    assert len(found["seconds_per_update"]) == 2 and all(seconds > 0 for seconds in found["seconds_per_update"])
    assert found["what"] == "plaudit, 32 replies of 6 tokens"
