"""What each stage of a run has in memory at its peak: the one sum for `plaudit plan`, and for the refusal before a run.

A stage holds its weights, what learns and its optimiser all the time; on top comes the largest of its phases: training
(activations, gradients, logits), sampling (cache, prompts as they are read, logits) and merging. Every rank holds all
of that, and of a base that they hold together its part. Bytes are of tensors; Python and its libraries take about half
a gigabyte of a process more.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from plaudit.config import AutoOrCount
from plaudit.dist.machine import Machine, free_mb, memory_mb
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.short_attention import LONGEST
from plaudit.models.shapes import Shape
from plaudit.rewards.config import uses_trained
from plaudit.rollout.inprocess import BATCH_ROWS
from plaudit.stages.evaluate.judging import ROWS, SAMPLED
from plaudit.stages.lengths import Lengths
from plaudit.stages.preferences.sampling import AT_ONCE
from plaudit.stages.recipe import Recipe

KEPT = "activations"
SHARE = {"cpu": 0.5, "gpu": 0.85}
"""Of the free memory for what the sum says: the sum is right within a twentieth, a GPU's allocator rounds up, and on a
CPU others take some while the run lasts."""
LIBRARIES = 0.5e9
"""Bytes of a process that are no tensors of the run."""


@dataclass(frozen=True)
class Device:
    """What the sum needs to know of it: bytes a number, whose chunks of logits, and the memory of one."""

    size: int
    kind: str
    memory: float
    free: float = math.inf
    """What of it nobody had taken when that was asked."""
    parts: int = 1
    """In how many the ranks hold the base of SFT and PPO."""

    @property
    def room(self) -> float:
        """What a stage may fill with micro-batches that it chooses itself."""
        return SHARE[self.kind] * min(self.memory, self.free)


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
    tokens: int = 0
    """Of one pass at most, and of a whole step."""
    step: int = 0

    @property
    def passing(self) -> float:
        """Bytes while it passes through the model: what the size of a pass changes."""
        phases = [sum(phase.values()) for phase in self.phases.values() if KEPT in phase]
        return sum(self.always.values()) + max(phases, default=0.0)

    @property
    def total(self) -> float:
        return sum(self.always.values()) + max((sum(phase.values()) for phase in self.phases.values()), default=0.0)

    def largest(self, memory: float) -> tuple[int, int]:
        """(rows of the longest kind in a training pass, replies sampled at once) that `memory` has room for."""
        free = memory - sum(self.always.values())
        others = [sum(v for k, v in phase.items() if k != KEPT) for phase in self.phases.values() if KEPT in phase]
        rows = (free - max(others)) / (self.token * self.longest) if self.token else 0
        return max(0, int(rows)), max(0, int(free / self.row)) if self.row else 0


def needs_of(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, asked: Sequence[str] = ()) -> list[Need]:
    """Of every stage of the recipe that computes, and of those beside PPO that are `asked` for by name."""
    sums = Sums(recipe, shape, lengths, device)
    found = [] if recipe.sft.skip else [sums.sft()]
    if uses_trained(recipe.ppo.rewards):
        found += [sums.preferences()] if recipe.preferences.samples else []
        found += [sums.reward()]
    found += [sums.ppo()]
    beside = (*recipe.baselines, *asked)
    found += [sums.rejection()] if "rejection" in beside else []
    found += [sums.dpo()] if "dpo" in beside else []
    return [*found, sums.evaluate()]


def micro_batches_of(needs: Sequence[Need], recipe: Recipe) -> dict[str, Any]:
    """Stage -> tokens of a pass and of a whole step, of the stages that choose for the memory there is."""
    keys = {"sft": "micro_batch_size", "ppo": "micro_batch_size"} | dict.fromkeys(
        ("reward", "dpo"), "rankings_per_micro_batch"
    )
    chosen = {stage for stage, key in keys.items() if getattr(getattr(recipe, stage), key) == "auto"} | {"evaluate"}
    chosen |= {"rejection"} if "sft" in chosen else set()
    chosen -= {"ppo"} if recipe.ppo.micro_batch_tokens else set()
    return {need.stage: {"tokens": need.tokens, "step": need.step} for need in needs if need.stage in chosen}


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

    def _passes(self, asked: AutoOrCount, longest: int, rows: int, need: Callable[[int], Need]) -> Need:
        """`need` of so many tokens a pass: as many of the longest rows as are `asked` for. Of a step of `rows` with
        auto: the whole, or the half, quarter ... of it that there is room for, and one row at least. Halves, so that
        a little memory more or less changes nothing."""
        step = rows * longest
        if asked != "auto":
            return replace(need(min(asked, rows) * longest), step=step)
        tokens = step
        while (found := need(tokens)).passing > self.device.room and tokens > longest:
            tokens = max(longest, tokens // 2)
        return replace(found, step=step)

    def sft(self) -> Need:
        most = self.prompt + max(self.lengths.demonstrations or [0])
        return self._demonstrated("sft", self.recipe.lora.of("sft"), min(self.recipe.sft.max_length, most))

    def rejection(self) -> Need:
        """SFT on sampled replies, of a base that is held as it is."""
        plain = replace(self, recipe=self.recipe.model_copy(update={"quantise": None}))
        return plain._demonstrated("rejection", self.recipe.lora.of("ppo"), self.prompt + self.reply("ppo"))

    def _demonstrated(self, stage: str, lora: LoraSettings | None, longest: int) -> Need:
        config = self.recipe.sft
        parts = self.device.parts if stage == "sft" else 1
        always = self._learner(lora, full=4, parts=parts) | ({"copy": self.plain} if config.samples else {})

        def need(tokens: int) -> Need:
            return self._trained(stage, always, lora, longest, tokens, config.gradient_checkpointing, full=4)

        found = self._passes(config.micro_batch_size, longest, config.batch_size, need)
        if config.samples:
            found.phases["sampling"] = self._sampling("sft", config.samples, self.reply("sft"))
            found.phases["merging"] = self._merging()
        return found

    def preferences(self) -> Need:
        replies = self.recipe.preferences.train_prompts * self.recipe.preferences.replies
        phases = {"sampling": self._sampling("preferences", min(AT_ONCE, replies), self.reply("preferences"))}
        return Need("preferences", {"weights": self.plain}, phases, row=self._row(self.reply("preferences")))

    def reward(self) -> Need:
        config, lora = self.recipe.reward, self.recipe.lora.of("reward")
        always = self._learner(lora, full=4, adapters=config.members)
        # Packed, a prompt is there once for all its replies; that a model cannot pack is not known here.
        longest = self.prompt + self.recipe.preferences.replies * self._ranked

        def need(tokens: int) -> Need:
            return self._trained("reward", always, lora, longest, tokens, config.gradient_checkpointing, full=4)

        return self._passes(config.rankings_per_micro_batch, longest, config.rankings_per_step, need)

    def dpo(self) -> Need:
        config, lora = self.recipe.dpo, self.recipe.lora.of("ppo")
        always = self._learner(lora, full=self.device.size)
        if lora is None:
            always["reference"] = self.base
        shared, many = self.device.kind == "cpu", self.recipe.preferences.replies
        longest = (self.prompt if shared else many * self.prompt) + many * self._ranked

        def need(tokens: int) -> Need:
            size = self.device.size
            return self._trained("dpo", always, lora, longest, tokens, config.gradient_checkpointing, full=size)

        return self._passes(config.rankings_per_micro_batch, longest, config.rankings_per_step, need)

    @property
    def _ranked(self) -> int:
        """Tokens of the longest reply that is learnt from."""
        ranked = max((*self.lengths.ranked, *self.lengths.labelled), default=0)
        return ranked or self.reply("preferences")

    def ppo(self) -> Need:
        config, lora = self.recipe.ppo, self.recipe.lora.of("ppo")
        reply, at_once = self.reply("ppo"), BATCH_ROWS[self.device.kind]
        longest = self.prompt + reply
        own, trained = config.critic == "own" and config.has_critic, uses_trained(config.rewards)
        always = self._learner(lora, full=self.device.size, adapters=1 + own, parts=self.device.parts)
        if lora is None and not config.offload_reference:
            always["reference"] = self.base
        if trained and (paying := self.recipe.lora.of("reward")) is not None:
            always["reward model"] = self.recipe.reward.members * self.shape.adapted(paying)[0] * self.device.size
        elif trained:
            always["reward model"] = self.plain
        here = self.recipe.rollout.engine == "inprocess"
        if here and config.sampling_copy:
            always["copy"] = self.plain

        def need(tokens: int) -> Need:
            # A critic of its own keeps its pass too until the backward one.
            return self._trained(
                "ppo",
                always,
                lora,
                longest,
                config.micro_batch_tokens or tokens,
                config.gradient_checkpointing,
                full=self.device.size,
                passes=1 + own,
            )

        found = self._passes(config.micro_batch_size, longest, config.minibatch_size, need)
        if lora is None and config.offload_reference:
            found.phases["judging"] = {"reference": self.base, "working": float(found.tokens * self._working)}
        if here:
            found.phases["sampling"] = self._sampling("ppo", min(at_once, config.batch_size), reply)
        if here and config.sampling_copy:
            found.phases["merging"] = self._merging()
        return found

    def evaluate(self) -> Need:
        """Replies are sampled, and then judged by passes that keep nothing."""
        reply, many = self.reply("evaluate"), self.recipe.evaluate.replies
        longest, shape, size = self.prompt + reply, self.shape, self.device.size
        sampling = self._sampling("evaluate", min(SAMPLED, many * len(self.lengths.prompts)), reply)

        def need(tokens: int) -> Need:
            head = shape.chunk(size, tokens * reply // longest, self.device.kind)
            judging = {KEPT: float(tokens * self._working), "logits": head}
            phases = {"sampling": sampling, "judging": judging}
            return Need("evaluate", {"weights": self.plain}, phases, row=self._row(reply), tokens=tokens)

        return self._passes("auto", longest, ROWS[self.device.kind], need)

    def _learner(self, lora: LoraSettings | None, *, full: int, adapters: int = 1, parts: int = 1) -> dict[str, float]:
        """The weights, and what AdamW holds of those that learn: two moments in float32, and a float32 master where
        they are in another format. A full fine-tuning holds its weights in `full` bytes each."""
        if lora is None:
            return {"weights": float(self.shape.weights * full), "optimiser": self.shape.weights * _adamw(full)}
        learnt, size = adapters * self.shape.adapted(lora)[0], self.device.size
        return {"weights": self.base / parts, "adapters": float(learnt * size), "optimiser": learnt * _adamw(size)}

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
        size, shape, few_bits = self.device.size, self.shape, self.recipe.quantise is not None
        seen = longest if self.device.kind == "cpu" and longest <= LONGEST else 0
        kept = (shape.checkpointed if recomputed else shape.kept)(size, lora, seen, few_bits=few_bits)
        one = tokens * (kept + shape.top(size))
        learnt = shape.weights if lora is None else passes * shape.adapted(lora)[0]
        number = full if lora is None else size
        # The gradients themselves, and in float32 while the optimiser takes them over.
        step = {"gradients": float(learnt * (number + (4 if number < 4 else 0)))}
        # Of PPO's rows only the replies reach the head; it comes before a critic's own pass keeps anything.
        states = tokens * self.reply("ppo") // longest if stage == "ppo" else tokens
        head = {KEPT: one, "logits": shape.chunk(size, states, self.device.kind)}
        back = {KEPT: passes * one, "working": tokens * shape.intermediate * size * 4.0}
        if lora is None:
            head["its gradient"] = back["the head's gradient"] = float(shape.vocabulary * shape.hidden * 4)
        if few_bits:
            back["a plain weight"] = float(shape.largest * size)
        phases = {"the head computes": head, "going backward": back, "stepping": step}
        if stage == "reward":
            del phases["the head computes"]
        row = self._row(self.reply(stage)) if stage in ("sft", "ppo") else 0.0
        return Need(stage, always, phases, passes * (kept + shape.top(size)), longest, row, tokens)

    @property
    def _working(self) -> int:
        """Bytes of a token while a layer computes, where nothing is kept."""
        return (3 * self.shape.intermediate + 4 * self.shape.hidden) * self.device.size

    def _row(self, reply: int) -> float:
        prompt, shape = self.prompt, self.shape
        logits = shape.vocabulary * 4 * 4
        return (prompt + reply) * shape.cache(self.device.size) + max(prompt * self._working, logits)

    def _sampling(self, stage: str, rows: int, reply: int) -> dict[str, float]:
        prompt, shape = self.prompt, self.shape
        reading = rows * prompt * self._working
        return {
            "cache": float(rows * (prompt + reply) * shape.cache(self.device.size)),
            "reading, logits": float(max(reading, rows * shape.vocabulary * 4 * 4)),
        }

    def _merging(self) -> dict[str, float]:
        """A layer's weight in float32, what is added and drawn, and rounded."""
        return {"merging": float(self.shape.largest * (3 * 4 + self.device.size))}


