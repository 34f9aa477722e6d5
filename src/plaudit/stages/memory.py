"""What each stage of a run has in memory at its peak: the one sum for `plaudit plan`, and for the refusal before a run.

A stage holds its weights, what learns and its optimiser all the time; on top comes the largest of its phases: training
(activations, gradients, logits), sampling (cache, prompts as they are read, logits) and merging. Every rank holds all
of that. Bytes are of tensors; Python and its libraries take about half a gigabyte of a process more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from plaudit.dist.machine import Machine, memory_mb
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.short_attention import LONGEST
from plaudit.models.shapes import Shape
from plaudit.rewards.config import uses_trained
from plaudit.rollout.inprocess import BATCH_ROWS
from plaudit.stages.evaluate.loop import SAMPLED
from plaudit.stages.lengths import Lengths
from plaudit.stages.preferences.sampling import AT_ONCE
from plaudit.stages.recipe import Recipe

KEPT = "activations"
LIBRARIES = 0.5e9
"""Bytes of a process that are no tensors of the run."""


@dataclass(frozen=True)
class Device:
    """What the sum needs to know of it: bytes a number, whose chunks of logits, and the memory of one."""

    size: int
    kind: str
    memory: float


@dataclass(frozen=True)
class Need:
    """Bytes of a stage, by what they are; those of `phases` are not there at the same time."""

    stage: str
    always: dict[str, float]
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    token: float = 0.0
    """Kept of a token by a training pass."""
    longest: int = 0
    """Tokens of the longest row in training."""
    row: float = 0.0
    """Of one reply while it is sampled, its prompt and its logits included."""

    @property
    def total(self) -> float:
        return sum(self.always.values()) + max((sum(phase.values()) for phase in self.phases.values()), default=0.0)

    def largest(self, memory: float) -> tuple[int, int]:
        """(rows of the longest kind in a training pass, replies sampled at once) that `memory` has room for."""
        free = memory - sum(self.always.values())
        others = [sum(v for k, v in phase.items() if k != KEPT) for phase in self.phases.values() if KEPT in phase]
        rows = (free - max(others)) / (self.token * self.longest) if self.token else 0
        return max(0, int(rows)), max(0, int(free / self.row)) if self.row else 0


def needs_of(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device) -> list[Need]:
    """Of every stage of the recipe that computes."""
    sums = Sums(recipe, shape, lengths, device)
    found = [] if recipe.sft.skip else [sums.sft()]
    if uses_trained(recipe.ppo.rewards):
        found += [sums.preferences()] if recipe.preferences.samples else []
        found += [sums.reward()]
    return [*found, sums.ppo(), sums.evaluate()]


@dataclass(frozen=True)
class Sums:
    """The sums of one recipe, a method a stage."""

    recipe: Recipe
    shape: Shape
    lengths: Lengths
    device: Device

    @property
    def base(self) -> float:
        return self.shape.base_bytes(self.device.size, self.recipe.quantise)

    @property
    def plain(self) -> float:
        return float(self.shape.weights * self.device.size)

    @property
    def prompt(self) -> int:
        """Tokens of the longest one."""
        return max(self.lengths.prompts, default=1)

    def reply(self, stage: str) -> int:
        return self.recipe.sampling.of(stage).max_new_tokens  # type: ignore[arg-type]

    def sft(self) -> Need:
        config, most = self.recipe.sft, self.prompt + max(self.lengths.demonstrations or [0])
        longest = min(config.max_length, most)
        rows = min(config.micro_batch_size, config.batch_size)
        lora = self.recipe.lora.of("sft")
        always = self._learner(lora, full=4) | ({"copy": self.plain} if config.samples else {})
        need = self._trained("sft", always, lora, longest, rows * longest, config.gradient_checkpointing, full=4)
        if config.samples:
            need.phases["sampling"] = self._sampling("sft", config.samples, self.reply("sft"))
            need.phases["merging"] = self._merging()
        return need

    def preferences(self) -> Need:
        replies = self.recipe.preferences.train_prompts * self.recipe.preferences.replies
        phases = {"sampling": self._sampling("preferences", min(AT_ONCE, replies), self.reply("preferences"))}
        return Need("preferences", {"weights": self.plain}, phases, row=self._row(self.reply("preferences")))

    def reward(self) -> Need:
        config, lora = self.recipe.reward, self.recipe.lora.of("reward")
        prompt, ranked = self.prompt, max(self.lengths.ranked or [0])
        reply = max(ranked, max(self.lengths.labelled or [0])) or self.reply("preferences")
        many = self.recipe.preferences.replies
        always = self._learner(lora, full=4, adapters=config.members)
        # Packed, a prompt is there once for all its replies; that a model cannot pack is not known here.
        whole = config.rankings_per_micro_batch * (prompt + many * reply)
        return self._trained(
            "reward", always, lora, prompt + many * reply, whole, config.gradient_checkpointing, full=4
        )

    def ppo(self) -> Need:
        config, lora = self.recipe.ppo, self.recipe.lora.of("ppo")
        reply = self.reply("ppo")
        longest = self.prompt + reply
        own = config.critic == "own" and config.has_critic
        trained = uses_trained(config.rewards)
        always = self._learner(lora, full=self.device.size, adapters=1 + own)
        if lora is None:
            always["reference"] = self.base
        if trained and (paying := self.recipe.lora.of("reward")) is not None:
            always["reward model"] = self.recipe.reward.members * self.shape.adapted(paying)[0] * self.device.size
        elif trained:
            always["reward model"] = self.plain
        if config.sampling_copy:
            always["copy"] = self.plain
        tokens = config.micro_batch_tokens or config.micro_batch_size * longest
        # A critic of its own keeps its pass too until the backward one.
        need = self._trained(
            "ppo", always, lora, longest, tokens, config.gradient_checkpointing, full=self.device.size, passes=1 + own
        )
        at_once = BATCH_ROWS[self.device.kind]
        need.phases["sampling"] = self._sampling("ppo", min(at_once, config.batch_size), reply)
        if config.sampling_copy:
            need.phases["merging"] = self._merging()
        return need

    def evaluate(self) -> Need:
        reply, many = self.reply("evaluate"), self.recipe.evaluate.replies
        phases = {"sampling": self._sampling("evaluate", min(SAMPLED, many * len(self.lengths.prompts)), reply)}
        return Need("evaluate", {"weights": self.plain}, phases, row=self._row(reply))

    def _learner(self, lora: LoraSettings | None, *, full: int, adapters: int = 1) -> dict[str, float]:
        """The weights, and what AdamW holds of those that learn: two moments in float32, and a float32 master where
        they are in another format. A full fine-tuning holds its weights in `full` bytes each."""
        if lora is None:
            return {"weights": float(self.shape.weights * full), "optimiser": self.shape.weights * _adamw(full)}
        learnt, size = adapters * self.shape.adapted(lora)[0], self.device.size
        return {"weights": self.base, "adapters": float(learnt * size), "optimiser": learnt * _adamw(size)}

    def _trained(
        self,
        stage: str,
        always: dict[str, float],
        lora: LoraSettings | None,
        longest: int,
        tokens: int,
        recomputed: bool,
        *,
        full: int,
        passes: int = 1,
    ) -> Need:
        size, shape = self.device.size, self.shape
        seen = longest if self.device.kind == "cpu" and longest <= LONGEST else 0
        kept = shape.checkpointed(size, lora, seen) if recomputed else shape.kept(size, lora, seen)
        one = tokens * (kept + shape.top(size))
        learnt = shape.weights if lora is None else passes * shape.adapted(lora)[0]
        number = full if lora is None else size
        # The gradients themselves, and in float32 while the optimiser takes them over.
        step = {"gradients": float(learnt * (number + (4 if number < 4 else 0)))}
        # Of PPO's rows only the replies reach the head; it comes before a critic's own pass keeps anything.
        states = tokens * self.reply("ppo") // longest if stage == "ppo" else tokens
        head = {KEPT: one, "logits": shape.chunk(size, states, self.device.kind, summed=stage == "sft")}
        back = {KEPT: passes * one, "working": tokens * shape.intermediate * size * 4.0}
        if lora is None:
            head["its gradient"] = back["the head's gradient"] = float(shape.vocabulary * shape.hidden * 4)
        if self.recipe.quantise is not None:
            back["a plain weight"] = float(shape.largest * size)
        phases = {"the head computes": head, "going backward": back, "stepping": step}
        if stage == "reward":
            del phases["the head computes"]
        row = self._row(self.reply(stage)) if stage in ("sft", "ppo") else 0.0
        return Need(stage, always, phases, passes * (kept + shape.top(size)), longest, row)

    def _row(self, reply: int) -> float:
        prompt, shape = self.prompt, self.shape
        reading = prompt * (3 * shape.intermediate + 4 * shape.hidden) * self.device.size
        return (prompt + reply) * shape.cache(self.device.size) + max(reading, shape.vocabulary * 4 * 4)

    def _sampling(self, stage: str, rows: int, reply: int) -> dict[str, float]:
        prompt, shape = self.prompt, self.shape
        reading = rows * prompt * (3 * shape.intermediate + 4 * shape.hidden) * self.device.size
        return {
            "cache": float(rows * (prompt + reply) * shape.cache(self.device.size)),
            "reading, logits": float(max(reading, rows * shape.vocabulary * 4 * 4)),
        }

    def _merging(self) -> dict[str, float]:
        """A layer's weight in float32, what is added and drawn, and rounded."""
        return {"merging": float(self.shape.largest * (3 * 4 + self.device.size))}


