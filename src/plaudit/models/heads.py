"""The scalar heads: one linear layer each, kept in float32, saved apart from the base."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.errors import UserError

HEAD = "head.safetensors"


class ScalarHead(nn.Module):
    """hidden [..., D] -> scalar [...]; computed in float32 whatever the trunk's format."""

    def __init__(self, hidden_size: int, *, bias: bool, to_load: bool = False):
        """Zero; with `to_load` the weights are not a number, so that a head that was never loaded cannot pass."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), math.nan if to_load else 0.0))
        # Of one dimension, not none: FSDP2 shards no scalars.
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        out = hidden.float() @ self.weight
        return out if self.bias is None else out + self.bias


def head_file(member: int = 0) -> str:
    """File name of the head of a member of the reward model."""
    return HEAD if member == 0 else f"head_{member}.safetensors"


def save_head(head: nn.Module, folder: Path, member: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / head_file(member))


def load_head(head: nn.Module, folder: Path, member: int = 0) -> None:
    """Fill `head` from `folder`; a missing or different head is an error, never random weights."""
    path = folder / head_file(member)
    if not path.is_file():
        raise UserError(f"{path} is missing: without it the model has no score; train the reward model again")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read: cut short or damaged ({error}); copy it again") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        raise UserError(f"{path}: holds {found}, the model needs {wanted}; it belongs to another model")
    head.load_state_dict(tensors)
