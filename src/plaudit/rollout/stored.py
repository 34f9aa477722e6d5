"""Rollouts that were stored, one safetensors file an update: which there are, and what is in one."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plaudit.errors import UserError

# What every rollout has; values, returns and others are there where the recipe makes them.
ALWAYS = (
    "tokens_BT",
    "prompt_lengths_B",
    "lengths_B",
    "mask_BT",
    "finished_B",
    "raw_scores_BM",
    "scores_B",
    "kl_BT",
    "old_logprobs_BT",
    "ref_logprobs_BT",
    "sampler_logprobs_BT",
    "rewards_BT",
    "advantages_BT",
)


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
