"""Folders and files that are no checkpoint, or no longer one: each is refused at once, by the file's name and with what
to do; and no code of a model is offered to be run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import Family, built
from transformers import (
    EncodecConfig,
    Gemma3Config,
    MusicgenConfig,
    MusicgenDecoderConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    WhisperConfig,
)

from conftest import CPU, make_model, make_tokenizer
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.examine import examine
from plaudit.models.load import check_config, check_readable, load_chat, load_model, load_tokenizer, resolve

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama", len(make_tokenizer()))


@pytest.fixture(scope="module")
def whole(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")


def saved(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    make_tokenizer().save_pretrained(folder)
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def in_a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def in_8_bits(folder: Path) -> None:
    tensors = {name: (50 * tensor).to(torch.int8) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


AGAIN = "cut short or damaged .*; copy it again"
ONE_FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model_type": (lambda f: edit(f / "config.json", lambda v: v.pop("model_type")), "`model_type` key in its conf"),
    "half a config": (lambda f: cut(f / "config.json", 99), f"/config.json: cannot be loaded: {AGAIN}"),
    "a config of a list": (lambda f: (f / "config.json").write_text("[]"), f"/config.json: .*{AGAIN}"),
    "a type from tomorrow": (lambda f: edit(f / "config.json", lambda v: v.update(model_type="new")), "`new` but Tran"),
    "padding without a row": (
        lambda f: edit(f / "config.json", lambda v: v.update(pad_token_id=9999)),
        r"cannot be loaded \(AssertionError: Padding_idx must be within num_embeddings\); .* or mend its config\.json",
    ),
    "weights cut short": (lambda f: cut(f / WEIGHTS, 60_000), f"/{WEIGHTS}: cannot be loaded: {AGAIN}"),
    "a header cut short": (lambda f: cut(f / WEIGHTS, 50), f"/{WEIGHTS}: cannot be loaded: {AGAIN}"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), f"/{WEIGHTS}: cannot be loaded: {AGAIN}"),
    "a pointer": (
        lambda f: (f / WEIGHTS).write_text(POINTER),
        f"/{WEIGHTS}: this is Git LFS's pointer .* git lfs pull",
    ),
    "a pointer to words": (lambda f: (f / "tokenizer.json").write_text(POINTER), "/tokenizer.json: .* git lfs pull"),
    "weights in a folder": (in_a_folder, r"holds no \*.safetensors weights"),
    "another name": (lambda f: (f / WEIGHTS).rename(f / "my.safetensors"), f"no {WEIGHTS}, and my.safetensors is not"),
    "pickles alone": (pickled, r"holds no \*.safetensors weights \(pickle files are not read\)"),
    "integers for weights": (
        in_8_bits,
        "weight is in I8, and no quantization_config says .*; give the checkpoint it was",
    ),
    "half a tokenizer": (lambda f: cut(f / "tokenizer.json", 99), f"/tokenizer.json: cannot be loaded: {AGAIN}"),
    "half its settings": (lambda f: cut(f / "tokenizer_config.json", 9), f"/tokenizer_config.json: .*{AGAIN}"),
    "half of what ends": (lambda f: cut(f / "generation_config.json", 9), f"/generation_config.json: .*{AGAIN}"),
    "an end in words": (
        lambda f: edit(f / "generation_config.json", lambda v: v.update(eos_token_id="</s>")),
        "generation_config.json: eos_token_id is '</s>', not an id",
    ),
    "no tokenizer.json": (
        lambda f: (f / "tokenizer.json").unlink(),
        "its tokenizer cannot be loaded .*save the model's",
    ),
    "no tokenizer": (without_tokenizer, "holds no tokenizer; save the model's tokenizer beside it"),
    "nothing": (emptied, "no config.json, so it is not a Hugging Face checkpoint"),
}
SEVERAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        f"{INDEX} names model-00002-of-00003.safetensors, which is not there; copy it too",
    ),
    "no index": (lambda f: (f / INDEX).unlink(), f"in several files, and {INDEX} is not there; copy it too"),
    "half an index": (lambda f: cut(f / INDEX, 99), f"/{INDEX}: cannot be loaded: {AGAIN}"),
    "an index of nothing": (lambda f: (f / INDEX).write_text("{}"), "no weight_map; copy it again"),
}


def refused(source: Path, said: str) -> None:
    def look() -> None:
        folder = resolve(str(source))
        check_readable(folder)
        load_tokenizer(folder)

    with pytest.raises(UserError, match=said):
        look()


@pytest.mark.parametrize(("spoil", "said"), ONE_FILE.values(), ids=list(ONE_FILE))
def test_a_folder_that_is_not_whole(spoil: Callable[[Path], object], said: str, whole: Path, tmp_path: Path) -> None:
    spoil(shutil.copytree(whole, tmp_path / "model"))
    refused(tmp_path / "model", said)


@pytest.mark.parametrize(("spoil", "said"), SEVERAL.values(), ids=list(SEVERAL))
def test_weights_in_several_files(spoil: Callable[[Path], object], said: str, sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "model")
    check_readable(str(folder))
    spoil(folder)
    refused(folder, said)


def test_a_file_given_as_a_model(whole: Path, tmp_path: Path) -> None:
    refused(whole / WEIGHTS, f"{WEIGHTS}: a file; give the folder that holds config.json")
    (tmp_path / "random.GGUF").write_bytes(b"GGUF" + bytes(range(256)))
    refused(tmp_path / "random.GGUF", "cannot be converted .*; if it was cut short, copy it again")


def test_layers_that_config_json_leaves_out_are_not_left_out_in_silence(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    edit(folder / "config.json", lambda values: values.update(num_hidden_layers=1))
    with pytest.raises(UserError, match=r"hold model\.layers\.1\.\S+, and the model of config\.json has fewer layers"):
        load_model(str(folder), torch.float32, CPU)


Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.1.self_attn.q_proj"
NAMES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "DDP's": (
        lambda found: {f"module.{name}": tensor for name, tensor in found.items()},
        r"lack .*; their names begin with 'module\.', which a wrapper puts there .*: save the model inside it again",
    ),
    "PEFT's": (
        lambda found: {f"base_model.model.{name}": tensor for name, tensor in found.items()},
        r"their names begin with 'base_model\.model\.', which a wrapper",
    ),
    "a layer less": (
        lambda found: {name: tensor for name, tensor in found.items() if not name.startswith(Q_PROJ)},
        rf"the weights lack {Q_PROJ}\.weight; transformers would make them up; copy the whole checkpoint again",
    ),
    "a norm": (
        lambda found: found | {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)},
        r"hold model\.layers\.1\.self_attn\.q_norm\.weight, and the model of config\.json has no such part",
    ),
    "a bias": (
        lambda found: found | {f"{Q_PROJ}.bias": torch.ones(32)},
        rf"hold {Q_PROJ}\.bias, and in the model of config\.json that layer has no bias; give the config\.json",
    ),
}


@pytest.mark.parametrize(("change", "said"), NAMES.values(), ids=list(NAMES))
def test_names_that_are_not_the_models(
    change: Callable[[Tensors], Tensors], said: str, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        load_model(str(folder), torch.float32, CPU)


def test_a_tokenizer_of_a_vocabulary_and_merges_alone(tmp_path: Path) -> None:
    """As GPT-2's was kept before tokenizer.json."""
    whole = make_tokenizer()
    model = json.loads(whole.backend_tokenizer.to_str())["model"]
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    text = "What is the price of tea?"
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == whole(text, add_special_tokens=False)["input_ids"]


