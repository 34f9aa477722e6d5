"""How many whole models are alive where a stage has the most of them: when it saves, and while it samples."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_stage
from plaudit.models import export
from plaudit.models.kernels import short_attention
from plaudit.models.load import load_model
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run


def weights_alive() -> int:
    """Bytes of all tensors as large as the smallest matrix of the model; what two share counts once."""
    short_attention._bias.cache_clear()  # a few MB at most, which are much beside a tiny model
    gc.collect()
    # Subclasses may be without memory.
    plain = (torch.Tensor, torch.nn.Parameter)
    found = [one for one in gc.get_objects() if type(one) in plain and one.numel() >= 512]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]) -> Callable[[str, Any, str], None]:
    """Every call of `owner.name` notes under `at` how many models are alive, those before the test not counted."""

    model = load_model(str(tiny_model()), torch.float32, torch.device("cpu"))
    one = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    del model
    before = weights_alive()

    def watch(at: str, owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            alive[at] = max(alive.get(at, 0.0), (weights_alive() - before) / one)
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    alive: dict[str, float] = {}
    watch.alive = alive  # type: ignore[attr-defined]
    return watch


@pytest.mark.parametrize("lora", [{"r": 1, "alpha": 2}, None], ids=["adapter", "full"])
def test_sft(lora: Any, tmp_path: Path, tiny_run: Callable[..., Run], watched: Any) -> None:
    """The base and the copy that samples; where it saves only the base, which becomes the SFT model."""
    watched("sampling", InProcessEngine, "_generate_batch")
    watched("saving", sft, "save_model")
    sft.train(*tiny_stage("sft", tiny_run(tmp_path), epochs=1, max_steps=1, samples=1, lora=lora))
    learning = 0.5 if lora else 4  # adapters, the cache of eight rows; or gradients, two moments and the best weights
    assert 1.9 < watched.alive["sampling"] < 2 + learning
    assert 0.9 < watched.alive["saving"] < 1 + learning


@pytest.mark.parametrize("lora", [{"r": 1, "alpha": 2}, None], ids=["adapter", "full"])
def test_ppo(lora: Any, tmp_path: Path, tiny_run: Callable[..., Run], trained: Path, watched: Any) -> None:
    """The base of all roles and the copy; of a full fine-tuning policy and reference."""
    watched("saving", export, "save_model")
    ppo.train(*tiny_stage("ppo", tiny_run(tmp_path, trained), updates=1, lora=lora))
    assert watched.alive["saving"] < (1.5 if lora else 2 + 3 + 2.1)
