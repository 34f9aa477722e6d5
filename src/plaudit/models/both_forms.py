"""A saved checkpoint in the words of transformers 4 too, which most servers and converters still speak.

transformers 5 writes a tokenizer class and names of settings that 4 does not know. It fails at the first, and takes a
rotary base it cannot find for 10,000 without a word. So both forms are written; each version reads its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plaudit.data.files import write_json

OLD_CLASS = "PreTrainedTokenizerFast"
"""Reads tokenizer.json in both versions; the newer one's name for it is TokenizersBackend."""
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""Names of the GPT-NeoX family (Pythia)."""

OLD_SCALINGS = {"linear", "dynamic", "yarn", "longrope", "llama3"}
"""The scalings that 4 knows; of another one 5 would read half."""


def write_both_forms(folder: Path) -> None:
    """Add to the config and the tokenizer's config of a checkpoint what transformers 4 reads."""
    _rewrite(folder / "config.json", _both_forms)
    _rewrite(folder / "tokenizer_config.json", _tokenizer)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if path.is_file():
        write_json(path, change(json.loads(path.read_text(encoding="utf-8"))))


def _both_forms(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, sections of it included."""
    both = {key: _both_forms(value) if key.endswith("_config") and value else value for key, value in config.items()}
    if "dtype" in both:
        both["torch_dtype"] = both["dtype"]
    rope = both.get("rope_parameters")
    if not isinstance(rope, dict):
        return both
    if "full_attention" in rope:  # one rotation for each kind of layer
        if sliding := rope.get("sliding_attention"):
            both["rope_local_base_freq"] = sliding["rope_theta"]
        rope = rope["full_attention"] or {}  # a kind of layer that does not rotate
    plain = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if str(both.get("model_type")).startswith("gpt_neox"):
        plain |= {NEOX[name]: value for name, value in plain.items()}
    scaling = {name: value for name, value in rope.items() if name not in plain}
    if scaling.get("rope_type") in OLD_SCALINGS:
        both["rope_scaling"] = scaling
    if "original_max_position_embeddings" in scaling and scaling.get("rope_type") == "longrope":
        both["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return both | plain


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = OLD_CLASS
    more = config.get("extra_special_tokens")
    if isinstance(more, list):  # 4 wants names for those, and calls a list of them otherwise
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
