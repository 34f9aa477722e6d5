"""Settings of the run's own files."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from plaudit.config import StrictConfig
from plaudit.data.formats.reader import FORMATS


def known_format(value: str | None) -> str | None:
    """A format of rows (data/formats) by its name, or None to detect it."""
    if value is not None and value not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return value


class DataConfig(StrictConfig):
    """The run's own files, of any format of data.md; a relative path starts at the recipe's folder."""

    prompts: Path
    """Prompts: train feeds preferences and PPO, validation picks the policy, test judges it."""
    demonstrations: Path
    """Prompts with ideal replies: SFT trains on split train, the rest gives its held-out loss."""
    format: str | None = None
    """Format of the rows of demonstrations (a name of data.md); null detects it and prints what it found."""
    prompts_format: str | None = None
    """The same for prompts."""
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    """A bad row of any data file stops the run, or is moved to data/quarantine.jsonl of the run folder and counted."""
    system: str | None = Field(None, min_length=1)
    """System message put before every prompt that has none; null leaves it to the chat template."""

    _formats = field_validator("format", "prompts_format")(known_format)
