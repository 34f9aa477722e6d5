"""Settings of the run's own files."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from plaudit.config import StrictConfig
from plaudit.data.formats.columns import Columns
from plaudit.data.formats.reader import FORMATS
from plaudit.data.templates.bake import TemplateSettings
from plaudit.errors import UserError


class DataConfig(StrictConfig):
    """The run's own files, of any format of data.md; a relative path starts at the recipe's folder."""

    prompts: Path
    """Prompts: train feeds preferences and PPO, validation picks the policy, test judges it."""
    demonstrations: Path | None = None
    """Prompts with ideal replies: SFT trains on split train, the rest gives its held-out loss. Only with
    sft.skip is there none."""
    formats: dict[Path, str] = Field({})
    """Format of the rows (a name of data.md) by file, of any file that the recipe names; where nothing is said it is
    detected, and printed."""
    columns: dict[Path, dict[str, str]] = Field({})
    """The file's names of our columns, by file: {pairs.csv: {prompt: question, chosen: better}}."""
    split: Literal["auto", "rows"] | None = None
    """What holds a row out: rows is the split that it names (train where it names none), auto a hash of its prompt, the
    same in every file; null is auto where no row of any file names a split."""
    validation: float = Field(0.1, gt=0, lt=1)
    """With split auto: the share of the prompts that pick the policy."""
    test: float = Field(0.1, gt=0, lt=1)
    """With split auto: the share of the prompts that judge it."""
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    """A bad row of any data file stops the run, or is moved to data/quarantine.jsonl of the run folder and counted."""
    system: str | None = Field(None, min_length=1)
    """System message put before every prompt that has none; null leaves it to the chat template."""
    ignore_message_keys: list[str] = Field([])
    """Keys of messages (weight, name, tool_calls) that are left out and counted; any other than role and content makes
    a bad row."""
    chat_template: str | None = Field(None, min_length=1)
    """A Jinja file that takes the place of the model's chat template, or the name of one of its templates."""
    template_kwargs: dict[str, Any] = Field({})
    """Variables of the chat template, {enable_thinking: false}: fixed for the run and in what it exports. strftime_now
    is the day that a template sees which writes the date; left out, it is the day on which the run begins."""
    end_of_turn: str | None = Field(None, min_length=1)
    """A special token that ends a turn in place of the one that the chat template writes, such as the model's own EOS
    where the template's was never trained."""

    @property
    def template(self) -> TemplateSettings:
        """What is settled about the chat template."""
        return TemplateSettings(self.chat_template, self.template_kwargs, self.end_of_turn)

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: dict[Path, str]) -> dict[Path, str]:
        for path, name in formats.items():
            if name not in FORMATS:
                raise ValueError(f"{path}: must be one of {', '.join(FORMATS)}, found {name!r}")
        return formats

    @field_validator("columns")
    @classmethod
    def _ours(cls, columns: dict[Path, dict[str, str]]) -> dict[Path, dict[str, str]]:
        for path, given in columns.items():
            try:
                Columns(path, given)
            except UserError as error:
                raise ValueError(f"{path}: {error}") from error
        return columns

    @model_validator(mode="after")
    def _shares(self) -> "DataConfig":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation={self.validation:g} and test={self.test:g} leave nothing to train on")
        if self.split == "rows" and (dead := self.given("validation", "test")):
            raise ValueError(f"{', '.join(dead)} would do nothing with split=rows")
        return self
