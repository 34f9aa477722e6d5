"""What `prepare` finds out about a model in seconds: refused with the fix, or taken with what is to be said."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import EXPERTS, FAMILIES, HYBRID, LINEAR, Family, built
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from conftest import CPU, make_model, make_tokenizer
from plaudit.data.chat import ChatFormat
from plaudit.data.templates.bake import TemplateSettings
from plaudit.dist.machine import Machine, choose_machine
from plaudit.errors import UserError
from plaudit.models.adapted import adapted
from plaudit.models.config import LoraSettings
from plaudit.models.examine import (
    FOLLOWS,
    TABLE,
    Limit,
    check_lengths,
    check_replies,
    examine,
    table_positions,
    untrained_tokens,
)
from plaudit.models.load import check_readable, load_chat, load_model, save_model
from plaudit.records import Completion, Message

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return choose_machine("float32")


def examined(folder: Path, machine: Machine, **more: Any) -> tuple[list[str], Limit | None]:
    return examine(str(folder), machine, load_chat(str(folder)), [LORA], **more)


def saved(family: Family, folder: Path) -> Path:
    built(family).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_plain_model_is_taken_without_a_word(tmp_path: Path, machine: Machine) -> None:
    assert examined(saved(FAMILIES["Llama 3"], tmp_path), machine) == ([], None)


def test_what_all_linear_leaves_out_is_said_once(tmp_path: Path, machine: Machine) -> None:
    folder = saved(FAMILIES["Mixtral"], tmp_path)
    said, _ = examine(str(folder), machine, load_chat(str(folder)), [LORA, LoraSettings(r=3, alpha=4)])
    assert said == ["adapters stand on k_proj, o_proj, q_proj, v_proj; without the experts and their router (frozen)"]


def test_without_a_classifier_the_reward_model_stays_an_adapter(tmp_path: Path, machine: Machine) -> None:
    folder = saved(Family("ernie4_5"), tmp_path)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    said, _ = examined(folder, machine)
    assert len(said) == 1 and "no sequence classifier for 'ernie4_5', so reward/model is left out" in said[0]
    assert examined(folder, machine, rewards=False) == ([], None)
    with pytest.raises(UserError, match=r"lora\.stages\.reward=null"):
        examined(folder, machine, full_reward=True)


def test_a_model_that_sees_what_comes_is_refused(tmp_path: Path, machine: Machine) -> None:
    folder = saved(Family("bert-generation"), tmp_path)
    with pytest.raises(UserError, match="no causal language model"):
        examined(folder, machine)


def test_a_model_that_gives_no_gradient_is_refused(tmp_path: Path, machine: Machine) -> None:
    """Reformer's reversible layers assert that they are in training mode, where dropout would be on."""
    more = {"is_decoder": True, "attn_layers": ["local"], "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [8, 24]}
    folder = saved(Family("reformer", more | {"attention_head_size": 8, "feed_forward_size": 48}), tmp_path)
    with pytest.raises(UserError, match=r"it gives no gradient \(AssertionError"):
        examined(folder, machine)


def test_a_layer_that_takes_its_input_in_groups_gets_no_adapter() -> None:
    """A class of DeepSeek V4's own beside plain layers, which fails on the two rows that it is asked with."""
    model = built(Family("deepseek_v4", EXPERTS))
    grouped = [name for name, part in model.named_modules() if type(part).__name__.endswith("GroupedLinear")]
    targets = adapted(model, "all-linear").targets
    assert grouped and isinstance(targets, list) and len(targets) > 5 and not {*targets} & {*grouped}


def test_sampling_without_a_copy_needs_a_cache_that_is_right(tmp_path: Path, machine: Machine) -> None:
    folder = saved(FAMILIES["GPT"], tmp_path)
    examined(folder, machine)
    with pytest.raises(UserError, match=r"ppo\.sampling_copy=false decodes by transformers' cache, and .*; set it"):
        examined(folder, machine, copy=False)


def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path: Path, machine: Machine) -> None:
    tokenizer = make_tokenizer(pad=None)
    model = make_model("llama", len(tokenizer))
    tokenizer.add_special_tokens({"eos_token": "[NEW]"})
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_end|>", "[NEW]")
    save_model(model, tokenizer, tmp_path / "model")
    with pytest.raises(UserError, match=r"'\[NEW\]' have no row in the model's embedding.*resize_token_embeddings"):
        examined(tmp_path / "model", machine)


