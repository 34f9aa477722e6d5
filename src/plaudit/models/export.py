"""Exports in the ecosystem's own formats, so that no Plaudit is needed to use what it trained."""

from pathlib import Path

import torch

from plaudit.data.chat import ChatFormat
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, save_model
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding


def export_policy(
    roles: Roles, chat: ChatFormat, base: str, folder: Path, dtype: torch.dtype, rounding: Rounding
) -> None:
    """The policy merged into its base, as a plain causal language model with its tokenizer; `rounding` as in
    `Roles.merged_weights`."""
    model = load_model(base, dtype, torch.device("cpu"))
    merge_into(model, roles.merged_weights("policy", rounding))
    save_model(model, chat.tokenizer, folder)
