"""Weight averaging: one reward model whose weights are the mean of those of the members of an ensemble.

Ramé et al. 2024 (WARM, arXiv:2401.12187): the mean of weights that share their start keeps what the members agree on,
and costs no more to score with than one of them. Ours are LoRA members, whose heads start equal; the paper's are whole
models whose heads come from linear probing.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit.data.files import whole_folder, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def average_adapters(folders: Sequence[Path], to: Path) -> None:
    """Write the adapter whose update is exactly the mean of those of `folders`, in PEFT's own format.

    Σ_m (alpha/r)·B_m·A_m / M = alpha/(M·r) · [B_1 … B_M]·[A_1; …; A_M]: concatenated factors of rank M·r under the
    same alpha. No number is rounded, whatever the adapters' format. `to` may be one of `folders`.
    """
    config = json.loads((folders[0] / CONFIG).read_text(encoding="utf-8"))
    members = [load_file(folder / WEIGHTS) for folder in folders]
    joined: dict[str, Tensor] = {}
    for name in members[0]:
        kind = next(kind for kind in ("lora_A", "lora_B") if f".{kind}." in name)
        joined[name] = torch.cat([member[name] for member in members], dim=0 if kind == "lora_A" else 1).contiguous()
    assert not config["use_rslora"] and not config["rank_pattern"] and not config["alpha_pattern"]
    config["r"] *= len(members)
    with whole_folder(to) as part:
        save_file(joined, part / WEIGHTS, metadata={"format": "pt"})
        write_json(part / CONFIG, config)


def average_heads(heads: Sequence[Tensor]) -> Tensor:
    """The mean of weights [D]: Σ_m w_m / M."""
    return torch.stack(list(heads)).mean(dim=0)
