"""The policy on the validation prompts: what the watch reads, the replies to look at, and the policy that is kept.

The same random numbers every time, so two looks differ by the policy alone. Gold, where the annotator is simulated, is
looked at here and nowhere else in PPO. Leaves ppo/evaluations.jsonl and ppo/validation/00000.jsonl, one file a look.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from plaudit.algo.masked import masked_mean
from plaudit.algo.rewards import kl_estimate
from plaudit.algo.statistics import correlation, within_correlation
from plaudit.data.annotator import Annotator
from plaudit.data.files import write_rows
from plaudit.errors import UserError
from plaudit.guard.gaming import gain_se
from plaudit.guard.limits import KL_BUDGET
from plaudit.guard.monitors import distinct_bigrams, repeated_trigrams
from plaudit.records import Prompt
from plaudit.stages.ppo.constraints import looked_at
from plaudit.stages.ppo.rollout import earned
from plaudit.stages.ppo.trainer import Trainer, by_micro_batch, raw_scores


@dataclass
class Looks:
    """All looks at the validation prompts so far; `annotator` gives gold."""

    trainer: Trainer
    prompts: list[Prompt]
    annotator: Annotator | None
    folder: Path
    rows: list[dict[str, float]] = field(default_factory=list)
    first: dict[str, list[float]] = field(default_factory=dict)
    """Score and held-out score of the first look, one a prompt."""

    @torch.no_grad()
    def look(self, number: int) -> dict[str, float]:
        """Sample, judge, write; returns the row, which is also the last of `rows`."""
        trainer, many = self.trainer, self.trainer.config.evaluate_replies
        prompts = [prompt for prompt in self.prompts for _ in range(many)]
        tokens, _, finished_B = trainer.sampler.sample(prompts, "ppo/validation", 0)
        scores = raw_scores(trainer, prompts, tokens, 0, "PPO, validation prompts", watched=True)
        earned_B, terms = earned(trainer, prompts, tokens, finished_B, scores)
        policy = by_micro_batch(trainer, tokens, 0, "policy")
        reference = by_micro_batch(trainer, tokens, 0, "reference")
        kl_B = kl_estimate(policy["logprobs_BT"], reference["logprobs_BT"]).sum(dim=1)
        ids = tokens.replies
        texts = [trainer.chat.completion(reply) for reply in ids]
        columns: dict[str, list[float]] = {"score": earned_B.tolist(), "kl": kl_B.tolist()}
        columns |= {f"score_{name}": values_B.tolist() for name, values_B in scores.by_source.items()}
        if self.annotator is not None:
            columns["gold"] = [self.annotator.utility(p, reply.text) for p, reply in zip(prompts, texts, strict=True)]
        held_out = self._held_out(columns)
        row = {
            "update": number,
            "score": earned_B.mean().item(),
            "kl": kl_B.mean().item(),
            "entropy": masked_mean(policy["entropy_BT"], tokens.mask_BT).item(),
            "length": tokens.reply_lengths_B.float().mean().item(),
            "eos": finished_B.float().mean().item(),
            "length_correlation": length_correlation(prompts, columns["score"], [len(reply) for reply in ids]),
            "repeated_trigrams": float(np.mean([repeated_trigrams(reply) for reply in ids])),
            "distinct_bigrams": distinct_bigrams(ids),
            **scores.metrics,
            **terms,
            **looked_at(trainer, prompts, scores),
            **({"gold": float(np.mean(columns["gold"]))} if "gold" in columns else {}),
            **({} if held_out is None else {HELD_OUT: float(np.mean(held_out))}),
        }
        row |= self._errors("score", columns["score"], many)
        row |= {} if held_out is None else self._errors("held_out", held_out, many)
        written = [
            {**prompt.as_json(), **reply.as_json(), **{name: values[i] for name, values in columns.items()}}
            for i, (prompt, reply) in enumerate(zip(prompts, texts, strict=True))
        ]
        write_rows(self.folder / "validation" / f"{number:05d}.jsonl", written)
        self.rows.append(row)
        return row

    def _held_out(self, columns: Mapping[str, list[float]]) -> list[float] | None:
        """What PPO is not paid by: the sources that are only watched (their mean), else gold, else nothing."""
        watched = [columns[f"score_{name}"] for name, source in self.trainer.rewards.sources.items() if source.watch]
        return np.mean(watched, axis=0).tolist() if watched else columns.get("gold")

    def _errors(self, name: str, values: list[float], many: int) -> dict[str, float]:
        """Standard error of the gain since the first look, paired by prompt."""
        by_prompt = np.reshape(values, (-1, many)).mean(axis=1).tolist()
        return gain_se(name, by_prompt, self.first.setdefault(name, by_prompt))


def length_correlation(prompts: list[Prompt], scores: list[float], lengths: list[int]) -> float:
    """Pearson's r of score and length within prompts; over all replies where no prompt was answered twice."""
    clusters = [str(prompt.messages) for prompt in prompts]
    if len(set(clusters)) == len(clusters):
        return correlation(scores, lengths)
    return within_correlation(scores, lengths, clusters)


State = dict[str, Tensor]
HELD_OUT = "held_out_score"


@dataclass
class Keeper:
    """The policies that may still be kept: the last `patience` ones looked at, and of those before them the best by
    the score that decides, `keep_by` or what stands in for it. The first, the SFT model, is always a candidate; another
    only within the budget."""

    keep_by: Literal["score", "held_out"] | None
    patience: int
    kl_budget: float | None
    held: list[tuple[dict[str, float], State]] = field(default_factory=list)
    first: float | None = None

    def add(self, row: dict[str, float], state: State) -> None:
        if self.keep_by == "held_out" and HELD_OUT not in row:
            raise UserError(
                "ppo.keep_by=held_out: no score is there that PPO is not paid by; give a source of ppo.rewards "
                "watch: true, or keep_by=score"
            )
        self.first = row["update"] if self.first is None else self.first
        self.held.append((row, state))
        older = self.held[: -self.patience]
        self.held = ([self._best(older)] if older else []) + self.held[-self.patience :]

    def kept(self, *, stopped: bool) -> tuple[dict[str, float], State]:
        """The best, the earliest of equals. After a stop of the watch the last `patience` policies are those it
        stopped."""
        return self._best(self.held[: -self.patience] if stopped else self.held)

    @property
    def by(self) -> Literal["score", "held_out"]:
        """What decides, once a policy was looked at."""
        return self.keep_by or ("held_out" if HELD_OUT in self.held[0][0] else "score")

    def _best(self, entries: list[tuple[dict[str, float], State]]) -> tuple[dict[str, float], State]:
        budget = self.kl_budget or (KL_BUDGET if self.by == "score" else math.inf)
        allowed = [
            (row, state)
            for row, state in entries
            if row["update"] == self.first or (row["kl"] <= budget and row.get("constraints_met", 1.0))
        ]
        column = "score" if self.by == "score" else HELD_OUT
        return max(allowed or entries, key=lambda one: one[0][column])
