"""How long a run will take and in how much memory, from a few seconds of the work itself on this machine.

A batch is sampled, passed through and learnt from, with a second copy of the weights in memory where PPO has one.
Seconds a token times the tokens of every stage is the time; replies are counted as long as the demonstrations' are, or
as the limit where there are none. Loading, saving and the plots are not counted.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plaudit.data.chat import ChatFormat
from plaudit.dist.machine import Machine, peaks, start_peaks
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.choose import own_decoder
from plaudit.models.load import load_model
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Prompt
from plaudit.rewards.config import uses_trained
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.stages.lengths import Lengths
from plaudit.stages.recipe import Recipe
from plaudit.stages.run_data import RunData

ROWS, NEW = 16, 16
"""Replies that are sampled, and their tokens."""


@dataclass(frozen=True)
class Speed:
    """Seconds a token: sampled beside others, passed through, learnt from; and the peak memory of having done so."""

    sampled: float
    passed: float
    learnt: float
    peaks: dict[str, float]


def measure(model: str, recipe: Recipe, machine: Machine, chat: ChatFormat, prompts: Sequence[Prompt]) -> Speed:
    """The speed of this machine with this model, each piece of work the second time it is done."""
    start_peaks(machine.device)
    base = load_model(model, machine.dtype, machine.device, recipe.quantise)
    roles = Roles(base, trained="policy", lora=recipe.lora.of("ppo") or LoraSettings())
    own = None if recipe.ppo.sampling_copy else own_decoder(roles.bases[0], roles.as_policy)
    copy = load_model(model, machine.dtype, machine.device) if own is None else own.model
    engine = InProcessEngine(copy, eos_id=-1, decoder=own)
    ids = [chat.prompt_ids(prompts[i % len(prompts)].messages) for i in range(ROWS)]
    uniforms = np.random.default_rng(0).random((ROWS, NEW), dtype=np.float32)
    asked = recipe.ppo.micro_batch_size
    rows = min(ROWS, recipe.ppo.minibatch_size if asked == "auto" else asked)

    def passed() -> torch.Tensor:
        logprobs_BT = roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT
        assert logprobs_BT is not None
        return logprobs_BT

    seconds = {}
    for _ in range(2):
        started = time.perf_counter()
        replies = [sampled.ids for sampled in engine.generate(ids, uniforms)]
        seconds["sampled"] = time.perf_counter() - started
        tokens = pad_right(ids[:rows], replies[:rows], chat.pad_id, machine.device)
        count = int(tokens.lengths_B.sum())
        started = time.perf_counter()
        with torch.no_grad():
            passed()
        seconds["passed"] = time.perf_counter() - started
        started = time.perf_counter()
        passed().sum().backward()
        seconds["learnt"] = time.perf_counter() - started
    engine.close()
    found = Speed(seconds["sampled"] / (ROWS * NEW), seconds["passed"] / count, seconds["learnt"] / count, {})
    return Speed(found.sampled, found.passed, found.learnt, peaks(machine.device))


def seconds_of(recipe: Recipe, data: RunData, lengths: Lengths, speed: Speed) -> dict[str, float]:
    """Seconds of every stage that the recipe needs."""
    prompt = float(np.mean(lengths.prompts))
    limit = recipe.sampling.of("ppo").max_new_tokens
    known = lengths.demonstrations or lengths.ranked
    reply = min(limit, float(np.mean(known))) if known else float(limit)
    whole = prompt + reply
    split = {name: sum(one.split == name for one in data.prompts) for name in ("train", "validation", "test")}
    found: dict[str, float] = {}
    if not recipe.sft.skip:
        rows = int((data.demonstrations.splits == "train").sum()) * recipe.sft.epochs
        rows = min(rows, (recipe.sft.max_steps or rows) * recipe.sft.batch_size)
        held_out = min(1000, len(data.demonstrations) - int((data.demonstrations.splits == "train").sum()))
        found["sft"] = whole * (rows * speed.learnt + (recipe.sft.epochs + 1) * held_out * speed.passed)
    if uses_trained(recipe.ppo.rewards):
        chosen = recipe.preferences
        asked = min(chosen.train_prompts, split["train"]) + split["validation"] + split["test"]
        if chosen.samples:
            found["preferences"] = asked * chosen.replies * reply * speed.sampled
        replies = chosen.samples * asked * chosen.replies + sum(len(r.replies) for r in data.rankings or ())
        replies += len(data.labels or ())
        found["reward"] = whole * replies * (recipe.reward.epochs * recipe.reward.members * speed.learnt + speed.passed)
    ppo = recipe.ppo
    look = split["validation"] * ppo.evaluate_replies * (reply * speed.sampled + 3 * whole * speed.passed)
    update = ppo.batch_size * (reply * speed.sampled + whole * (3 * speed.passed + ppo.epochs * speed.learnt))
    found["ppo"] = ppo.updates * update + (1 + ppo.updates // ppo.evaluate_every) * look
    judged = 2 * split["test"] * recipe.evaluate.replies
    found["evaluate"] = judged * (reply * speed.sampled + 4 * whole * speed.passed)
    return found


def spoken(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
