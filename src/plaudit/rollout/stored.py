"""Rollouts that were stored, one safetensors file an update: which there are, and what is in one."""

from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plaudit.errors import UserError
from plaudit.models.tokens import Tokens
from plaudit.rollout.batch import RolloutBatch

# What every rollout has; values, returns and others are there where the recipe makes them.
ALWAYS = [one.name for one in (*fields(Tokens), *fields(RolloutBatch)) if one.type is Tensor] + ["mask_BT"]


def stored_rollouts(run: Path) -> dict[int, Path]:
    """Update -> file, in the order of the updates; empty where the run has stored none."""
    files = {int(file.stem): file for file in (run / "ppo/rollouts").glob("*.safetensors")}
    return dict(sorted(files.items()))


def read_rollout(file: Path) -> dict[str, Tensor]:
    """The tensors by their glossary names; UserError for a file that is damaged or of another version of Plaudit."""
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: cannot be read: cut short or damaged ({error})") from error
    missing = [name for name in ALWAYS if name not in tensors]
    if missing:
        raise UserError(f"{file}: {', '.join(missing)} is missing: another version of Plaudit wrote it; run PPO again")
    return tensors
