"""The files of a checkpoint, looked at by themselves before a library reads them: whole, complete, and numbers as they
are."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from plaudit.errors import UserError
from plaudit.models.sources.reasons import refusing

INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    INDEX,
)
FEW_BITS = ("I8", "U8", "F4", "F6_", "F8")
"""Beginnings of safetensors' names of formats that mean nothing without a scale."""
POINTER = b"version https://git-lfs"


def check_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings files of a folder by name; UserError for one that is cut short or no JSON object."""
    found = dict[str, dict[str, Any]]()
    for path in (folder / name for name in SETTINGS):
        if path.is_file():
            _refuse_pointer(path)
            with refusing(f"model: {path}: cannot be loaded: cut short or damaged", "; copy it again"):
                found[path.name] = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(found[path.name], dict):
                    raise TypeError("no JSON object")
    ends = found.get("generation_config.json", {}).get("eos_token_id")
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise UserError(f"model: {folder}/generation_config.json: eos_token_id is {ends!r}, not an id or a list of ids")
    return found


def check_weights(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """UserError for weights that are not there, cut short, or quantised without a word of it."""
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        raise UserError(f"model: {folder}: the folder holds no *.safetensors weights (pickle files are not read)")
    if (folder / "model.safetensors").exists():
        pass  # transformers reads no index then
    elif INDEX in settings:
        names = settings[INDEX].get("weight_map")
        if not isinstance(names, dict):
            raise UserError(f"model: {folder}/{INDEX}: it has no weight_map; copy it again")
        if lost := sorted({*names.values()} - {file.name for file in files}):
            raise UserError(f"model: {folder}: {INDEX} names {lost[0]}, which is not there; copy it too")
    elif any(file.name.startswith("model-") for file in files):
        raise UserError(f"model: {folder}: its weights are in several files, and {INDEX} is not there; copy it too")
    else:
        raise UserError(f"model: {folder}: there is no model.safetensors, and {files[0].name} is not read for it")
    for file in files:
        _refuse_pointer(file)
        with refusing(f"model: {file}: cannot be loaded: cut short or damaged", "; copy it again"):
            formats = _formats(file)
        few = [name for name, one in formats.items() if one.startswith(FEW_BITS) and name.endswith("weight")]
        if few and not settings.get("config.json", {}).get("quantization_config"):
            raise UserError(
                f"model: {file}: {few[0]} is in {formats[few[0]]}, and no quantization_config says what its numbers "
                "stand for; give the checkpoint it was made from"
            )


def _formats(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise UserError(f"model: {path}: this is Git LFS's pointer and not the file; fetch it with git lfs pull")
