"""What a saved reward model was trained with."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from plaudit.algo.ensembles import aggregate
from plaudit.algo.names import Aggregation
from plaudit.algo.rewards import normalise
from plaudit.data.files import write_json
from plaudit.data.hashes import sha256_json
from plaudit.errors import UserError

CONTRACT = "reward.json"


@dataclass(frozen=True)
class RewardContract:
    """What a saved reward model was trained with: its scores mean something only under the same rules.

    `mean` and `std` normalise raw scores, one entry a member; `aggregate`, with its `k` or `beta`, makes one score of
    those of the members; `temperature` divides a difference of such scores where a probability is stated (`confidence`)
    and never the scores. `eos_id`, `pad_id`, `system` and the template fix how a text becomes tokens. `golden` holds
    the raw scores of fixed texts [probe][member], computed in `dtype`; `files` and `base` the SHA-256 of the model's
    own files and of those of the SFT model it stands on; `model` is the folder of a merged model, null for adapters.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    eos_id: int
    system: str | None
    template_sha256: str
    aggregate: Aggregation = "mean"
    k: float = 1.0
    beta: float = 1.0
    temperature: float = 1.0
    log_nu: tuple[float, ...] | None = None
    pad_id: int | None = None
    template: str = ""
    dtype: str = "float32"
    golden: tuple[tuple[float, ...], ...] = ()
    rankings_sha256: str | None = None
    model: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)

    def normalised(self, raw_scores_BM: Tensor) -> Tensor:
        """One score a sequence, [B]: each member's are normalised by its own moments, then aggregated."""
        assert raw_scores_BM.dim() == 2 and raw_scores_BM.shape[1] == len(self.mean), raw_scores_BM.shape
        mean_M, std_M = raw_scores_BM.new_tensor(self.mean), raw_scores_BM.new_tensor(self.std)
        return aggregate(normalise(raw_scores_BM, mean_M, std_M).T, self.aggregate, k=self.k, beta=self.beta)

    def confidence(self, margins: Tensor) -> Tensor:
        """Stated probability that the first of two replies is the better one; of differences of `normalised` scores."""
        return torch.sigmoid(margins / self.temperature)

    def of_member(self, member: int, temperature: float) -> "RewardContract":
        """That of one member of an ensemble by itself."""
        log_nu = None if self.log_nu is None else self.log_nu[member : member + 1]
        golden = tuple((row[member],) for row in self.golden)
        one = replace(self, mean=(self.mean[member],), std=(self.std[member],), log_nu=log_nu, golden=golden)
        return replace(one, aggregate="mean", k=1.0, beta=1.0, temperature=temperature)

    def save(self, folder: Path) -> None:
        values = asdict(self)
        write_json(folder / CONTRACT, {**values, "sha256": sha256_json(values, ensure_ascii=False)})

    @classmethod
    def load(cls, folder: Path) -> "RewardContract":
        """UserError when the file is missing, damaged, changed by hand, or of another version of Plaudit."""
        path = folder / CONTRACT
        again = "train the reward model again"
        if not path.is_file():
            raise UserError(f"{path} is missing: the scores' normalisation is unknown; {again}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: damaged: not JSON ({error}); {again}") from error
        names = {one.name for one in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names | {"sha256"}:
            odd = sorted((names | {"sha256"}) ^ set(values))
            raise UserError(f"{path}: not of this version of Plaudit (fields {', '.join(odd)} differ); {again}")
        if values.pop("sha256") != sha256_json(values, ensure_ascii=False):
            raise UserError(f"{path}: its contents are not those that were saved (their SHA-256 differs); {again}")
        golden = tuple(tuple(row) for row in values["golden"])
        listed = {name: tuple(values[name]) for name in ("mean", "std")}
        log_nu = None if values["log_nu"] is None else tuple(values["log_nu"])
        return cls(**{**values, **listed, "golden": golden, "log_nu": log_nu})

    def check(self, eos_id: int, system: str | None, template_sha256: str) -> None:
        """UserError when texts would become other tokens now than in the reward stage."""
        now = {"eos_id": eos_id, "system": system, "template_sha256": template_sha256}
        for name, value in now.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"the reward model was trained with {name}={getattr(self, name)!r}, this run uses {value!r}; "
                    "its scores would mean something else: use the same tokenizer and system prompt, or train it again"
                )
