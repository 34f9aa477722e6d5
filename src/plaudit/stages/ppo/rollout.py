"""The first verb of PPO: `rollout(...) -> RolloutBatch`. Sample replies, score them, turn scores into advantages.

A score's way, one function of algo/rewards.py a line, in the order of docs/ppo-maths.md:

    normalised -> (centred on the reference reply) -> weighted sum -> missing-EOS rule -> (− length penalty)
        -> (+ what its constraints are worth) -> clip -> (whitening or running scale) -> minus the KL penalty per token
        -> advantages and returns
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo import advantages as estimators
from plaudit.algo import rewards
from plaudit.algo.losses import sampler_weights
from plaudit.algo.masked import masked_mean, moments_of, whiten
from plaudit.algo.statistics import explained_variance
from plaudit.data.files import read_rows, write_rows
from plaudit.guard import invariants
from plaudit.guard.sampler import GAP_BOUND, SERVED_BOUND, check_sampler, sampler_noise
from plaudit.models.tokens import Tokens
from plaudit.records import Prompt
from plaudit.rewards.sources import Scores
from plaudit.rollout.batch import RolloutBatch
from plaudit.run.metrics import Clock
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.constraints import constrained
from plaudit.stages.ppo.sampling import holding
from plaudit.stages.ppo.trainer import Numbers, Trainer, by_micro_batch, raw_scores
from plaudit.train.micro_batches import batch_kept

REFERENCES = "references.jsonl"
PER_SIGMOID = 4
"""σ has slope ¼ at a reply as good as the reference's. Four times it, a little better is worth what it was before, so
what follows, penalties and constraints in units of the normalised score, weighs no more than without it."""


def picked(trainer: Trainer, train: Sequence[Prompt], number: int) -> list[Prompt]:
    """The prompts of an update, in the seeded order of the stream, each as often as it is answered."""
    config = trainer.config
    count = config.batch_size // config.replies_per_prompt
    places = rng.stream(trainer.run.seed, "ppo/prompts", len(train), number * count, count)
    return [train[place] for place in places for _ in range(config.replies_per_prompt)]


@torch.no_grad()
def rollout(trainer: Trainer, prompts: list[Prompt], number: int, clock: Clock) -> RolloutBatch:
    """The batch of update `number`, counted from 0, with what the log says of it."""
    config, numbers = trainer.config, trainer.numbers
    with clock.part("rollout"):
        tokens, sampler_logprobs_BT, finished_B, adapter = trainer.sampler.of_update(prompts, number)
        _ask_ahead(trainer, number + 1)
    mask_BT = tokens.mask_BT
    where, folder = f"PPO update {number + 1}", trainer.run.folder.stage("ppo")
    with clock.part("scoring"), batch_kept(folder, where, partial(as_rows, trainer, prompts, tokens)):
        scores, ref_logprobs_BT, old = judge(trainer, prompts, tokens, number, where, adapter)
        old_logprobs_BT, values_BT, last_values_B = old["logprobs_BT"], old.get("values_BT"), old.get("last_values_B")
        # What the log says of the sample is said of the policy that sampled it.
        behaviour_BT = old.get("behaviour_logprobs_BT", old_logprobs_BT)
        k1_BT = rewards.kl_estimate(behaviour_BT, ref_logprobs_BT)
        gap = _checked(trainer, sampler_logprobs_BT, behaviour_BT, old_logprobs_BT, ref_logprobs_BT, mask_BT, number)

    earned_B, terms = earned(trainer, prompts, tokens, finished_B, scores)
    earned_B, prices = constrained(trainer, prompts, scores, earned_B)
    scores_B, scale = clipped_and_scaled(config, numbers, earned_B)
    kl_BT = rewards.kl_estimate(old_logprobs_BT, ref_logprobs_BT, config.kl_estimator)
    in_reward = numbers.controller.coef if config.kl_penalty != "loss" else 0.0
    rewards_BT = rewards.token_rewards(scores_B, kl_BT, mask_BT, in_reward)
    bootstrap_B = None if last_values_B is None else torch.where(finished_B, 0.0, last_values_B)
    advantages_BT, returns_BT = advantages(config, rewards_BT, values_BT, mask_BT, bootstrap_B)

    metrics = {
        "score": earned_B.mean().item(),
        "score_std": earned_B.std(unbiased=False).item(),
        "kl": k1_BT.sum(dim=1).mean().item(),
        "kl_per_token": masked_mean(k1_BT, mask_BT).item(),
        "kl_coef": numbers.controller.coef,
        "effective_kl_coef": numbers.controller.coef * scale,
        "kl_penalty": in_reward * kl_BT.sum(dim=1).mean().item(),
        "entropy": masked_mean(old["entropy_BT"], mask_BT).item(),
        "length": tokens.reply_lengths_B.float().mean().item(),
        "eos": finished_B.float().mean().item(),
        "text_changed": trainer.chat.changed_share(tokens.replies),
        **gap,
        **scores.metrics,
        **terms,
        **prices,
    }
    if values_BT is not None and returns_BT is not None:
        metrics["explained_variance"] = explained_variance(values_BT[mask_BT].cpu(), returns_BT[mask_BT].cpu())
    return RolloutBatch(
        tokens=tokens,
        finished_B=finished_B,
        raw_scores_BM=scores.raw_scores_BM,
        scores_B=scores_B,
        old_logprobs_BT=old_logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        sampler_logprobs_BT=sampler_logprobs_BT,
        behaviour_logprobs_BT=old.get("behaviour_logprobs_BT"),
        old_entropy_BT=old["entropy_BT"],
        values_BT=values_BT,
        kl_BT=kl_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        last_values_B=last_values_B,
        new_logprobs_BT=old_logprobs_BT.clone(),  # until an update has trained on them
        metrics=metrics,
    )


def _ask_ahead(trainer: Trainer, number: int) -> None:
    """With `rollout.lag: 1` the servers begin with the replies of update `number` here, while the one before it is
    scored and trains."""
    if trainer.run.rollout.lag and number < trainer.config.updates:
        trainer.sampler.ask(picked(trainer, trainer.run.split("train"), number), number)


def judge(
    trainer: Trainer,
    prompts: list[Prompt],
    tokens: Tokens,
    number: int,
    where: str,
    adapter: Sequence[Tensor] | None = None,
) -> tuple[Scores, Tensor, dict[str, Tensor]]:
    """Scores of a rollout, the reference's log-probs [B, T], and what policy and critic say of it; all in one layout,
    so that where memory runs out all are done again. With the `adapter` that sampled it also its own log-probs,
    behaviour_logprobs_BT [B, T]."""

    def passes() -> tuple[Scores, Tensor, dict[str, Tensor]]:
        scores = raw_scores(trainer, prompts, tokens, number, where)
        ref_logprobs_BT = by_micro_batch(trainer, tokens, number, "reference")["logprobs_BT"]
        old = by_micro_batch(trainer, tokens, number, "policy")
        if trainer.config.critic == "own":
            old |= by_micro_batch(trainer, tokens, number, "critic")
        if adapter is not None:
            with holding(trainer.roles.adapter_parameters("policy"), adapter):
                old["behaviour_logprobs_BT"] = by_micro_batch(trainer, tokens, number, "policy")["logprobs_BT"]
        return scores, ref_logprobs_BT, old

    return trainer.micro.fit(where, passes, lambda: None)


def _checked(
    trainer: Trainer,
    sampler_BT: Tensor,
    behaviour_BT: Tensor,
    policy_BT: Tensor,
    reference_BT: Tensor,
    mask_BT: Tensor,
    number: int,
) -> dict[str, float]:
    """RunStopped where sampler, policy or reference are not what they must be, by their log-probs; where the sampler
    is, for the log. The sampler must be the policy that was to sample; the current one is judged by the weights."""
    dtype, numbers, served = trainer.run.machine.dtype, trainer.numbers, trainer.run.rollout
    k1_BT = rewards.kl_estimate(policy_BT, reference_BT)
    bounds = SERVED_BOUND if served.engine == "vllm" else GAP_BOUND
    row = check_sampler(sampler_BT, behaviour_BT, reference_BT, mask_BT, dtype, numbers.sampler_noise, bounds)
    weights_BT = sampler_weights(served.sampler_correction, policy_BT, sampler_BT)
    if weights_BT is not None:
        cut_BT = weights_BT != (policy_BT - sampler_BT).exp()
        row |= {
            "sampler_weight": masked_mean(weights_BT, mask_BT).item(),
            "sampler_weight_cut": masked_mean(cut_BT.float(), mask_BT).item(),
        }
    if served.lag:
        row["lag"] = 0 if number == 0 else served.lag  # the first update has no policy before it
        row["lag_kl"] = masked_mean(rewards.kl_estimate(behaviour_BT, policy_BT, "k3"), mask_BT).item()
    invariants.check_finite("a log-probability", k1_BT.sum().item(), f"PPO update {number + 1}")
    if number == 0:
        if trainer.starts_as_reference:
            invariants.check_fresh_kl(k1_BT, dtype)
        numbers.sampler_noise = sampler_noise(sampler_BT, policy_BT, mask_BT)
    return row


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
        total_B = PER_SIGMOID * trainer.rewards.paid(centred)
    rule = "none" if config.missing_eos == "bootstrap" else config.missing_eos
    total_B = rewards.penalise_missing_eos(total_B, finished_B, config.missing_eos_penalty, rule)
    if config.length_penalty == 0:
        return total_B, {}
    penalty_B = rewards.length_penalty(tokens.reply_lengths_B, config.length_penalty, config.length_free)
    return total_B - penalty_B, {"length_penalty": penalty_B.mean().item()}


def clipped_and_scaled(config: PPOConfig, numbers: Numbers, earned_B: Tensor) -> tuple[Tensor, float]:
    """The scores that enter the rewards, [B], and the std they were divided by; moves the numbers it depends on."""
    scores_B = rewards.clip_scores(earned_B, config.score_clip)
    if config.score_scale == "whiten":
        floor = 0.0 if numbers.first_std is None else numbers.first_std / 4
        scores_B, used = rewards.whiten_scores(scores_B, floor)
        numbers.first_std = used.item() if numbers.first_std is None else numbers.first_std
        return scores_B, used.item()
    if config.score_scale == "running":
        everyone_B = torch.ones_like(scores_B, dtype=torch.bool)
        numbers.running = numbers.running + moments_of(scores_B, everyone_B)
        return rewards.scale_scores(scores_B, numbers.running)
    return scores_B, 1.0


def advantages(
    config: PPOConfig, rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, bootstrap_B: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Advantages and, where a critic learns, its returns, by the estimator of the recipe; [B, T]."""
    returns_BT: Tensor | None = None
    match config.advantages:
        case "gae":
            assert values_BT is not None
            advantages_BT, returns_BT = estimators.gae(
                rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam, bootstrap_B=bootstrap_B
            )
        case "rloo":
            advantages_BT, _ = estimators.rloo(rewards_BT, mask_BT, group_size=config.replies_per_prompt)
        case "grpo" | "dr_grpo":
            group, scale_std = config.replies_per_prompt, config.advantages == "grpo"
            advantages_BT, _ = estimators.grpo(rewards_BT, mask_BT, group_size=group, scale_std=scale_std)
        case "reinforce_pp":
            advantages_BT, _ = estimators.reinforce_plus_plus(rewards_BT, mask_BT, gamma=config.gamma)
        case _:
            assert_never(config.advantages)
    if config.whitens_advantages:
        advantages_BT, _ = whiten(advantages_BT, mask_BT)
    return advantages_BT, returns_BT