def _adamw(size: int) -> float:
    return 8.0 if size == 4 else 12.0


def here(machine: Machine, processes: int = 1) -> Device:
    """The device of this machine, with what tensors of each of `processes` may take of its memory, and could now."""
    if machine.device.type == "cuda":
        now, all_of_it = torch.cuda.mem_get_info(machine.device)
        return Device(machine.dtype.itemsize, "gpu", float(all_of_it), float(now))
    kind = "cpu" if machine.device.type == "cpu" else "gpu"
    whole, free = ((part() * 1e6 - LIBRARIES) / processes for part in (memory_mb, free_mb))
    return Device(machine.dtype.itemsize, kind, whole, free)


def check_fit(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, stages: Sequence[str]) -> None:
    """UserError for one of the stages that cannot fit into the memory, with what would make it fit."""
    if not lengths.prompts:
        return  # their file is not there, which is said where it is read
    for need in needs_of(recipe, shape, lengths, device, stages):
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
    needs = needs_of(recipe, shape, lengths, device, (stage,))
    return next(need.total for need in needs if need.stage == stage)


def _changed(recipe: Recipe, stage: str) -> Iterator[tuple[str, Recipe]]:
    """The recipe with one change more each time."""
    for said, values in CHANGES:
        where = "sft" if stage == "rejection" else stage  # whose keys it takes
        section = getattr(recipe, where)
        if "quantise" in values:
            lora = stage not in ("sft", "reward", "ppo") or recipe.lora.of(stage) is not None  # type: ignore[arg-type]
            if recipe.quantise is None and lora and stage in ("sft", "reward", "ppo"):
                recipe = recipe.model_copy(update=values)
                yield said, recipe
            continue
        own = {k: v for k, v in values.items() if hasattr(section, k) and getattr(section, k) not in (v, None, "auto")}
        if own:
            own |= {"micro_batch_tokens": None} if "micro_batch_size" in own and stage == "ppo" else {}
            recipe = recipe.model_copy(update={where: section.model_copy(update=own)})
            keys = (f"{where}.{k}={str(v).lower()}" for k, v in own.items() if v is not None)
            yield said if said.startswith("ppo.") else ", ".join(keys), recipe


def gigabytes(size: float) -> str:
    """As people say it."""
    return f"{size / 1e9:.1f} GB"
