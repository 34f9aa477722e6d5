"""GGUF files as llama.cpp writes them: converted they are the model that was written, or they are refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from conftest import CPU, make_tokenizer
from plaudit.errors import UserError
from plaudit.models.load import load_model, resolve

IDS = torch.arange(5, 105)[None]
HEADS, KEYS, LAYERS, WIDTH = 4, 2, 2, 64
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
Tensors = dict[str, np.ndarray]


def tiny(**more: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": KEYS, "vocab_size": len(make_tokenizer()), "max_position_embeddings": 512}
    config = LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.2, **more)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # and not the frequencies, which are a buffer
        parameter.data = parameter.data.bfloat16().float()
    return model


def tensors_of(model: PreTrainedModel) -> Tensors:
    """By llama.cpp's names, and queries and keys in its order: halves of a head interleaved."""
    found = Tensors()
    for name, parameter in model.named_parameters():
        place, array = name.removesuffix(".weight"), parameter.detach().numpy()
        if place in NAMES:
            found[f"{NAMES[place]}.weight"] = array
            continue
        _, _, number, part = place.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = HEADS if "q_proj" in part else KEYS
            array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        found[f"blk.{number}.{PARTS[part]}.weight"] = np.ascontiguousarray(array)
    return found


def write(to: Path, tensors: Tensors, scaling: str | None = None) -> Path:
    tokenizer, file = make_tokenizer(), GGUFWriter(str(to), "llama")
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(inner["model"]["vocab"], key=inner["model"]["vocab"].get)
    special = {token["content"] for token in inner["added_tokens"]}
    file.add_context_length(512)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(96)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KEYS)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(len(words))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(words)
    file.add_token_types([3 if word in special else 1 for word in words])
    file.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    file.add_eos_token_id(tokenizer.eos_token_id)
    if scaling is not None:
        file.add_string("llama.rope.scaling.type", scaling)
    for name, array in tensors.items():
        file.add_tensor(name, array)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return to


def llama3_factors(factor: float) -> np.ndarray:
    """As llama.cpp's converter writes them for a head of 16 (Llama 3.1's code, not transformers')."""
    found = []
    for i in range(8):
        length = 2 * math.pi * 10000.0 ** (i / 8)
        smooth = (8192 / length - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1.0 if length < 8192 / 4 else factor if length > 8192 else between)
    return np.array(found, dtype=np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_it_is_the_model_that_was_written(factor: float | None, tmp_path: Path) -> None:
    """Llama 3.1 and later keep their frequencies as a tensor, by which the states of far places are others."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = tiny() if factor is None else tiny(rope_parameters=rope)
    more = {} if factor is None else {"rope_freqs.weight": llama3_factors(factor)}
    folder = resolve(str(write(tmp_path / "model.gguf", tensors_of(model) | more)))
    found = load_model(folder, torch.float32, CPU)
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


SPOILT: dict[str, tuple[Tensors, str | None, str | None, str]] = {
    "a bias": (
        {"blk.0.attn_q.bias": np.ones(WIDTH, np.float32)},
        None,
        None,
        r"it holds 83,584 numbers, and the llama that transformers makes of it has 83,520",
    ),
    "a layer less": ({}, "blk.1.attn_q.weight", None, r"the weights lack model\.layers\.1\.self_attn\.q_proj\.weight"),
    "other frequencies": (
        {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)},
        None,
        None,
        r"frequencies are scaled \(rope_freqs\.weight\), which transformers does not read; give the checkpoint",
    ),
    "a scaling": ({}, None, "yarn", r"frequencies are scaled \(rope\.scaling\.type is yarn\)"),
}


@pytest.mark.parametrize(("more", "less", "scaling", "said"), SPOILT.values(), ids=list(SPOILT))
def test_what_would_be_left_out_or_made_up_is_refused(
    more: Tensors, less: str | None, scaling: str | None, said: str, tmp_path: Path
) -> None:
    tensors = tensors_of(tiny()) | more
    tensors.pop(less or "", None)
    file = write(tmp_path / "model.gguf", tensors, scaling)
    for _ in range(2):  # nothing is left in the cache that the second time would take for it
        with pytest.raises(UserError, match=said):
            resolve(str(file))
