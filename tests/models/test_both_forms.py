"""A saved checkpoint is read alike by transformers 5 and 4, and by every user of the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from conftest import shaped_tokenizer
from plaudit.data.files import write_json
from plaudit.models.both_forms import write_both_forms
from plaudit.models.load import save_model

SIZES: dict[str, Any] = {"vocab_size": 350, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}
SIZES |= {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
HALF = {"rope_type": "default", "rope_theta": 77000.0, "partial_rotary_factor": 0.5}
TWO = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 77000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
LAYERS = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77000.0}},
        {"rope_theta": 77000.0},
    ),
    "llama 3": (
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 77000.0}},
        {"rope_theta": 77000.0, "rope_scaling": LLAMA3},
    ),
    "gpt-neox": ("gpt_neox", {"rope_parameters": HALF}, {"rotary_emb_base": 77000.0, "rotary_pct": 0.5}),
    "phi": (
        "phi",
        {"rope_parameters": HALF, "num_key_value_heads": 4},
        {"rope_theta": 77000.0, "partial_rotary_factor": 0.5},
    ),
    "gemma 3": (
        "gemma3_text",
        {**LAYERS, "rope_parameters": TWO},
        {
            "rope_theta": 77000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 5000.0,
        },
    ),
    "gemma 4": (
        "gemma4_text",
        {**LAYERS, "hidden_size_per_layer_input": 0, "global_head_dim": 8},
        {"rope_theta": 1e6, "partial_rotary_factor": 0.25, "rope_scaling": None, "rope_local_base_freq": 1e4},
    ),
    "gpt-2": ("gpt2", {}, {}),
}
IDS = torch.arange(4, 104)[None]


def saved(name: str, folder: Path) -> torch.Tensor:
    """The checkpoint in `folder`, and its logits before it was saved."""
    torch.manual_seed(0)
    model_type, more, _ = KINDS[name]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**SIZES, **more})).float().eval()
    save_model(model, shaped_tokenizer("llama3"), folder)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", KINDS)
def test_both_forms_are_written_and_the_new_one_is_read_as_before(name: str, tmp_path: Path) -> None:
    logits = saved(name, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert {key: config.get(key) for key in KINDS[name][2]} == KINDS[name][2]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=0)
    fresh = CONFIG_MAPPING[KINDS[name][0]](**{**SIZES, **KINDS[name][1]})
    assert getattr(AutoConfig.from_pretrained(tmp_path / "model"), "rope_parameters", None) == getattr(
        fresh, "rope_parameters", None
    )


def test_layers_that_do_not_rotate_say_so_by_null(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"rope_parameters": {"full_attention": None, "sliding_attention": HALF}})
    write_both_forms(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["rope_parameters"]["full_attention"] is None and "rope_theta" not in found


def test_the_tokenizer_has_a_class_that_both_know(tmp_path: Path) -> None:
    saved("llama", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)
    before, after = shaped_tokenizer("llama3"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert after.chat_template == before.chat_template
    assert {*after.all_special_tokens} == {*before.all_special_tokens}
    assert after("a<|eot|>b")["input_ids"] == before("a<|eot|>b")["input_ids"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_files_are_open_to_whom_new_files_are(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        saved("llama", tmp_path / "model")
    finally:
        os.umask(before)
    files = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in files
    assert {*files.values()} == {mode}, files


OLD = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1")
READ = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
folder = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
assert tokenizer.convert_tokens_to_ids("<|eot|>") in tokenizer.all_special_ids
tokenizer.apply_chat_template([{"role": "user", "content": "Tea?"}], add_generation_prompt=True)
with torch.no_grad():
    torch.save(model(torch.arange(4, 104)[None]).logits, folder + "/found.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name != "gemma 4"])  # which 4 has not
def test_transformers_4_reads_the_same_model(name: str, old: Path, tmp_path: Path) -> None:
    """The numbers of the older library, in a process of its own, are those of the model before it was saved."""
    folder = tmp_path / "model"
    logits = saved(name, folder)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        env={**os.environ, "PYTHONPATH": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(folder / "found.pt"), logits, rtol=0, atol=1e-5)


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4 and what it needs beside the torch that is here."""
    folder = tmp_path_factory.mktemp("old")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *OLD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip could not install {', '.join(OLD)}: {done.stderr[-200:]}")
    return folder
