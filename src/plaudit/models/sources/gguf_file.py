"""A GGUF file beside the model that transformers made of it: every number read, its rotary frequencies kept.

transformers goes by the names that it knows, and leaves out in silence what it does not know. The frequencies of Llama
3.1 and later are a tensor of their own in such a file, and it reads none of it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from plaudit.errors import UserError

FACTORS = "rope_freqs.weight"
ASIDE = {FACTORS, "rope_factors_long.weight", "rope_factors_short.weight"}
"""Tensors that change rotary frequencies, and are no weights."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1 to 3.3 have in common; their `factor` is the largest of the tensor."""
FIX = "give the checkpoint that it was made from, in safetensors"


def settle(gguf: Path, model: PreTrainedModel) -> None:
    """UserError where the model is not what the file holds; its rotary settings are completed in place."""
    reader = GGUFReader(gguf)
    sizes = {str(tensor.name): int(tensor.n_elements) for tensor in reader.tensors}
    aside = ASIDE | ({"output.weight"} if model.config.tie_word_embeddings else set())
    held = sum(size for name, size in sizes.items() if name not in aside)
    read = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    # What a model has beside the file, buffers or made-up tensors, is told by names. Layers that share another's keys
    # and values (Gemma 4) have weights of their own in a file, which nothing reads.
    if held > read and not getattr(model.config, "num_kv_shared_layers", 0):
        raise UserError(
            f"model: {gguf}: it holds {held:,} numbers, and the {model.config.model_type} that transformers makes of "
            f"it has {read:,}, so some would be left out; {FIX}"
        )
    _keep_frequencies(gguf, model, reader, {*sizes})


def _keep_frequencies(gguf: Path, model: PreTrainedModel, reader: Any, names: set[str]) -> None:
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kind = reader.fields.get(f"{reader.fields['general.architecture'].contents()}.rope.scaling.type")
    said = None if kind is None else kind.contents()
    if rope.get("rope_type") != "default" or not (names & ASIDE or said not in {None, "none"}):
        return
    if FACTORS in names:
        factors = torch.tensor(np.array(next(one.data for one in reader.tensors if one.name == FACTORS)).ravel())
        plain = 1 / factors / rope["rope_theta"] ** (torch.arange(len(factors)) / len(factors))
        config.rope_parameters = {**rope, **LLAMA3, "rope_type": "llama3", "factor": factors.max().item()}
        found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if found.shape == plain.shape and torch.allclose(found, plain, rtol=1e-3, atol=0):
            return
    what = f"rope.scaling.type is {said}" if said else f"{min(names & ASIDE)}"
    raise UserError(
        f"model: {gguf}: its rotary frequencies are scaled ({what}), which transformers does not read; {FIX}"
    )
