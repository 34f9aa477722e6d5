"""What every stage is given: the run's folder, seed, machine, model source and data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from plaudit.data.chat import ChatFormat
from plaudit.data.files import write_json
from plaudit.data.table import DemonstrationTable
from plaudit.data.templates.bake import OWN, TemplateSettings
from plaudit.dist.machine import Machine
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.models.config import LoraSettings, Quantise
from plaudit.models.load import load_chat, load_model
from plaudit.records import Labelled, Prompt, Ranking
from plaudit.rollout.config import RolloutConfig, SamplingConfig
from plaudit.rollout.engine import Engine
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.rollout.vllm import VllmEngine
from plaudit.run.branch import rounds_before
from plaudit.run.display import stage_table
from plaudit.run.folder import RunFolder, finished_model, sft_files
from plaudit.train.config import CheckpointConfig, OptimiserConfig, RoundsConfig


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
    template: TemplateSettings = OWN
    """What is settled about the model's chat template; what the run makes carries it in its own."""
    rankings: tuple[Ranking, ...] | None = None
    """Rankings by people, where the recipe has them."""
    labels: tuple[Labelled, ...] | None = None
    """Replies that people liked or not, likewise."""
    mixed: Mapping[Path, DemonstrationTable] = field(default_factory=dict)
    """Other files of demonstrations that sft.mixture names."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """Which round it is, and how a round after the first begins."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """As the stage that is running samples."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Who samples for it."""
    quantise: Quantise | None = None
    """In which few bits the base is held; None is as it is."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """The adapter it trains; None is full fine-tuning."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """As it trains."""
    micro_batches: Mapping[str, int] = field(default_factory=dict)
    """Stage -> tokens in one pass at most, of the stages whose micro-batches are chosen for the memory there is."""
    max_length: int = 512
    """Longest demonstration in tokens, where PPO mixes some in."""
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

    @property
    def before(self) -> list[Path]:
        """The folders of the rounds before this one, the first first."""
        return rounds_before(self.folder.path, self.rounds.number)

    @property
    def last_policy(self) -> Path:
        """The policy that the round before this one kept."""
        return finished_model(self.before[-1], "ppo/model")

    def base(self, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, Path | None]:
        """The SFT model, as the roles of the reward model and PPO stand on it: merged, or the quantised model and the
        adapter that SFT trained on it. Quantised once more, the merged one would be the model without SFT: a small
        change of a weight lies within the step that its bits have."""
        device, dtype, merged = self.machine.device, dtype or self.machine.dtype, str(self.sft_model)
        if self.quantise is None:
            return load_model(merged, dtype, device), None
        if not (self.folder.path / "sft/summary.json").is_file():  # a user's own SFT model, with no adapter to lose
            return load_model(merged, dtype, device, self.quantise), None
        adapter = self.folder.require("sft/adapter", "sft")
        return load_model(self.model, dtype, device, self.quantise, tokenizer=merged), adapter

    def chat(self, source: str | Path) -> ChatFormat:
        return load_chat(str(source), self.system, self.template if str(source) == self.model else OWN)

    def engine(
        self, source: str | Path, chat: ChatFormat, rows: int = 0, *, loaded: PreTrainedModel | None = None
    ) -> Engine:
        """Samples from the model in `source` as this stage samples: from a copy of it, or from `loaded`, `rows` at a
        time; or from servers, to which it is the SFT model or the adapter that is beside it."""
        temperature = self.sampling.temperature
        if self.rollout.engine == "vllm":
            return self._served(Path(source), chat, temperature)
        model = load_model(str(source), self.machine.dtype, self.machine.device) if loaded is None else loaded
        return InProcessEngine(model, eos_id=chat.ends, temperature=temperature, batch_rows=rows)

    def _served(self, source: Path, chat: ChatFormat, temperature: float) -> VllmEngine:
        files, policies = sft_files(self.folder.path), self.folder.path / "policies"
        engine = VllmEngine(
            self.rollout.urls, files, policies, eos_id=chat.ends, temperature=temperature, ranks=self.ranks
        )
        if source.resolve() != self.sft_model.resolve():
            engine.use_adapter(source.parent / "adapter")
        return engine

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
