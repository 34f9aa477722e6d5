"""Compiled layers: who is refused. That they compute the same is seen in stages/test_ppo_options.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.kernels.compiled import compile_layers


def test_without_a_compiler_it_is_refused_before_any_work(
    tiny_model: Callable[..., Path],
    load: Callable[[Path], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"C\+\+ compiler \(g\+\+ or clang\+\+\)"):
        compile_layers(load(tiny_model("llama")))


def test_a_model_without_blocks_is_refused(
    tiny_model: Callable[..., Path], load: Callable[[Path], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_model("llama"))
    monkeypatch.setattr(model, "_no_split_modules", [])
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(UserError, match="no repeated block in LlamaForCausalLM"):
        compile_layers(model)
