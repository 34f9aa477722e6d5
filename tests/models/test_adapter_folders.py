"""Where a base comes from: an adapter's folder, a Hub id; and the reason where it cannot be had."""

import json
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import CPU, make_model, make_tokenizer
from plaudit.errors import UserError
from plaudit.models import load
from plaudit.models.load import check_readable, load_model, resolve

IDS = torch.arange(4, 40)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


def base_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LAYERS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
LORA = LoraConfig(r=4, lora_alpha=8, **LAYERS)


def adapter_folder(base: Path, folder: Path, settings: PeftConfig = LORA) -> Path:
    """A trained adapter, as PEFT saves it; the base is named by its path."""
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    with torch.no_grad():
        for name, parameter in sorted(peft.named_parameters()):
            if parameter.requires_grad and "lora_A" not in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    peft.save_pretrained(folder)
    return folder


KINDS: dict[str, PeftConfig] = {
    "lora": LORA,
    "dora": LoraConfig(r=4, use_dora=True, **LAYERS),
    "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True, **LAYERS),
    "ranks by layer": LoraConfig(r=4, rank_pattern={"down_proj": 2}, alpha_pattern={"down_proj": 16}, **LAYERS),
    "norms of its own": LoraConfig(r=4, modules_to_save=["input_layernorm"], **LAYERS),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(feedforward_modules=["down_proj"], **LAYERS),
}


