"""Constraints: a source of ppo.rewards with `at_least` is not paid for, it is held up, at a price that moves.

    score_B  ← score_B + Σ_k λ_k·(c_k(x, y) − b_k)/s_k      for the replies that constraint k is about
    λ_k      ← clip(λ_k + η·(b_k − mean c_k)/s_k, 0, 10)     after every rollout

c is what the source says, b the bound, s the std of c over replies of the SFT model, which also give b where it is
relative to SFT. λ is 0 as long as the bound holds by itself. Settings are those of the source (rewards/config.py).
"""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from plaudit.algo.rewards import Multiplier, move_multiplier
from plaudit.errors import UserError
from plaudit.records import Prompt
from plaudit.rewards.sources import RewardSources, Scores
from plaudit.run.display import console
from plaudit.stages.ppo.trainer import Trainer, raw_scores

MEASURED_ON = 256
"""SFT replies to training prompts that give a bound: a share near one half is then known to 0.03."""


def measure_constraints(trainer: Trainer, train: Sequence[Prompt]) -> None:
    """Set the bounds, while the policy is still the SFT model. UserError for a kind that no training prompt has."""
    for number, (name, source) in enumerate(trainer.rewards.constraints.items()):
        own = [prompt for prompt in train if source.of_kind in (None, prompt.kind)]
        if not own:
            raise UserError(f"ppo.rewards, {name}: no training prompt has kind {source.of_kind!r}")
        prompts = list(islice(cycle(own), MEASURED_ON))
        tokens, _, _ = trainer.sampler.sample(prompts, "ppo/constraints", number)
        scores = raw_scores(trainer, prompts, tokens, 0, "PPO, SFT replies of a constraint")
        found = scores.by_source[name].double().cpu().numpy()
        sft, std = float(found.mean()), float(found.std())
        trainer.numbers.multipliers[name] = Multiplier(bound=source.bound(sft), std=std if std > 1e-6 else 1.0)
        bound = trainer.numbers.multipliers[name].bound
        console.print(f"{name} at least {bound:.4g}; {sft:.4g} over {len(found)} SFT replies", soft_wrap=True)


def concerned(sources: RewardSources, name: str, prompts: Sequence[Prompt], like: Tensor) -> Tensor:
    """Which replies [B] the constraint is about: those to prompts of its kind."""
    kind = sources.constraints[name].of_kind
    return torch.tensor([kind in (None, prompt.kind) for prompt in prompts], device=like.device)


def constrained(
    trainer: Trainer, prompts: Sequence[Prompt], scores: Scores, earned_B: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """What each reply earns with the multipliers as they are, [B]; then they move. For the log the measured mean of
    each constraint (not where no reply was about it), its bound and its multiplier."""
    numbers, metrics = trainer.numbers, dict[str, float]()
    for name in trainer.rewards.constraints:
        multiplier, values_B = numbers.multipliers[name], scores.by_source[name]
        about_B = concerned(trainer.rewards, name, prompts, values_B)
        price_B = multiplier.value * (values_B - multiplier.bound) / multiplier.std
        earned_B = earned_B + torch.where(about_B, price_B, 0.0)
        metrics |= {f"multiplier_{name}": multiplier.value, f"bound_{name}": multiplier.bound}
        if about_B.any():
            metrics[f"constraint_{name}"] = mean = values_B[about_B].mean().item()
            numbers.multipliers[name] = move_multiplier(multiplier, mean)
    return earned_B, metrics


def looked_at(trainer: Trainer, prompts: Sequence[Prompt], scores: Scores) -> dict[str, float]:
    """Of the validation prompts: the mean of each constraint, and whether none is missed by more than one standard
    error (`constraints_met`, 1 or 0), which a policy must be to be kept. Nothing without constraints."""
    found, met = dict[str, float](), True
    for name in trainer.rewards.constraints:
        values_B = scores.by_source[name]
        own = values_B[concerned(trainer.rewards, name, prompts, values_B)].double().cpu().numpy()
        if own.size:
            found[f"constraint_{name}"] = float(own.mean())
            error = float(own.std()) / np.sqrt(own.size)
            met = met and found[f"constraint_{name}"] + error >= trainer.numbers.multipliers[name].bound
    return {**found, "constraints_met": float(met)} if found else {}
