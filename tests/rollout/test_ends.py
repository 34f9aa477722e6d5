"""Where a sampled reply ends: at every token at which transformers' `generate` ends it, and at the template's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from conftest import CPU, END, EOS, make_model, make_tokenizer
from plaudit.models.load import load_chat, load_model
from plaudit.rollout.inprocess import InProcessEngine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that ends a text at <|endoftext|> and at an ordinary token; its template writes another end."""
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([END, "x"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_the_ends_of_a_model(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert load_chat(str(folder)).ends == {*tokenizer.convert_tokens_to_ids([END, EOS])}


@pytest.mark.parametrize("named", [0, [0], [2, 0]])
def test_without_generation_settings_the_config_says(folder: Path, named: object) -> None:
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": named}))
    assert load_chat(str(folder)).ends == {0, 2}


def test_a_reply_stops_at_any_of_them(folder: Path, load: Callable) -> None:
    """The same random numbers without an end: each reply is cut behind the first token that ends it."""
    ends = load_chat(str(folder)).ends
    uniforms = np.random.default_rng(1).random((200, 40), dtype=np.float32)
    prompts = [[9, 11, 12]] * 200
    whole = InProcessEngine(load(folder), eos_id=-1).generate(prompts, uniforms)
    found = InProcessEngine(load_model(str(folder), torch.float32, CPU), eos_id=ends).generate(prompts, uniforms)
    last = set()
    for free, ended in zip(whole, found, strict=True):
        first = next((place for place, token in enumerate(free.ids) if token in ends), len(free.ids) - 1)
        assert ended.ids == free.ids[: first + 1]
        last.add(ended.ids[-1])
    assert ends <= last, "both ends must have been sampled for this to say anything"