@torch.no_grad()
@pytest.mark.parametrize("settings", KINDS.values(), ids=list(KINDS))
def test_an_adapter_is_merged_into_the_base_that_it_names(settings: PeftConfig, tmp_path: Path, cache: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapter = adapter_folder(base, tmp_path / "adapter", settings)
    found = resolve(str(adapter))
    check_readable(found)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    logits = load_model(found, torch.float32, CPU)(IDS).logits
    torch.testing.assert_close(logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (logits - theirs.unload()(IDS).logits).abs().max() > 0.1
    made = {file: file.stat().st_mtime_ns for file in Path(found).iterdir()}
    assert resolve(str(adapter)) == found and {file: file.stat().st_mtime_ns for file in made} == made
    assert [file.name for file in cache.iterdir()] == [Path(found).name]


@torch.no_grad()
def test_an_adapter_of_an_lm_head_with_a_weight_of_its_own(tmp_path: Path) -> None:
    """PEFT saves the head itself beside it."""
    base = base_folder(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))
    model.save_pretrained(base)
    settings = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    adapter = adapter_folder(base, tmp_path / "adapter", settings)
    assert any("lm_head.base_layer" in name for name in load_file(adapter / "adapter_model.safetensors"))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    logits = load_model(resolve(str(adapter)), torch.float32, CPU)(IDS).logits
    torch.testing.assert_close(logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)


def grown(base: Path, folder: Path, *layers: str) -> PeftModel:
    """An adapter that was trained after two tokens were added, with these layers saved whole; PEFT's own model."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    peft = get_peft_model(model, LoraConfig(r=4, modules_to_save=list(layers), init_lora_weights=False, **LAYERS))
    peft.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|one|>", "<|two|>"]})
    tokenizer.save_pretrained(folder)
    return peft.eval()


@torch.no_grad()
def test_an_adapter_with_tokens_of_its_own_brings_their_rows(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    theirs = grown(base, tmp_path / "adapter", "embed_tokens", "lm_head")
    ours = load_model(resolve(str(tmp_path / "adapter")), torch.float32, CPU)
    rows = theirs.config.vocab_size
    ids = torch.tensor([[5, rows - 1, 17, rows - 2, 9]])
    assert ours.get_input_embeddings().weight.shape[0] == rows == len(make_tokenizer()) + 2
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_brings_the_rows_of_one_layer_only(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))
    model.save_pretrained(base)
    grown(base, tmp_path / "adapter", "embed_tokens")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(kept, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(UserError, match="does not bring those of both embedding and LM head; merge it where"):
        resolve(str(tmp_path / "adapter"))


def test_an_adapter_in_a_pickle_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_folder(base_folder(tmp_path / "base"), tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    read = list[object]()
    monkeypatch.setattr(torch, "load", lambda *arguments, **_: read.append(arguments))
    with pytest.raises(UserError, match=r"holds no \*\.safetensors weights \(pickle files are not read\)"):
        resolve(str(adapter))
    assert not read


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["embed_tokens", "q_proj"]}, "two layers may share a weight"),
        ({"target_modules": ["lm_head", "q_proj"]}, "two layers may share a weight"),
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}, "two layers may share a weight"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "the base layer has no bias"),
    ],
    ids=["of a tied embedding", "of a tied LM head", "repeats layers", "a bias of its own"],
)
def test_an_adapter_that_would_be_another_one_when_merged(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    adapter = adapter_folder(base_folder(tmp_path / "base"), tmp_path / "adapter", LoraConfig(r=4, **settings))
    with pytest.raises(UserError, match=f"{said}.*; give .*whole model"):
        resolve(str(adapter))


def test_a_16_bit_base_stays_one_and_keeps_a_small_adapter(tmp_path: Path) -> None:
    """Rounded to the nearest, a change of a thousandth would be lost; rounded at random it is there on average."""
    base = base_folder(tmp_path / "base", torch.bfloat16)
    adapter = adapter_folder(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = {name: value * (1e-2 if "lora_B" in name else 1) for name, value in load_file(file).items()}
    save_file(tensors, file)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (base, resolve(str(adapter))))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj"
    left, right = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
    wanted = 2 * (left @ right)
    change = after[f"{name}.weight"].float() - before[f"{name}.weight"].float()
    slope = (change * wanted).sum() / (wanted * wanted).sum()
    assert slope.item() == pytest.approx(1.0, abs=0.35)
    assert all(torch.equal(before[key], after[key]) for key in before if "q_proj" not in key and "down_proj" not in key)


def test_an_adapter_without_its_base_says_how_to_merge_it(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapter = adapter_folder(base, tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"an adapter, whose base is not to be had.*merge_and_unload\(\)"):
        resolve(str(adapter))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter = adapter_folder(base_folder(tmp_path / "base"), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.1", "layers.7"): value for name, value in tensors.items()}, file)
    with pytest.raises(UserError, match="adapter tensor"):
        resolve(str(adapter))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A Hub whose one repository is the folder `there`; calling it gives the names that were fetched."""
    fetched: list[str] = []

    def download(source: str, *, allow_patterns: Sequence[str], ignore_patterns: Sequence[str] = ()) -> str:
        assert source == "no-one/model"
        to = tmp_path / "snapshot"
        to.mkdir(exist_ok=True)
        for file in sorted((tmp_path / "there").iterdir()):
            wanted = any(fnmatch(file.name, one) for one in allow_patterns)
            if wanted and not any(fnmatch(file.name, one) for one in ignore_patterns):
                shutil.copy(file, to)
                fetched.append(file.name)
        return str(to)

    monkeypatch.setattr(load, "snapshot_download", download)
    return lambda: fetched


def test_a_hub_id_is_looked_at_as_a_folder_is(tmp_path: Path, hub: Callable[[], list[str]]) -> None:
    """No pickle is fetched, and of a model that would be refused no weight."""
    there = base_folder(tmp_path / "there")
    (there / "pytorch_model.bin").write_bytes(b"pickle")
    shutil.copy(there / "model.safetensors", there / "consolidated.safetensors")
    found = resolve("no-one/model")
    check_readable(found)
    assert "model.safetensors" in hub() and not {"pytorch_model.bin", "consolidated.safetensors"} & {*hub()}
    (there / "model.safetensors").unlink()
    shutil.rmtree(found)
    with pytest.raises(UserError, match="pickle files are not read"):
        check_readable(resolve("no-one/model"))


def test_a_hub_id_of_another_type_is_refused_before_its_weights(tmp_path: Path, hub: Callable[[], list[str]]) -> None:
    there = base_folder(tmp_path / "there")
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(UserError, match="no causal language model"):
        resolve("no-one/model")
    assert "model.safetensors" not in hub()


def test_weights_of_other_sizes_are_named(tmp_path: Path) -> None:
    """transformers raises no more than that its log has a report, which nobody would see."""
    folder = base_folder(tmp_path / "base")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(UserError, match=r"gate_proj.*48, 32.*64, 32"):
        load_model(str(folder), torch.float32, CPU)


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: Any) -> None:
    """One with a single slash is taken for a Hub id, which is not its mistake."""
    monkeypatch.chdir(tmp_path)
    for given, says in (("some", "looked for at"), ("some/model", "there is no folder")):
        with pytest.raises(UserError, match=f"model: {given}: .*{says} {tmp_path / given}[,:]"):
            resolve(given)
