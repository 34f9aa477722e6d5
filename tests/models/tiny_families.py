"""Families of models as tiny random weights, and what must hold for each; for the tests and for benchmarks/families.py.

Every check takes a folder of transformers' own making, and what it expects comes from transformers alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from conftest import CPU, make_tokenizer, shaped_tokenizer, stir
from plaudit.data.packing import Example
from plaudit.models.adapted import Adapted, adapted
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.kernels.choose import decoder_of
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, load_tokenizer, save_model
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens, pack_examples, pad_right

SIZES: dict[str, Any] = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = HEADS | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
SHARED = {"num_hidden_layers": 4, "num_key_value_heads": 4, "mamba_d_state": 8}
SHARED |= {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
PER_LAYER = {"vocab_size_per_layer_input": 340, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
MAMBA2 = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16}


TURNS = "{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {asks!r} }}}}{{% endif %}}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
STYLES: dict[str, tuple[tuple[str, ...], str]] = {
    "gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        NO_SYSTEM
        + TURNS.format(
            turn="{{ '<start_of_turn>' + {'assistant': 'model'}.get(m.role, m.role) + '\n' + m.content | trim "
            "+ '<end_of_turn>\n' }}",
            asks="<start_of_turn>model\n",
        ),
    ),
    "qwen3": (
        (),
        TURNS.format(
            turn="{{ '<|im_start|>' + m.role + '\n' }}{% if loop.last and m.role == 'assistant' %}"
            "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}",
            asks="<|im_start|>assistant\n",
        ),
    ),
    "phi3": (
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        TURNS.format(turn="{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}", asks="<|assistant|>\n"),
    ),
    "glm": (
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        "{{ '[gMASK]<sop>' }}" + TURNS.format(turn="{{ '<|' + m.role + '|>\n' + m.content }}", asks="<|assistant|>\n"),
    ),
    "harmony": (
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
        TURNS.format(
            turn="{% if m.role != 'assistant' %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
            "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content "
            "+ ('<|return|>' if loop.last else '<|end|>') }}{% endif %}",
            asks="<|start|>assistant",
        ),
    ),
}
"""Special tokens and template of the styles that conftest.shaped_tokenizer has not."""


def styled_tokenizer(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template writes turns in a style in use."""
    if style not in STYLES:
        return shaped_tokenizer(style)
    tokens, template = STYLES[style]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)} if tokens else {})
    tokenizer.chat_template = template
    return tokenizer


@dataclass(frozen=True)
class Family:
    """How a type of transformers is made tiny, and what Plaudit does with it."""

    kind: str
    more: dict[str, Any] = field(default_factory=dict)
    decoder: str = "LibraryDecoder"
    left_out: str = ""
    """A part of what `all-linear` says it leaves out."""
    template: str = "chatml"
    """The style in which its chat template writes turns: one of `styled_tokenizer`."""