def _adamw(size: int) -> float:
    return 8.0 if size == 4 else 12.0


def here(machine: Machine) -> Device:
    """The device of this machine, with what tensors may take of its memory."""
    if machine.device.type == "cuda":
        return Device(machine.dtype.itemsize, "gpu", float(torch.cuda.mem_get_info(machine.device)[1]))
    kind = "cpu" if machine.device.type == "cpu" else "gpu"
    return Device(machine.dtype.itemsize, kind, memory_mb() * 1e6 - LIBRARIES)


def check_fit(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, stages: Sequence[str]) -> None:
    """UserError for one of the stages that cannot fit into the memory, with what would make it fit."""
    if not lengths.prompts:
        return  # their file is not there, which is said where it is read
    for need in needs_of(recipe, shape, lengths, device):
        if need.stage in stages and need.total > device.memory:
            change = that_would_fit(recipe, shape, lengths, device, need.stage)
            raise UserError(
                f"memory: {need.stage} needs about {gigabytes(need.total)}, and there are {gigabytes(device.memory)}: "
                f"set {change} (`plaudit plan` shows what takes it)"
            )


CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gradient_checkpointing=true", {"gradient_checkpointing": True}),
    ("micro-batches of one row", {"micro_batch_size": 1, "rankings_per_micro_batch": 1}),
    ("quantise=nf4", {"quantise": "nf4"}),
    ("ppo.sampling_copy=false", {"sampling_copy": False}),
)


