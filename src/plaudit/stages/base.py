"""What every stage is given: the run's folder, seed, machine, model source and data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from plaudit.data.chat import ChatFormat
from plaudit.data.files import write_json
from plaudit.data.formats import FORMATS
from plaudit.data.table import DemonstrationTable
from plaudit.dist.machine import Machine
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.guard.invariants import check_finite
from plaudit.models.load import load_tokenizer
from plaudit.models.optimiser import MasterAdamW
from plaudit.records import Prompt, Ranking
from plaudit.run.display import stage_table
from plaudit.run.folder import RunFolder

Schedule = Literal["cosine", "linear", "constant"]


class StageConfig(BaseModel):
    """Frozen, refuses unknown keys, and shows a field's docstring as its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, and pydantic would take true for 1.
        kinds = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & set(get_args(kinds) or (kinds,)):
            raise ValueError("a number is needed, not a truth value")
        return value


def known_format(value: str | None) -> str | None:
    """A format of rows (data/formats.py) by its name, or None to detect it."""
    if value is not None and value not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return value


class DataConfig(StageConfig):
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


class CheckpointConfig(StageConfig):
    """How often a running stage saves itself, so that it can go on after a kill."""

    every_minutes: float = Field(0.25, gt=0)
    """Minutes between two saves; stretched where saving would take more than a fiftieth of the time."""
    every_steps: int | None = Field(None, ge=1)
    """Saves also after so many optimiser steps (SFT, reward model), updates (PPO) or batches (sampling)."""
    keep: int = Field(2, ge=1)
    """Checkpoints of the running stage that stay; while a new one is written there is one more."""
    keep_finished: bool = False
    """Keep those of a stage that ended, optimiser and all; otherwise they are deleted."""


@dataclass(frozen=True)
class Run:
    """One run, as a stage sees it."""

    folder: RunFolder
    seed: int
    machine: Machine
    model: str
    system: str | None
    prompts: tuple[Prompt, ...]
    demonstrations: DemonstrationTable
    rankings: tuple[Ranking, ...] | None = None
    """Rankings by people, where the recipe has them."""
    mixed: Mapping[Path, DemonstrationTable] = field(default_factory=dict)
    """Other files of demonstrations that sft.mixture names."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """What results depend on and a checkpoint must have been made with: recipe, data, code, versions, machine."""
    resume: bool = False
    """Whether a stage goes on from its checkpoint."""
    inexact: bool = False
    """Whether it may do so with other code, versions or another machine."""
    ranks: Ranks = ALONE
    """The processes that share the work of the stages that are divided (docs/distributed.md)."""

    @property
    def sft_model(self) -> Path:
        """The merged SFT model: the base of every later stage."""
        return self.folder.require("sft/model", "sft")

    def chat(self, source: str | Path) -> ChatFormat:
        return ChatFormat(load_tokenizer(str(source)), self.system)

    def split(self, *names: str) -> list[Prompt]:
        """Prompts of the given splits, in file order."""
        return [prompt for prompt in self.prompts if prompt.split in names]

    def finish(
        self,
        stage: str,
        title: str,
        summary: dict[str, Any],
        shown: Sequence[str],
        more: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write the stage's summary.json and print its table: the numbers `shown`, then the rows of `more`."""
        write_json(self.folder.stage(stage) / "summary.json", summary)
        stage_table(title, {**{name: summary[name] for name in shown}, **(more or {})})
        return summary


def optimiser_step(
    optimiser: MasterAdamW, schedule: torch.optim.lr_scheduler.LRScheduler, max_grad_norm: float, where: str
) -> float:
    """Clip, step, advance the schedule and clear the gradients; returns the norm before clipping.

    A non-finite gradient stops the run before the step.
    """
    norm = optimiser.gather(max_grad_norm)
    check_finite("the gradient norm", norm, where)
    optimiser.step()
    schedule.step()
    return norm


def schedule_of(
    optimiser: torch.optim.Optimizer, steps: int, warmup: int, shape: Schedule, starts: Sequence[int] = ()
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over `warmup` steps, then a half cosine or a line down to a tenth of the peak, or the peak.

    `starts[i]` is the step at which group i begins, 0 where nothing is said: it waits at its first rate until then.
    """

    def factor(start: int, at: int) -> float:
        step = max(0, at - start)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - start - warmup))
        left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[shape]
        return 0.1 + 0.9 * left

    begins = [*starts, *[0] * (len(optimiser.param_groups) - len(starts))]
    return torch.optim.lr_scheduler.LambdaLR(optimiser, [partial(factor, start) for start in begins])


def move_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Put a fresh schedule where it stands after `step` steps; its rates are functions of the step alone."""
    schedule.last_epoch = step
    rates = [peak * factor(step) for peak, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
