"""The scalar heads: one linear layer each, kept in float32, saved apart from the base."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.algo.ensembles import Aggregation, aggregate
from plaudit.algo.rewards import normalise
from plaudit.data.files import write_json
from plaudit.errors import UserError

HEAD = "head.safetensors"
CONTRACT = "reward.json"


class ScalarHead(nn.Module):
    """hidden [..., D] -> scalar [...]; computed in float32 whatever the trunk's format."""

    def __init__(self, hidden_size: int, *, bias: bool, std: float, generator: torch.Generator | None = None):
        """Weights are N(0, std²), zero for std = 0, not a number for std = nan; the bias starts at 0."""
        super().__init__()
        weight = torch.full((hidden_size,), 0.0 if std == 0 else math.nan)
        self.weight = nn.Parameter(weight.normal_(0, std, generator=generator) if std > 0 else weight)
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

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
    tensors = load_file(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        raise UserError(f"{path}: holds {found}, the model needs {wanted}; it belongs to another model")
    head.load_state_dict(tensors)


@dataclass(frozen=True)
class RewardContract:
    """What a saved reward model was trained with: its scores mean something only under the same rules.

    `mean` and `std` normalise raw scores, one entry a member; `template_sha256`, `eos_id` and `system` fix how a text
    becomes tokens; `aggregate`, with its `k` or `beta`, makes one score of those of the members.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    eos_id: int
    system: str | None
    template_sha256: str
    aggregate: Aggregation = "mean"
    k: float = 1.0
    beta: float = 1.0

    def normalised(self, raw_scores_BM: Tensor) -> Tensor:
        """One score a sequence, [B]: each member's are normalised by its own moments, then aggregated."""
        assert raw_scores_BM.dim() == 2 and raw_scores_BM.shape[1] == len(self.mean), raw_scores_BM.shape
        mean_M, std_M = raw_scores_BM.new_tensor(self.mean), raw_scores_BM.new_tensor(self.std)
        return aggregate(normalise(raw_scores_BM, mean_M, std_M).T, self.aggregate, k=self.k, beta=self.beta)

    def save(self, folder: Path) -> None:
        write_json(folder / CONTRACT, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RewardContract":
        path = folder / CONTRACT
        if not path.is_file():
            raise UserError(f"{path} is missing: the scores' normalisation is unknown; train the reward model again")
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def check(self, eos_id: int, system: str | None, template_sha256: str) -> None:
        """UserError when texts would become other tokens now than in the reward stage."""
        now = {"eos_id": eos_id, "system": system, "template_sha256": template_sha256}
        for name, value in now.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"the reward model was trained with {name}={getattr(self, name)!r}, this run uses {value!r}; "
                    "its scores would mean something else: use the same tokenizer and system prompt, or train it again"
                )
