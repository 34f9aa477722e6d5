"""Rollouts that were stored, one safetensors file an update: which there are, and what is in one. And the replies that
servers sampled, stored before anything is made of them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plaudit.data.files import write_bytes
from plaudit.data.hashes import sha256_json
from plaudit.dist.ranks import Ranks
from plaudit.errors import RunStopped, UserError
from plaudit.models.tokens import Tokens
from plaudit.rollout.batch import RolloutBatch

SAMPLED, REPLAYED = "sampled", "replayed"
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


class StoredReplies:
    """What servers sampled in PPO, one file an asking in ppo/sampled. Weights are a function of recipe and these.

    A server's numbers may round otherwise the next time, so a stage that goes on takes the replies that are there
    instead of asking again; a replay takes all of them from the run that it repeats. The name of a file has the policy
    that was sampled in it: replies of other weights are never found.
    """

    def __init__(self, folder: Path, replayed: Path, ranks: Ranks):
        """`folder` is that of the stage; `replayed`, where it is there, has every reply of a run that is repeated."""
        self._folder, self._ranks = folder / SAMPLED, ranks
        self._replayed = replayed if replayed.is_dir() else None

    def read(self, stream: str, step: int, policy: str, asked: Any) -> list[Any] | None:
        """The replies to what was `asked`, as `write` was given them; None where there are none. The first rank reads,
        for all. RunStopped where a replay has none."""
        text = ""
        file = (self._replayed or self._folder) / self._name(stream, step, policy)
        if self._ranks.first and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            text = json.dumps(found["replies"]) if found["asked"] == sha256_json(asked) else ""
        text = self._ranks.from_first(text)
        if not text and self._replayed is not None:
            raise RunStopped(
                f"{file} is not there, or answers other prompts: the policy of {stream}, step {step}, is not the one "
                "that was sampled"
            )
        return json.loads(text) if text else None

    def write(self, stream: str, step: int, policy: str, asked: Any, replies: list[Any]) -> None:
        """By the first rank, flushed to disk."""
        if self._ranks.first:
            text = json.dumps({"asked": sha256_json(asked), "replies": replies})
            write_bytes(self._folder / self._name(stream, step, policy), text.encode())

    def _name(self, stream: str, step: int, policy: str) -> str:
        return f"{stream.replace('/', '-')}-{step:05d}-{policy}.json"
