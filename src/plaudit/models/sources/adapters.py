"""An adapter in PEFT's format, by itself: which base it names, what tensors it has, and the two merged."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.kernels.probe import relative_error
from plaudit.models.sources.reasons import refusing

ADAPTER = "adapter_config.json"
PEFT = "base_model.model."


def base_of(name: str, adapter: Path) -> str:
    """The source that an adapter names as its base: a folder in its own, or any other."""
    try:
        settings = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: {ADAPTER} is no JSON ({error}); copy it again") from error
    base = settings.get("base_model_name_or_path") or ""
    return str(adapter / base) if (adapter / base / "config.json").is_file() else base


def shapes_of(name: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name, as it is in the model, -> shape of the tensors in a folder's safetensors files."""
    files, found = sorted(folder.glob("*.safetensors")), dict[str, tuple[int, ...]]()
    if not files:
        raise UserError(f"{name}: {folder} holds no *.safetensors weights (pickle files are not read)")
    for file in files:
        with refusing(f"{name}: {file.name} cannot be read", "; copy it again"), safe_open(file, "pt") as tensors:
            found |= {plain_name(key): tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return found


def plain_name(name: str) -> str:
    """A tensor's name in an adapter's file as it is in the model."""
    return name.removeprefix(PEFT).replace(".modules_to_save.", ".")


def merge(name: str, adapter: Path, model: PreTrainedModel, beside: frozenset[str] = frozenset()) -> PreTrainedModel:
    """The adapter merged into its base, every tensor of the adapter accounted for but those `beside` it, and tried on a
    few tokens: an adapter of one of two layers that share a weight would change both."""
    shapes = shapes_of(name, adapter)  # first of all: PEFT would read a pickle
    _resize(name, model, shapes)
    with refusing(f"{name}: its adapter does not fit its base"):
        peft = PeftModel.from_pretrained(model, str(adapter))
    wanted = {plain_name(key) for key in get_peft_model_state_dict(peft, save_embedding_layers=False)} - beside
    # Beside an adapter of an embedding or LM head PEFT saves the layer itself.
    every = peft.named_parameters(remove_duplicate=False)
    layers = {plain_name(key) for key, _ in every if ".base_layer." in key}
    # What a layer was that the adapter replaces, PEFT may save too.
    given = {key for key in shapes.keys() - beside if ".original_module." not in key}
    for names, what in ((wanted - given, "is missing"), (given - wanted - layers, "belongs to no layer of the base")):
        if names:
            raise UserError(f"{name}: adapter tensor '{PEFT}{min(names)}' {what}")
    fix = "; give the whole model that it makes, or an adapter that can be merged (LoRA on linear layers)"
    ids = torch.arange(3, 27, device=peft.device)[None]
    with torch.no_grad(), refusing(f"{name}: its adapter cannot be merged", fix):
        beside_base = peft.eval().get_base_model()(input_ids=ids)[0]
        merged: PreTrainedModel = peft.merge_and_unload()
        gap = relative_error(merged(input_ids=ids)[0], beside_base)
        if not gap < 1e-3:
            raise ValueError(f"merged it gives other numbers, relative error {gap:.1e}: two layers may share a weight")
    return merged


def _resize(name: str, model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the base as many rows of tokens as the adapter has, where it brings all of them: tokens were added when it
    was trained."""
    layers = {"embedding": model.get_input_embeddings(), "LM head": model.get_output_embeddings()}
    places = {layer: place for place, layer in model.named_modules(remove_duplicate=False)}
    rows = {what: shapes.get(f"{places[layer]}.weight", ())[:1] for what, layer in layers.items() if layer is not None}
    brought = {size[0] for size in rows.values() if size}
    if brought <= {there := model.get_input_embeddings().weight.shape[0]}:
        return
    tied = model.get_output_embeddings() is None or model.config.get_text_config().tie_word_embeddings
    if len(brought) > 1 or not (rows["embedding"] and (tied or all(rows.values()))):
        raise UserError(
            f"{name}: the adapter has {max(brought)} rows of tokens, its base {there}, and it does not bring those of "
            "both embedding and LM head; merge it where it was trained, and give the whole model"
        )
    model.resize_token_embeddings(brought.pop(), mean_resizing=False)