def that_would_fit(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, stage: str) -> str:
    """What to change, the least first, so that a stage fits; what is left to do where none of it is enough."""
    taken: list[str] = []
    for said, changed in _changed(recipe, stage):
        taken.append(said)
        if _total(changed, shape, lengths, device, stage) <= device.memory:
            return " and ".join(taken)
    tried = f", since {', '.join(taken)} are not enough" if taken else ""
    return f"a smaller model, or shorter rows{tried}"


def _total(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, stage: str) -> float:
    return next(need.total for need in needs_of(recipe, shape, lengths, device) if need.stage == stage)


def _changed(recipe: Recipe, stage: str) -> Iterator[tuple[str, Recipe]]:
    """The recipe with one change more each time."""
    for said, values in CHANGES:
        section = getattr(recipe, stage)
        if "quantise" in values:
            lora = stage not in ("sft", "reward", "ppo") or recipe.lora.of(stage) is not None  # type: ignore[arg-type]
            if recipe.quantise is None and lora and stage in ("sft", "reward", "ppo"):
                recipe = recipe.model_copy(update=values)
                yield said, recipe
            continue
        own = {k: v for k, v in values.items() if hasattr(section, k) and getattr(section, k) not in (v, None)}
        if own:
            own |= {"micro_batch_tokens": None} if "micro_batch_size" in own and stage == "ppo" else {}
            recipe = recipe.model_copy(update={stage: section.model_copy(update=own)})
            key = (
                said
                if said.startswith("ppo.")
                else ", ".join(f"{stage}.{k}={str(v).lower()}" for k, v in own.items() if v is not None)
            )
            yield key, recipe


def gigabytes(size: float) -> str:
    """As people say it."""
    return f"{size / 1e9:.1f} GB"