def test_a_word_without_a_row_in_the_embedding_is_refused(tmp_path: Path, machine: Machine) -> None:
    """It is in no template and not special, so it would be met in the middle of training."""
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_tokens(["lovely"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer's 'lovely' have no row.*resize_token_embeddings"):
        examined(tmp_path, machine)


def test_a_pad_token_without_a_row_is_not_padded_with(tmp_path: Path, machine: Machine) -> None:
    tokenizer = make_tokenizer(pad=None)
    model = make_model("llama", len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    save_model(model, tokenizer, tmp_path / "model")
    assert load_chat(str(tmp_path / "model")).pad_id < len(tokenizer) - 1
    assert examined(tmp_path / "model", machine) == ([], None)


def test_positions_of_images_are_no_positions_of_text(tmp_path: Path, machine: Machine) -> None:
    """Gemma 3 with its vision tower, whose table of four positions no text is looked up in."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"vision_config": {**vision, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4}
    folder = saved(Family("gemma3", more | {"image_token_index": 300}), tmp_path)
    said, limit = examined(folder, machine)
    assert limit is None and "adapters stand on" in said[0] and "text does not pass" in said[0]


def test_learnt_positions_end_somewhere(tmp_path: Path, machine: Machine) -> None:
    """A prompt of n tokens and m sampled ones need n + m positions: the last that fits does, one more is refused."""
    tokenizer = make_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, limit = examined(tmp_path, machine)
    assert limit == Limit(64)
    chat = ChatFormat(tokenizer)
    messages = (Message("user", "Tell me about a walk, a cake and the moon."),)
    room = 64 - len(chat.prompt_ids(messages))
    check_lengths(limit, chat, [("walk", messages)], room)
    with pytest.raises(UserError, match=rf"prompt 'walk' has {64 - room} tokens.*sampling.max_new_tokens={room + 1}"):
        check_lengths(limit, chat, [("walk", messages)], room + 1)


@pytest.mark.parametrize("kind", ["gptj", "codegen", "ctrl", "mpt", "gpt_neox", "qwen3_5_text"])
@torch.no_grad()
def test_rows_end_where_a_table_of_computed_positions_does(kind: str, tmp_path: Path) -> None:
    """By transformers alone: a row of so many tokens is read, one more is an error; or there is no such table."""
    most, known = 320, {"gptj": {"rotary_dim": 8}, "codegen": {"rotary_dim": 8}, "qwen3_5_text": LINEAR | HYBRID}
    sizes = dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), most)
    folder = saved(Family(kind, known.get(kind, {}) | sizes), tmp_path)
    found = table_positions(load_model(str(folder), torch.float32, CPU))
    theirs, ids = AutoModelForCausalLM.from_pretrained(folder), torch.full((1, most + 1), 5)
    theirs(ids[:, :most])
    if found is None:
        theirs(ids)
    else:
        assert found == Limit(most, TABLE)
        with pytest.raises((IndexError, RuntimeError)):
            theirs(ids)
    assert (found is None) == (kind in ("gpt_neox", "qwen3_5_text"))


ROTARY: dict[str, tuple[Family, Limit | None]] = {
    "longrope": (
        Family(
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [1.0, 2.0, 3.0, 4.0],
                    "original_max_position_embeddings": 64,
                },
            },
        ),
        Limit(64, FOLLOWS),
    ),
    "dynamic": (
        Family("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
        Limit(128, FOLLOWS),
    ),
    "yarn": (
        Family(
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        None,
    ),
}


@pytest.mark.parametrize("kind", ROTARY)
@torch.no_grad()
def test_rows_end_where_rotary_frequencies_follow_the_longest_of_a_batch(
    kind: str, tmp_path: Path, machine: Machine
) -> None:
    """By transformers alone: a short row's logits are those it has by itself beside a row that ends at the limit, and
    others beside a row of twice its length."""
    family, expected = ROTARY[kind]
    assert examined(saved(family, tmp_path), machine)[1] == expected
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    alone_TV = theirs(torch.tensor([[5, 17, 9]])).logits[0]
    most = 128 if expected is None else expected.positions
    for length, same in ((most, True), (2 * most, expected is None)):
        beside = theirs(torch.tensor([[5, 17, 9] + [7] * (length - 3), [8] * length])).logits[0, :3]
        assert torch.allclose(beside, alone_TV, atol=1e-3) == same, length


def test_a_reward_model_is_no_language_model_to_start_from(tmp_path: Path) -> None:
    """With tied embeddings nothing is missing from its file, so it would load without a word."""
    base = make_model("llama", 340)
    base.save_pretrained(tmp_path / "base")
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    judge.save_pretrained(tmp_path / "judge")
    make_tokenizer().save_pretrained(tmp_path / "judge")
    assert base.config.tie_word_embeddings
    with pytest.raises(UserError, match=r"a LlamaForSequenceClassification, which was trained to judge.*ppo\.rewards"):
        check_readable(str(tmp_path / "judge"))


def test_a_pickle_beside_safetensors_is_not_read(tmp_path: Path) -> None:
    """The folder's only safetensors file is not the model's; transformers would fall back to the pickle."""
    model = make_model("llama", 300)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    save_file({"v": torch.zeros(1)}, tmp_path / "value_head.safetensors")
    with pytest.raises(UserError, match="safetensors"):
        load_model(str(tmp_path), torch.float32, CPU)


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / name
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}, "holds an adapter .*merge_and_unload"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised"),
        ("config.json", {"model_type": "vit"}, "no causal language model for the type 'vit'"),
    ],
)
def test_folders_that_cannot_be_a_base_are_refused_at_once(
    name: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_model("llama", 300).save_pretrained(tmp_path)
    edit(tmp_path, name, lambda old: old.update(values))
    with pytest.raises(UserError, match=said):
        check_readable(str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"early_stopping": True, "length_penalty": 0.8},
        {"top_h": 0.4},
        {"pad_token_id": -1},
    ],
)
def test_generation_settings_that_transformers_refuses_to_save_are_mended(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path / "old")
    edit(tmp_path / "old", "generation_config.json", lambda old: old.update(settings, eos_token_id=[2, 0]))
    model = load_model(str(tmp_path / "old"), torch.float32, CPU)
    save_model(model, tokenizer, tmp_path / "new")
    found = json.loads((tmp_path / "new/generation_config.json").read_text(encoding="utf-8"))
    assert found["eos_token_id"] == [2, 0] and not {*settings} - {"do_sample"} & {*found}
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("old", "new"))
    assert all(torch.equal(old[key], new[key]) for key in old)


def reserved(folder: Path, *, tied: bool = True, twins: int = 3) -> tuple[PreTrainedModel, ChatFormat]:
    """A base model whose end-of-turn token has the row of its reserved tokens, and EOS one of its own."""
    tokenizer = make_tokenizer(eos="<|endoftext|>")
    names = [f"<|reserved_{i}|>" for i in range(twins)]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    model = make_model("llama", len(tokenizer))
    rows = tokenizer.convert_tokens_to_ids(["<|im_end|>", *names])
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] = model.get_input_embeddings().weight.mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), torch.float32, CPU), load_chat(str(folder))


def test_an_end_of_turn_that_was_never_trained_is_said_with_two_ways_out(tmp_path: Path) -> None:
    (said,) = untrained_tokens(*reserved(tmp_path))
    assert said.startswith("the chat template writes '<|im_end|>', whose row of the LM head is also that of 3 other ")
    assert "data.end_of_turn: '<|endoftext|>'" in said and "lora.stages.sft: null" in said
    chat = load_chat(str(tmp_path), template=TemplateSettings(end="<|endoftext|>"))
    assert untrained_tokens(load_model(str(tmp_path), torch.float32, CPU), chat) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "least", "most"), [((), 0.0, 0.1), (("data.end_of_turn=<|endoftext|>",), 0.9, 1.0)]
)
def test_replies_end_once_turns_end_with_a_token_that_was_trained(
    settings: tuple[str, ...],
    least: float,
    most: float,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    plaudit: Callable[..., SimpleNamespace],
) -> None:
    """Twenty reserved tokens share the row of <|im_end|>, so it can have a 21st of the probability at most."""
    reserved(tmp_path / "base", twins=20)
    sft = {"epochs": 20, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 2e-2, "samples": 0}
    more = {"lora": {"r": 16, "alpha": 32}, "sampling": {"max_new_tokens": 24}}
    recipe = write_recipe(tmp_path, model=str(tmp_path / "base"), sft=sft, **more)
    for stage in ("sft", "preferences"):
        done = plaudit(stage, recipe, *settings)
        assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run/preferences/summary.json").read_text(encoding="utf-8"))
    assert least <= summary["finished_share"] <= most


def test_a_row_far_shorter_than_the_others_was_never_trained(tmp_path: Path) -> None:
    model, chat = reserved(tmp_path, twins=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[chat.eos_id] *= 1e-3
    (said,) = untrained_tokens(model, chat)
    assert "shorter than half of nearly every other" in said


def test_a_row_that_is_the_mean_of_all_was_never_trained(tmp_path: Path) -> None:
    """One token that was added: transformers draws its row about the mean, a hundred-thousandth of their spread wide.
    Where the rows have much in common, the mean is as long as any."""
    model, chat = reserved(tmp_path, twins=0)
    weight_VD = model.get_input_embeddings().weight
    with torch.no_grad():
        weight_VD += 1.0
        weight_VD[chat.eos_id] = weight_VD.mean(0) + 1e-5
    (said,) = untrained_tokens(model, chat)
    assert "'<|im_end|>', whose row of the LM head is the mean of all" in said


def test_rows_of_a_random_model_are_all_its_own(tmp_path: Path) -> None:
    saved(FAMILIES["Llama 3"], tmp_path)
    assert untrained_tokens(load_model(str(tmp_path), torch.float32, CPU), load_chat(str(tmp_path))) == []


def test_a_gpu_is_read_onto_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No whole model in a CPU's memory first. A quantised one is taken over layer by layer from there."""
    saved(FAMILIES["Llama 3"], tmp_path)
    read, asked = AutoModelForCausalLM.from_pretrained, list[Any]()

    def from_pretrained(*arguments: Any, device_map: Any = None, **more: Any) -> Any:
        asked.append(device_map)
        return read(*arguments, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    gpu = torch.device("cuda")
    monkeypatch.setattr("plaudit.models.load._quantise", lambda *_: None)
    for device, how in ((gpu, None), (CPU, None), (gpu, "int8")):
        load_model(str(tmp_path), torch.float32, device, how)
    assert asked == [{"": gpu}, None, None]


def test_a_float16_folder_in_bfloat16_is_said(tmp_path: Path) -> None:
    make_model("llama", 340).half().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    said, _ = examined(tmp_path, choose_machine("bfloat16"))
    assert len(said) == 1 and "of whose 11 bits bfloat16 keeps 8; dtype: float32" in said[0]


def test_a_demonstration_ends_before_the_last_position() -> None:
    chat, messages, reply = ChatFormat(make_tokenizer()), (Message("user", "Hm?"),), Completion("It is great. " * 9)
    length = len(chat.prompt_ids(messages)) + len(chat.reply_ids(reply))
    check_replies(Limit(length), chat, [("cake", messages, reply)])
    with pytest.raises(UserError, match=rf"'cake' has {length} tokens.*sft\.max_length={length - 1}"):
        check_replies(Limit(length - 1), chat, [("cake", messages, reply)])