@torch.no_grad()
def score_references(trainer: Trainer, train: Sequence[Prompt], validation: Sequence[Prompt], folder: Path) -> None:
    """Sample one reply of the SFT model to every prompt the run will use and keep its scores; called while the policy
    is still the SFT model. Leaves folder/references.jsonl."""
    used = {prompt.id: prompt for number in range(trainer.config.updates) for prompt in picked(trainer, train, number)}
    prompts = list((used | {prompt.id: prompt for prompt in validation}).values())
    tokens, _, _ = trainer.sampler.sample(prompts, "ppo/references", 0)
    scores = raw_scores(trainer, prompts, tokens, 0, "PPO, reference replies")
    columns = {name: values.tolist() for name, values in scores.by_source.items()}
    rows = []
    for i, (prompt, ids) in enumerate(zip(prompts, tokens.replies, strict=True)):
        trainer.references[prompt.id] = {name: column[i] for name, column in columns.items()}
        reply = trainer.chat.completion(ids)
        rows.append({"id": prompt.id, **reply.as_json(), "scores": trainer.references[prompt.id]})
    write_rows(folder / REFERENCES, rows)


def read_references(folder: Path) -> dict[str, dict[str, float]]:
    """What `score_references` left."""
    return {row["id"]: row["scores"] for _, row in read_rows(folder / REFERENCES)}


def as_rows(trainer: Trainer, prompts: Sequence[Prompt], tokens: Tokens) -> list[dict[str, Any]]:
    """What is kept of a rollout that stopped before it was stored: each reply with its prompt and ids."""
    return [
        {**prompt.as_json(), **trainer.chat.completion(ids).as_json(), "ids": ids}
        for prompt, ids in zip(prompts, tokens.replies, strict=True)
    ]