def test_what_else_a_file_holds_does_no_harm(whole: Path, tmp_path: Path) -> None:
    """A value head of another trainer, frequencies that old versions saved, a mask named like a bias (GPT-2's)."""
    folder = shutil.copytree(whole, tmp_path / "model")
    names = ("v_head.summary.weight", "v_head.summary.bias", "model.layers.0.self_attn.bias")
    others = {name: torch.ones(4) for name in (*names, "model.layers.0.self_attn.rotary_emb.inv_freq")}
    save_file(load_file(folder / WEIGHTS) | others, folder / WEIGHTS, metadata={"format": "pt"})
    load_model(str(folder), torch.float32, CPU)


def test_an_lm_head_that_is_missing_may_be_the_embedding(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    edit(folder / "config.json", lambda values: values.update(tie_word_embeddings=False))
    with pytest.raises(UserError, match=r"lack lm_head\.weight; .*set tie_word_embeddings to true in config\.json"):
        load_model(str(folder), torch.float32, CPU)


def test_formats_of_several_widths_are_numbers(model: PreTrainedModel, whole: Path, tmp_path: Path) -> None:
    """float64 too, whose name begins like that of six bits."""
    folder = shutil.copytree(whole, tmp_path / "model")
    mixed = {name: t.double() if t.dim() == 1 else t for name, t in load_file(folder / WEIGHTS).items()}
    save_file(mixed, folder / WEIGHTS, metadata={"format": "pt"})
    check_readable(str(folder))
    ids = torch.tensor([[5, 17, 9]])
    assert torch.equal(load_model(str(folder), torch.float32, CPU)(ids).logits, model.eval()(ids).logits)


def test_a_config_that_asks_for_tuples_gives_states_all_the_same(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    edit(folder / "config.json", lambda values: values.update(return_dict=False))
    examine(str(folder), choose_machine("float32"), load_chat(str(folder)), [])


def test_a_section_may_say_that_the_weights_are_quantised(tmp_path: Path) -> None:
    saved(built(Family("gemma3_text")), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    section = text | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": section}))
    refused(tmp_path, "its weights are quantised")


def test_an_end_that_only_the_models_settings_name_is_said_to_be_written_down(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r'has no EOS token.*write "eos_token": "<\|im_end\|>", as the settings'):
        load_chat(str(folder))


@pytest.mark.parametrize("row", [5, -1])
def test_weights_that_are_no_numbers(row: int, whole: Path, tmp_path: Path) -> None:
    """In a row that the first look at the model reads, or in one that it does not."""
    folder = shutil.copytree(whole, tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    tensors["model.embed_tokens.weight"][row, 3] = float("nan")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight holds a NaN or an infinity; copy the weights"):
        examine(str(folder), choose_machine("float32"), load_chat(str(folder)), [])


def test_nobody_is_asked_whether_a_models_own_code_may_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    edit(folder / "config.json", lambda v: v.update(model_type="mine", auto_map={"AutoConfig": "mine.Config"}))
    (folder / "mine.py").write_text("raise SystemExit('run')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    refused(folder, "cannot be loaded .*contains custom code")
    edit(folder / "tokenizer_config.json", lambda v: v.update(auto_map={"AutoTokenizer": ["mine.Words", None]}))
    shutil.copy(whole / "config.json", folder)
    assert load_tokenizer(str(folder)).eos_token == make_tokenizer().eos_token


MUSIC = MusicgenConfig(text_encoder=T5Config(), audio_encoder=EncodecConfig(), decoder=MusicgenDecoderConfig())


@pytest.mark.parametrize("config", [WhisperConfig(), T5Config(), MUSIC])
def test_an_encoder_decoder_is_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    """transformers takes Whisper's decoder for a language model, and drops the encoder beside which it learnt; which of
    MusicGen's texts is *the* text, it refuses to say."""
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"it is an encoder-decoder, .*; give a causal language model"):
        check_config(tmp_path)


def test_few_bits_in_a_part_of_the_config_are_seen(tmp_path: Path) -> None:
    """As of a model for text and images, whose text alone was quantised."""
    config = Gemma3Config()
    config.text_config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its weights are quantised"):
        check_config(tmp_path)