FAMILIES = {
    "Llama 3": Family("llama", decoder="FusedDecoder", template="llama3"),
    "LFM2": Family("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "Qwen 3.5": Family("qwen3_5_text", LINEAR | HYBRID, template="qwen3"),
    "Mixtral": Family("mixtral", EXPERTS, left_out="experts and their router", template="mistral"),
    "DeepSeek V3": Family("deepseek_v3", LATENT | EXPERTS | GROUPS | {"head_dim": 4}, left_out="shared experts"),
    "Llama 4, text": Family(
        "llama4_text",
        EXPERTS | {"attention_chunk_size": 64, "intermediate_size_mlp": 48},
        left_out="experts and their router",
        template="llama3",
    ),
    "OPT 350m": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "GPT": Family("openai-gpt", decoder="RereadingDecoder"),
    "Phi MoE": Family("phimoe", EXPERTS, left_out="router"),
    "SmolLM 3": Family("smollm3", {"no_rope_layer_interval": 2}),
    "Gemma 3": Family("gemma3_text", SLIDING, template="gemma"),
    "Zamba 2": Family("zamba2", SHARED | {"n_mamba_heads": 4, "chunk_size": 16}, left_out="share one weight"),
    "GPT-OSS": Family("gpt_oss", EXPERTS | {"sliding_window": 8}, left_out="experts", template="harmony"),
}
SLOW = {
    "Qwen 2.5": Family("qwen2", decoder="FusedDecoder"),
    "Qwen 3": Family("qwen3", decoder="FusedDecoder", template="qwen3"),
    "Qwen 3 MoE": Family("qwen3_moe", EXPERTS, left_out="experts", template="qwen3"),
    "Qwen 3 Next": Family("qwen3_next", LINEAR | HYBRID | EXPERTS, left_out="experts"),
    "Mistral": Family("mistral", {"sliding_window": 8}, template="mistral"),
    "Ministral 3": Family("ministral3", template="mistral"),
    "Gemma 2": Family("gemma2", {"sliding_window": 8}, template="gemma"),
    "Gemma 4": Family(
        "gemma4_text",
        SLIDING | {"hidden_size_per_layer_input": 0, "global_head_dim": 8, "final_logit_softcapping": 3.0},
        template="gemma",
    ),
    "Phi 3, Phi 4": Family("phi3", {"sliding_window": 8}, template="phi3"),
    "OLMo 2": Family("olmo2"),
    "OLMo 3": Family("olmo3", SLIDING),
    "Granite": Family("granite", {"logits_scaling": 6.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3}),
    "GLM 4": Family("glm4", template="glm"),
    "Cohere": Family("cohere", {"logit_scale": 0.5}),
    "Falcon": Family("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "GPT-2": Family("gpt2"),
    "Pythia": Family("gpt_neox"),
    "OPT": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Jamba": Family(
        "jamba",
        EXPERTS | {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
        left_out="does not pass",
    ),
    "Bamba": Family("bamba", STATE | {"attn_layer_indices": [1]}),
    "Falcon H1": Family("falcon_h1", STATE | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.25}, left_out="state-space"),
    "Mamba": Family("mamba", {"state_size": 8}, "RereadingDecoder", "state-space"),
    "Mamba 2": Family("mamba2", MAMBA2, "RereadingDecoder", "state-space"),
    "MiniMax": Family("minimax", EXPERTS, decoder="RereadingDecoder", left_out="experts"),
    "DBRX": Family(
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        },
        left_out="experts and their router",
    ),
    "Granite 4": Family(
        "granitemoehybrid",
        STATE | EXPERTS | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
        left_out="experts and their router",
    ),
    "Gemma 3n": Family(
        "gemma3n_text", SLIDING | PER_LAYER | {"laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]}
    ),
    "Kimi Linear": Family(
        "kimi_linear",
        LATENT | EXPERTS | GROUPS | HYBRID | {"head_dim": 4, "linear_head_dim": 8, "linear_num_heads": 4},
        left_out="experts and their router",
    ),
    "DeepSeek V4": Family("deepseek_v4", EXPERTS, left_out="experts and their router"),
    "DeepSeek V3.2": Family(
        "deepseek_v32",
        LATENT | EXPERTS | GROUPS | {"head_dim": 4, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64},
        left_out="no gradient reaches",
    ),
    "Laguna": Family("laguna", EXPERTS, left_out="PEFT would not read again"),
    "MiniCPM 3": Family("minicpm3", LATENT | {"scale_emb": 3, "dim_model_base": 16, "scale_depth": 1.4}),
    "Doge": Family("doge"),
}


def config_of(kind: type[PreTrainedConfig], more: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a type with the sizes above where it knows them and `more`, and so its sections."""
    known = {*getattr(kind, "__dataclass_fields__", {}), *kind.attribute_map}
    own = kind.attribute_map
    values = {own.get(key, key): value for key, value in {**SIZES, **more}.items() if key in known}
    for name, section in kind.sub_configs.items():
        if name in known:
            given = more.get(name, {})
            if section is AutoConfig:
                section = CONFIG_MAPPING[given.get("model_type") or getattr(kind(), name).model_type]
            values[name] = {**config_of(section, given).to_dict(), **given}
    return kind(**values)


def built(family: Family) -> PreTrainedModel:
    """With every bias and norm away from where it starts, so that a lost one is seen."""
    torch.manual_seed(0)
    config = config_of(CONFIG_MAPPING[family.kind], family.more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def expected_logprobs(theirs: PreTrainedModel, tokens: Tokens) -> list[Tensor]:
    """log π(a_t) of every reply by transformers alone, a row at a time."""
    found = []
    for ids, start, length in zip(tokens.tokens_BT, tokens.prompt_lengths_B, tokens.lengths_B, strict=True):
        q_TV = theirs(input_ids=ids[None, :length], use_cache=False).logits[0].log_softmax(-1)
        found.append(torch.stack([q_TV[t - 1, ids[t]] for t in range(int(start), int(length))]))
    return found


def check_logprobs(theirs: PreTrainedModel, folder: Path, tokens: Tokens) -> None:
    """Of a padded batch, and of rows without padding where the model takes them."""
    model, expected = load_model(str(folder), torch.float32, CPU), expected_logprobs(theirs, tokens)
    for own, mask, theirs_T in zip(plain_logprobs(model, tokens, 1.0), tokens.mask_BT, expected, strict=True):
        torch.testing.assert_close(own[mask], theirs_T, rtol=1e-3, atol=1e-3)
    if not prepare_attention(model).packs:
        return
    roles = Roles(model, trained="policy", lora=LoraSettings(r=2, alpha=4))
    sequences = [(*prompt, *reply) for prompt, reply in zip(tokens.prompts, tokens.replies, strict=True)]
    learnt = [
        [False] * len(prompt) + [True] * len(reply)
        for prompt, reply in zip(tokens.prompts, tokens.replies, strict=True)
    ]
    row = pack_examples([Example(ids, which, "kind") for ids, which in zip(sequences, learnt, strict=True)], CPU)
    packed_T = roles(row, "policy", frozenset({"logprobs"})).logprobs_BT[row.mask_BT].detach()
    torch.testing.assert_close(packed_T, torch.cat(expected), rtol=1e-3, atol=1e-3)


def last_logits(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """[B, V] of whole passes, one row at a time."""
    return torch.stack([model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])


@torch.no_grad()
def check_decoding(theirs: PreTrainedModel, folder: Path) -> str:
    """Every step's logits are those of whole passes, over more tokens than a tiny window; the decoder's name."""
    decoder, rows = decoder_of(load_model(str(folder), torch.float32, CPU)), [[9, 8, 7, 30, 31, 12, 5], [40, 41]]
    rows.append([7, 3, 21, 90])
    hidden_BD = decoder.start(rows)
    for step in range(8):
        expected_BV = last_logits(theirs, rows)
        gap = (decoder.logits(hidden_BD).float() - expected_BV).abs().max() / expected_BV.abs().max()
        assert gap < 1e-3, f"step {step} of {type(decoder).__name__}: logits differ by {gap:.1e} of the largest"
        if step == 4:
            decoder.keep(torch.tensor([2, 0, 2]))
            rows = [list(rows[i]) for i in (2, 0, 2)]
        tokens = [11 + 7 * step + 3 * i for i in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        hidden_BD = decoder.step(torch.tensor(tokens))
    return type(decoder).__name__


def check_adapter(folder: Path, tokens: Tokens, to: Path) -> Adapted:
    """Every layer that gets an adapter learns. Merged into a plain model it gives the same, so does that model, saved
    and read by transformers alone, and so does the adapter, saved and read by PEFT. What was adapted."""
    base = load_model(str(folder), torch.float32, CPU)
    chosen = adapted(base, "all-linear")
    roles = Roles(base, trained="policy", lora=LoraSettings(r=2, alpha=4))
    stir(roles, 5)
    found = roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT
    found.sum().backward()
    idle = [name for name, p in roles.trainable().items() if "value_head" not in name and p.grad is None]
    assert not idle, f"{idle[0]} does not learn"
    merged = load_model(str(folder), torch.float32, CPU)
    before = plain_logprobs(merged, tokens, 1.0)
    merge_into(merged, roles.merged_weights("policy", None))
    after = plain_logprobs(merged, tokens, 1.0)
    torch.testing.assert_close(after, found.detach(), rtol=1e-3, atol=1e-3)
    assert (after - before).abs().max() > 0.05, "the adapter changes nothing"
    save_model(merged, load_tokenizer(str(folder)), to)
    roles.save_adapter(to / "adapter")
    again = AutoModelForCausalLM.from_pretrained(to)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), to / "adapter")
    for model in (again, beside):
        theirs = torch.cat(expected_logprobs(model.eval(), tokens))
        torch.testing.assert_close(after[tokens.mask_BT], theirs, rtol=1e-3, atol=1e-3)
    return chosen


def ragged_tokens() -> Tokens:
    """Prompts and replies of several lengths, some longer than a tiny window."""
    draw = torch.Generator().manual_seed(3)
    lengths = ((3, 4), (12, 1), (1, 12), (5, 3))
    ids = [[torch.randint(4, 250, (n,), generator=draw).tolist() for n in pair] for pair in lengths]
    return pad_right([prompt for prompt, _ in ids], [reply for _, reply in ids], 3, CPU)
