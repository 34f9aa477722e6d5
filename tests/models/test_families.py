"""Every family of models on tiny random weights: the log-probabilities are transformers' own, a decoder's states are
those of whole passes, and a merged adapter is the adapter. The outcome of each stands in docs/models.md."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from conftest import CPU, stir
from plaudit.errors import UserError
from plaudit.models.adapted import adapted
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.choose import cache_refused, decoder_of
from plaudit.models.kernels.decoder import LibraryDecoder, RereadingDecoder
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.tokens import Tokens

SIZES: dict[str, Any] = {
    "vocab_size": 320,
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
LATENT = HEADS | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}


@dataclass(frozen=True)
class Family:
    """How a type of transformers is made tiny, and what Plaudit does with it."""

    kind: str
    more: dict[str, Any] = field(default_factory=dict)
    decoder: str = "LibraryDecoder"
    left_out: str = ""
    """A part of what `all-linear` says it leaves out."""


FAMILIES = {
    "Llama 2, 3": Family("llama", decoder="FusedDecoder"),
    "LFM2": Family("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "Qwen 3.5": Family("qwen3_5_text", LINEAR | HYBRID),
    "Mixtral": Family("mixtral", EXPERTS, left_out="experts and their router"),
    "DeepSeek V3": Family(
        "deepseek_v3",
        LATENT | EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 4},
        left_out="shared experts",
    ),
    "Llama 4, text": Family(
        "llama4_text",
        EXPERTS | {"attention_chunk_size": 64, "intermediate_size_mlp": 48},
        left_out="shared experts",
    ),
    "OPT 350m": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "GPT": Family("openai-gpt", decoder="RereadingDecoder"),
    "Phi MoE": Family("phimoe", EXPERTS, left_out="router"),
}
SLOW = {
    "Qwen 3 Next": Family("qwen3_next", LINEAR | HYBRID | EXPERTS, left_out="experts"),
    "Jamba": Family(
        "jamba",
        EXPERTS | {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
        left_out="does not pass",
    ),
    "Bamba": Family("bamba", STATE | {"attn_layer_indices": [1]}),
    "Falcon H1": Family("falcon_h1", STATE | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.25}, left_out="state-space"),
    "Mamba": Family("mamba", {"state_size": 8}, "RereadingDecoder", "state-space"),
    "Gemma 2": Family("gemma2", {"sliding_window": 8}),
    "GPT-OSS": Family("gpt_oss", EXPERTS | {"sliding_window": 8}, left_out="experts"),
    "MiniMax": Family("minimax", EXPERTS, decoder="RereadingDecoder", left_out="experts"),
    "MiniCPM 3": Family("minicpm3", LATENT | {"scale_emb": 3, "dim_model_base": 16, "scale_depth": 1.4}),
    "Doge": Family("doge"),
}
ALL = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def built(family: Family) -> PreTrainedModel:
    """With every bias and norm away from where it starts, so that a lost one is seen."""
    kind = CONFIG_MAPPING[family.kind]
    known = {*getattr(kind, "__dataclass_fields__", {}), *kind.attribute_map}
    values = {**SIZES, **family.more}
    values = {key: value for key, value in values.items() if key in known}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(kind(**values)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=ALL)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Family, PreTrainedModel, Path]:
    family = (FAMILIES | SLOW)[request.param]
    model = built(family)
    model.save_pretrained(tmp_path)
    return family, model, tmp_path


def last_logits(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """[B, V] of whole passes, one row at a time."""
    return torch.stack([model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])


@torch.no_grad()
def test_its_numbers_are_those_of_transformers(made: tuple[Family, PreTrainedModel, Path], ragged: Tokens) -> None:
    family, theirs, folder = made
    model = load_model(str(folder), torch.float32, CPU)
    for ids, start, length, mask, found in zip(
        ragged.tokens_BT,
        ragged.prompt_lengths_B,
        ragged.lengths_B,
        ragged.mask_BT,
        plain_logprobs(model, ragged, 1.0),
        strict=True,
    ):
        q_TV = theirs(input_ids=ids[None, :length], use_cache=False).logits[0].log_softmax(-1)
        expected = torch.stack([q_TV[t - 1, ids[t]] for t in range(int(start), int(length))])
        torch.testing.assert_close(found[mask], expected, rtol=1e-3, atol=1e-3)

    decoder, rows = decoder_of(model), [[9, 8, 7, 30, 31, 12, 5], [40, 41], [7, 3, 21, 90]]
    assert type(decoder).__name__ == family.decoder
    hidden_BD = decoder.start(rows)
    for step in range(5):
        expected_BV = last_logits(theirs, rows)
        gap = (decoder.logits(hidden_BD).float() - expected_BV).abs().max() / expected_BV.abs().max()
        assert gap < 1e-3, (step, gap)
        if step == 2:
            decoder.keep(torch.tensor([2, 0, 2]))
            rows = [list(rows[i]) for i in (2, 0, 2)]
        tokens = [11 + 7 * step + 3 * i for i in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        hidden_BD = decoder.step(torch.tensor(tokens))


def test_a_merged_adapter_is_the_adapter(made: tuple[Family, PreTrainedModel, Path], ragged: Tokens) -> None:
    """Every layer that gets an adapter learns, and merged into a plain model it gives the same."""
    family, _, folder = made
    base = load_model(str(folder), torch.float32, CPU)
    chosen = adapted(base, "all-linear")
    assert family.left_out in str(chosen) and bool(family.left_out) == bool(chosen.left_out)
    roles = Roles(base, trained="policy", lora=LoraSettings(r=2, alpha=4))
    stir(roles, 5)
    found = roles(ragged, "policy", frozenset({"logprobs"})).logprobs_BT
    found.sum().backward()
    assert not [name for name, p in roles.trainable().items() if "value_head" not in name and p.grad is None]
    merged = load_model(str(folder), torch.float32, CPU)
    before = plain_logprobs(merged, ragged, 1.0)
    merge_into(merged, roles.merged_weights("policy", None))
    after = plain_logprobs(merged, ragged, 1.0)
    torch.testing.assert_close(after, found.detach(), rtol=1e-3, atol=1e-3)
    assert (after - before).abs().max() > 0.05


def test_a_cache_that_reads_padding_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets the mask of a padded prompt gets other states; then every step reads the rows anew."""
    built(FAMILIES["LFM2"]).save_pretrained(tmp_path)
    model, right = load_model(str(tmp_path), torch.float32, CPU), LibraryDecoder._forward

    def forgets(self: LibraryDecoder, *arguments: Tensor) -> Tensor:
        self.attention_BT = torch.ones_like(self.attention_BT)
        return right(self, *arguments)

    assert cache_refused(model) is None
    monkeypatch.setattr(LibraryDecoder, "_forward", forgets)
    assert "a padded prompt gives other states" in str(cache_refused(model))
    assert isinstance(decoder_of(model), RereadingDecoder)


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("Llama 2, 3", ["q_porj", "v_proj"], "no linear layer 'q_porj'; did you mean 'q_proj'"),
        ("Mixtral", ["experts"], "no linear layer 'experts'; it has k_proj"),
        ("Mixtral", ".*gate_up_proj", "PEFT refuses it for this model"),
        ("Mixtral", ["q_proj", "gate"], "no linear layer 'gate'"),
    ],
)
def test_wrong_target_modules_are_refused_with_the_names_there_are(
    family: str, asked: str | list[str], said: str, tmp_path: Path
) -> None:
    built(FAMILIES[family]).save_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        Roles(
            load_model(str(tmp_path), torch.float32, CPU),
            trained="policy",
            lora=LoraSettings(r=2, alpha=4, target_modules=asked),
        )
    assert said in str(refused.value)
