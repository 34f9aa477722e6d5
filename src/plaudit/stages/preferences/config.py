"""Settings of preferences: what is sampled, and who ranks it."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from plaudit.config import StrictConfig

HUMAN_ONLY = ("labels", "overlap", "database")
SIMULATED_ONLY = ("noise", "tie_margin")


class PreferencesConfig(StrictConfig):
    """Sampling and ranking of replies."""

    rankings: list[Path] = Field([])
    """Rankings or pairs by people, of any format of data.md, a file or several; none samples and simulates. Beside
    annotator human they are learnt from together with what people rank."""
    unpaired: Path | None = None
    """Replies that people liked or not (prompt, completion, label): beside rankings or alone, when nothing is sampled
    unless annotator is human."""
    annotator: Literal["simulated", "human"] = "simulated"
    """Who ranks what is sampled: a program, or people on the labelling page, for whom the run waits (labelling.md)."""
    labels: int | None = Field(None, ge=1)
    """Human only: rankings by people after which the run goes on; null waits for all of them."""
    overlap: int = Field(1, ge=1)
    """Human only: people who rank each set of replies; 2 or 3 make agreement measurable."""
    database: str | None = Field(None, min_length=1)
    """Human only: the label database, a file or a PostgreSQL URL without password; null is label/labels.sqlite of the
    run folder."""
    train_prompts: int = Field(320, ge=1)
    """How many prompts of split train get replies (all held-out prompts do too, to test the reward model)."""
    replies: int = Field(4, ge=2)
    """K: replies a prompt, ranked against each other."""
    noise: float = Field(0.1, ge=0)
    """Std of the Gaussian noise the simulated annotator adds to its utility, which lies in [−3, 1]."""
    tie_margin: float = Field(0.1, ge=0)
    """The simulated annotator gives replies within this of the best of their group its rank."""

    @field_validator("rankings", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str | Path) else value

    @field_validator("database")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and urlsplit(value).password is not None:
            raise ValueError("a recipe holds no secret: leave the password out, and give it in PGPASSWORD or ~/.pgpass")
        return value

    @property
    def samples(self) -> bool:
        """Whether replies are sampled, to be ranked."""
        return self.annotator == "human" or (not self.rankings and self.unpaired is None)

    @model_validator(mode="after")
    def _nothing_dead(self) -> "PreferencesConfig":
        files = ("rankings", "unpaired")
        if not self.samples and (dead := [name for name in self.given() if name not in files]):
            paths = {"rankings": ", ".join(map(str, self.rankings)), "unpaired": self.unpaired}
            named = ", ".join(f"{name}={paths[name]}" for name in self.given(*files))
            raise ValueError(f"nothing is sampled with {named}: {', '.join(dead)} would do nothing")
        if dead := self.given(*(HUMAN_ONLY if self.annotator == "simulated" else SIMULATED_ONLY)):
            raise ValueError(f"{', '.join(dead)} would do nothing with annotator={self.annotator}")
        return self
