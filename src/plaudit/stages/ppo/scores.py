"""From the scores of a batch to its reward per token: one function of algo/rewards.py a line, in the order of
docs/ppo-maths.md. What each step took or gave is in the log.

    normalised -> (centred on the reference reply) -> weighted sum -> missing-EOS rule -> (− length penalty)
        -> clip -> (whitening or running scale) -> minus the KL penalty per token
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo import rewards
from plaudit.algo.masked import moments_of
from plaudit.data.files import read_rows, write_rows
from plaudit.models.tokens import Tokens
from plaudit.records import Prompt
from plaudit.rewards.sources import Scores
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.trainer import Numbers, Trainer, raw_scores, sample

REFERENCES = "references.jsonl"


def picked(trainer: Trainer, train: Sequence[Prompt], update: int) -> list[Prompt]:
    """The prompts of an update, in the seeded order of the stream, each as often as it is answered."""
    config = trainer.config
    count = config.batch_size // config.replies_per_prompt
    places = rng.stream(trainer.run.seed, "ppo/prompts", len(train), update * count, count)
    return [train[place] for place in places for _ in range(config.replies_per_prompt)]


@torch.no_grad()
def score_references(trainer: Trainer, train: Sequence[Prompt], validation: Sequence[Prompt], folder: Path) -> None:
    """Sample one reply of the SFT model to every prompt the run will use and keep its scores; called while the policy
    is still the SFT model. Leaves folder/references.jsonl."""
    used = {prompt.id: prompt for update in range(trainer.config.updates) for prompt in picked(trainer, train, update)}
    prompts = list((used | {prompt.id: prompt for prompt in validation}).values())
    tokens, _, _ = sample(trainer, prompts, "ppo/references", 0)
    scores = raw_scores(trainer, prompts, tokens, 0, "PPO, reference replies")
    columns = {name: values.tolist() for name, values in scores.by_source.items()}
    rows = []
    for i, prompt in enumerate(prompts):
        trainer.references[prompt.id] = {name: column[i] for name, column in columns.items()}
        start, end = int(tokens.prompt_lengths_B[i]), int(tokens.lengths_B[i])
        reply = trainer.chat.completion(tokens.tokens_BT[i, start:end].tolist())
        rows.append({"id": prompt.id, **reply.as_json(), "scores": trainer.references[prompt.id]})
    write_rows(folder / REFERENCES, rows)


def read_references(folder: Path) -> dict[str, dict[str, float]]:
    """What `score_references` left."""
    return {row["id"]: row["scores"] for _, row in read_rows(folder / REFERENCES)}


def earned(
    trainer: Trainer, prompts: Sequence[Prompt], tokens: Tokens, finished_B: Tensor, scores: Scores
) -> tuple[Tensor, dict[str, float]]:
    """What each reply earns before clip and scale, [B], and the length penalty for the log."""
    config, total_B = trainer.config, scores.normalised_B
    if config.sigmoid_centred:
        reference = [trainer.references[prompt.id] for prompt in prompts]
        centred = {
            name: rewards.sigmoid_centred(values_B, values_B.new_tensor([row[name] for row in reference]))
            for name, values_B in scores.by_source.items()
            if name in trainer.rewards.weights
        }
        total_B = trainer.rewards.paid(centred)
    total_B = rewards.penalise_missing_eos(total_B, finished_B, config.missing_eos_penalty, config.missing_eos)
    if config.length_penalty == 0:
        return total_B, {}
    penalty_B = rewards.length_penalty(tokens.reply_lengths_B, config.length_penalty, config.length_free)
    return total_B - penalty_B, {"length_penalty": penalty_B.mean().item()}


def clipped_and_scaled(config: PPOConfig, numbers: Numbers, earned_B: Tensor) -> tuple[Tensor, float]:
    """The scores that enter the rewards, [B], and the std they were divided by; moves the numbers it depends on."""
    scores_B = rewards.clip_scores(earned_B, config.score_clip)
    if config.whiten_scores:
        floor = 0.0 if numbers.first_std is None else numbers.first_std / 4
        scores_B, used = rewards.whiten_scores(scores_B, floor)
        numbers.first_std = used.item() if numbers.first_std is None else numbers.first_std
        return scores_B, used.item()
    if config.running_scale:
        everyone_B = torch.ones_like(scores_B, dtype=torch.bool)
        numbers.running = numbers.running + moments_of(scores_B, everyone_B)
        return rewards.scale_scores(scores_B, numbers.running)
    return scores_B, 1.0
