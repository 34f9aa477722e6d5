"""Settings of what PPO is paid by."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from plaudit.config import StrictConfig

KINDS = ("trained", "function", "endpoint", "model")


# Which settings a kind of source reads, beside its own key and weight.
SETTINGS: dict[str, tuple[str, ...]] = {
    "trained": (),
    "function": ("mean", "std"),
    "endpoint": ("mean", "std", "timeout", "retries", "batch_size", "auth_env"),
    "model": ("mean", "std", "batch_size"),
}


class RewardSource(StrictConfig):
    """One thing PPO is paid by: exactly one of trained, function, endpoint and model."""

    trained: bool = False
    """The run's own reward model, with the normalisation stored beside it."""
    function: str | None = Field(None, min_length=3)
    """A Python function on texts, MODULE:NAME: a file beside the recipe, or something installed."""
    endpoint: str | None = Field(None, pattern=r"^https?://.+")
    """A URL that is sent texts with ids and answers scores with ids."""
    model: str | None = Field(None, min_length=1)
    """A reward model made elsewhere: a folder or a Hub id; it reads text through its own tokenizer and template."""
    weight: float = 1.0
    """Its share of the sum; not 0. Below 0 the source is paid for low scores."""
    mean: float | None = None
    """Mean of its raw scores, subtracted; null measures it (with std)."""
    std: float | None = Field(None, gt=0)
    """Standard deviation of its raw scores, divided by; null measures it (with mean)."""
    timeout: float = Field(30.0, gt=0)
    """Seconds an endpoint may take for one request."""
    retries: int = Field(3, ge=0)
    """Attempts after the first when an endpoint times out, cannot be reached, or answers 429 or 5xx."""
    batch_size: int = Field(32, ge=1)
    """Replies in one request to an endpoint, or in one forward pass of a model."""
    auth_env: str | None = Field(None, min_length=1)
    """Environment variable whose value is sent to an endpoint as the Authorization header."""
    watch: bool = False
    """Scored at evaluations and not paid: a score that PPO does not optimise, for the watch and keep_by."""

    at_least: float | str | None = None
    """A constraint, not paid by its weight: its mean raw score (of trained, the normalised one) is held at or above a
    number, or `sft`, `sft - 0.03`, `sft + 0.1`: what the SFT model has, less or more."""
    of_kind: str | None = Field(None, min_length=1)
    """With at_least: the constraint is about replies to prompts of this kind only."""

    @model_validator(mode="after")
    def _one_kind_and_nothing_dead(self) -> "RewardSource":
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(
                f"a reward source is exactly one of {', '.join(KINDS)}; this one has {', '.join(given) or 'none'}"
            )
        if self.endpoint is not None and urlsplit(self.endpoint).password is not None:
            raise ValueError("a recipe holds no secret: leave the password out of endpoint and name it in auth_env")
        if self.weight == 0:
            raise ValueError("weight=0 would leave the source without effect; remove it, or give watch: true")
        if self.at_least is not None and self.watch:
            raise ValueError("at_least and watch exclude each other: what is held up is no score that PPO ignores")
        if self.of_kind is not None and self.at_least is None:
            raise ValueError(f"of_kind={self.of_kind} would do nothing without at_least")
        if self.at_least is not None:
            self.bound(0.0)
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together, or neither")
        used = {given[0], "watch", "at_least", "of_kind", *SETTINGS[given[0]]}
        used = used - {"mean", "std"} if self.at_least is not None else used if self.watch else used | {"weight"}
        fields = type(self).model_fields
        dead = [name for name, field in fields.items() if name not in used and getattr(self, name) != field.default]
        if dead:
            raise ValueError(f"{', '.join(dead)} would do nothing for this {given[0]} source")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind))

    def bound(self, sft: float) -> float:
        """The least that `at_least` allows, where the SFT model has `sft`; ValueError for another text."""
        told = str(self.at_least)
        found = re.fullmatch(r"(?:(sft)\s*)?([-+]?\s*\d+(?:\.\d+)?(?:e[-+]?\d+)?)?", told.replace("−", "-").strip())
        if not told.strip() or found is None or (found[1] and found[2] and found[2][0] not in "+-"):
            raise ValueError(f"at_least={told!r}: a number, or sft, sft - 0.03, sft + 0.1")
        return (sft if found[1] else 0.0) + (float(found[2].replace(" ", "")) if found[2] else 0.0)

    def located(self, home: Path) -> "RewardSource":
        """The source with a function or a model that lies in the recipe's folder `home` given by its whole path."""
        if self.function is not None:
            module, _, name = self.function.rpartition(":")
            file = home / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
            return self.model_copy(update={"function": f"{file}:{name}"}) if file.is_file() else self
        if self.model is not None and (home / self.model).is_dir():
            return self.model_copy(update={"model": str(home / self.model)})
        return self


def pays(source: RewardSource) -> bool:
    """Whether it is part of the sum that the policy is paid."""
    return not source.watch and source.at_least is None


def uses_trained(sources: Sequence[RewardSource]) -> bool:
    """Whether the run's own reward model is asked for anything; without any source it alone pays."""
    return not sources or any(source.trained for source in sources)


def earns_by_trained(sources: Sequence[RewardSource]) -> bool:
    """Whether what a reply earns depends on it: not where it is only watched."""
    return not sources or any(source.trained and not source.watch for source in sources)


def names_of(sources: Sequence[RewardSource]) -> list[str]:
    """A name a source for logs: its kind, numbered from the second of a kind on."""
    kinds = [source.kind for source in sources]
    before = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    return [kind if not n else f"{kind}_{n + 1}" for kind, n in zip(kinds, before, strict=True)]
