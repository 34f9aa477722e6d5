"""PPO: sample, score, reward, advantage, update, record, keep the best; on one base with four roles.

    L(φ,ψ) = Ê_t[ L_CLIP(φ) − c1·L_VF(ψ) + c2·S[π_φ](s_t) ],   loss = −L                 (Schulman et al. 2017)
    R_t = −β·(log π_φold(a_t|s_t) − log π_ref(a_t|s_t)), + the whitened score at the last token

The policy that is kept is the best on the validation prompts by the reward model's score, among those within the KL
budget; it is not simply the last. Leaves ppo/adapter (PEFT), ppo/value_head, ppo/model (merged checkpoint),
ppo/metrics.jsonl, ppo/evaluations.jsonl, ppo/times.jsonl, ppo/rollouts/*.safetensors and ppo/summary.json.

    plaudit ppo RECIPE
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import rng
from plaudit.algo import rewards as reward_maths
from plaudit.algo.advantages import gae
from plaudit.algo.losses import ppo_loss
from plaudit.algo.masked import masked_mean, whiten
from plaudit.algo.statistics import explained_variance
from plaudit.data.chat import ChatFormat
from plaudit.dist.machine import release_memory
from plaudit.guard import invariants
from plaudit.models.export import export_policy
from plaudit.models.full import FullReward
from plaudit.models.heads import RewardContract, save_head
from plaudit.models.load import load_model
from plaudit.models.optimiser import MasterAdamW
from plaudit.models.roles import LoraSettings, Role, Roles
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Prompt
from plaudit.rollout.batch import RolloutBatch, per_token
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.display import progress
from plaudit.run.metrics import Clock, Metrics
from plaudit.stages.base import Run, StageConfig, cosine_schedule, optimiser_step
from plaudit.stages.reward import trained_reward
from plaudit.stages.scoring import Rewards, RewardSource, Scores


class PPOConfig(StageConfig):
    """PPO with a critic, a clipped surrogate and a KL penalty."""

    updates: int = Field(20, ge=1)
    """Rounds of sampling and training."""
    batch_size: int = Field(32, ge=1)
    """Replies sampled an update, one a prompt."""
    minibatch_size: int = Field(16, ge=1)
    """Replies in one optimiser step; must divide batch_size."""
    micro_batch_size: int = Field(8, ge=1)
    """Replies in one forward and backward pass; must divide minibatch_size. Changes memory, not the result."""
    epochs: int = Field(2, ge=1)
    """Passes over an update's replies."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest reply in tokens, its end-of-turn token included."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities are taken at the same one."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW for the policy's adapter; cosine to a tenth of it."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """The same for the value head."""
    warmup_steps: int = Field(4, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    gamma: float = Field(1.0, gt=0, le=1)
    """γ: discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ: GAE's trade of bias (0) against variance (1)."""
    clip_range: float = Field(0.2, gt=0)
    """ε: how far the ratio may move before its gain is cut off."""
    value_coef: float = Field(0.1, ge=0)
    """c1: weight of the value loss."""
    value_gradient: bool = False
    """Whether the value loss reaches the policy's trunk; false trains the value head alone."""
    entropy_coef: float = Field(0.0, ge=0)
    """c2: weight of the entropy bonus."""
    kl_coef: float = Field(0.05, ge=0)
    """β: KL penalty per token, in units of the whitened score."""
    whiten_scores: bool = True
    """Scores of a batch to mean 0, std 1 (the std floored at a quarter of its first value)."""
    whiten_advantages: bool = True
    """Advantages of an update to mean 0, std 1 over its reply tokens."""
    score_clip: float = Field(5.0, gt=0)
    """Normalised scores are held in ± this."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Subtracted from the normalised score of a reply that never ended."""
    evaluate_every: int = Field(5, ge=1)
    """Updates between two looks at the validation prompts."""
    kl_budget: float = Field(10.0, gt=0)
    """A policy farther than this from the reference (nats a reply, on validation prompts) is not kept."""
    rewards: list[RewardSource] = Field(default=[])
    """What the policy is paid by, a weighted sum; empty is the run's own reward model alone."""
    lora: LoraSettings = LoraSettings()
    """The policy's adapter on the shared base."""

    @model_validator(mode="after")
    def _divisible(self) -> "PPOConfig":
        if self.batch_size % self.minibatch_size:
            raise ValueError(f"minibatch_size={self.minibatch_size} does not divide batch_size={self.batch_size}")
        if self.minibatch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} does not divide minibatch_size={self.minibatch_size}"
            )
        return self


@dataclass
class Trainer:
    """What the loop holds: the four roles, the sampling engine, the optimiser, and the first batch's score std."""

    config: PPOConfig
    run: Run
    chat: ChatFormat
    roles: Roles
    scorer: Roles | FullReward
    engine: InProcessEngine
    rewards: Rewards
    contract: RewardContract | None
    optimiser: MasterAdamW
    schedule: torch.optim.lr_scheduler.LRScheduler
    first_std: float | None = None


def run(config: PPOConfig, run: Run) -> dict[str, Any]:
    """Train, keep the best policy, save; returns the summary."""
    trainer = _build(config, run)
    folder = run.folder.stage("ppo")
    train, validation = run.split("train"), run.split("validation")
    # A fresh policy is the SFT model: its replies are what foreign scores are normalised on.
    trainer.rewards.prepare(trainer.chat, train, lambda few: sample(trainer, few, "ppo/reference", 0)[0], folder)
    best, evaluations, seconds = None, [], []
    with (
        Metrics(folder / "metrics.jsonl") as metrics,
        Metrics(folder / "evaluations.jsonl") as evaluated,
        Metrics(folder / "times.jsonl") as times,
        progress("PPO", config.updates, "update") as advance,
    ):
        for update in range(config.updates + 1):
            if update % config.evaluate_every == 0 or update == config.updates:
                evaluations.append({"update": update, **evaluate(trainer, validation)})
                evaluated.log(**evaluations[-1])
                if best is None or _better(evaluations[-1], best[0], config.kl_budget):
                    best = (evaluations[-1], trainer.roles.adapter_state())
            if update == config.updates:
                break
            clock = Clock()
            picked = rng.stream(run.seed, "ppo/prompts", len(train), update * config.batch_size, config.batch_size)
            batch, about_batch = rollout(trainer, [train[i] for i in picked], update, clock)
            batch.save(folder / "rollouts" / f"{update + 1:05d}.safetensors")
            about_update = update_policy(trainer, batch, update, clock)
            metrics.log(update=update + 1, **about_batch, **about_update)
            times.log(update=update + 1, **clock.seconds)
            release_memory()
            seconds.append(sum(clock.seconds.values()))
            advance(
                f"score {about_batch['score']:+.2f}  KL {about_batch['kl']:.1f}  length {about_batch['length']:.0f}"
            )

    assert best is not None
    trainer.roles.load_adapter_state(best[1])
    trainer.roles.save_adapter(folder / "adapter")
    save_head(trainer.roles.value_head, folder / "value_head")
    export_policy(trainer.roles, trainer.chat, str(run.sft_model), folder / "model", run.machine.dtype)
    summary = {
        "updates": config.updates,
        "kept_update": best[0]["update"],
        "seconds_per_update": float(np.median(seconds[1:] or seconds)),
        "kl": best[0]["kl"],
        "score_sft": evaluations[0]["score"],
        "score_ppo": best[0]["score"],
        "length_sft": evaluations[0]["length"],
        "length_ppo": best[0]["length"],
    }
    return run.finish("ppo", "PPO", summary, tuple(summary))


def _better(now: dict[str, float], best: dict[str, float], kl_budget: float) -> bool:
    return now["kl"] <= kl_budget and now["score"] > best["score"]


def _build(config: PPOConfig, run: Run) -> Trainer:
    chat = run.chat(run.sft_model)
    rewards = Rewards(config.rewards, run.machine)
    files = trained_reward(run, chat) if rewards.trained else None
    source = str(run.sft_model)
    roles = Roles(
        load_model(source, run.machine.dtype, run.machine.device),
        trained="policy",
        lora=config.lora,
        seed=run.seed,
        reward=files.adapters if files else [],
        value_gradient=config.value_gradient,
        temperature=config.temperature,
    )
    reward = files.attach(roles, run.machine.dtype, run.machine.device) if files else None
    engine = InProcessEngine(
        load_model(source, run.machine.dtype, run.machine.device),
        eos_id=chat.eos_id,
        pad_id=chat.pad_id,
        temperature=config.temperature,
    )
    critic = list(roles.value_head.parameters())
    adapter = [p for name, p in roles.trainable().items() if "value_head" not in name]
    optimiser = MasterAdamW(
        [{"params": adapter, "lr": config.learning_rate}, {"params": critic, "lr": config.critic_learning_rate}],
        betas=(0.9, 0.95),
        eps=1e-5,
    )
    steps = config.updates * config.epochs * (config.batch_size // config.minibatch_size)
    schedule = cosine_schedule(optimiser, steps, config.warmup_steps)
    scorer, contract = (reward.model, reward.contract) if reward else (roles, None)
    return Trainer(config, run, chat, roles, scorer, engine, rewards, contract, optimiser, schedule)


def sample(trainer: Trainer, prompts: list[Prompt], stream: str, step: int) -> tuple[Tokens, Tensor, Tensor]:
    """One reply a prompt from the current policy: tokens, the sampler's log-probs [B, T], which replies ended [B]."""
    prompt_ids = [trainer.chat.prompt_ids(prompt.messages) for prompt in prompts]
    uniforms = rng.uniforms(trainer.run.seed, stream, step, list(range(len(prompts))), trainer.config.max_new_tokens)
    trainer.engine.load_weights(trainer.roles.merged_weights("policy"))
    sampled = trainer.engine.generate(prompt_ids, uniforms)
    device = trainer.run.machine.device
    tokens = pad_right(prompt_ids, [reply.ids for reply in sampled], trainer.chat.pad_id, device)
    finished_B = torch.tensor([reply.ids[-1] == trainer.chat.eos_id for reply in sampled], device=device)
    return tokens, per_token([reply.logprobs for reply in sampled], tokens), finished_B


@torch.no_grad()
def rollout(
    trainer: Trainer, prompts: list[Prompt], update: int, clock: Clock
) -> tuple[RolloutBatch, dict[str, float]]:
    """Sample replies, score them, and turn scores into rewards, advantages and returns."""
    config, dtype = trainer.config, trainer.run.machine.dtype
    with clock.part("rollout"):
        tokens, sampler_logprobs_BT, finished_B = sample(trainer, prompts, "ppo/rollout", update)
    mask_BT = tokens.mask_BT
    with clock.part("scoring"):
        scores, paid_B = score(trainer, prompts, tokens, finished_B, update, f"PPO update {update + 1}")
        ref_logprobs_BT = by_micro_batch(trainer, tokens, update, "reference")["logprobs_BT"]
        old = by_micro_batch(trainer, tokens, update, "policy")
    old_logprobs_BT, values_BT = old["logprobs_BT"], old["values_BT"]
    gap_mean, gap_p99 = invariants.sampler_gap(sampler_logprobs_BT, old_logprobs_BT, mask_BT)
    invariants.check_sampler_gap(gap_mean, gap_p99, dtype)
    kl_BT = reward_maths.kl_estimate(old_logprobs_BT, ref_logprobs_BT)
    if update == 0:
        invariants.check_fresh_kl(kl_BT, dtype)

    # ... -> clip -> batch whitening -> minus the KL penalty per token
    scores_B, scale = reward_maths.clip_scores(paid_B, config.score_clip), 1.0
    if config.whiten_scores:
        floor = 0.0 if trainer.first_std is None else trainer.first_std / 4
        scores_B, used_std = reward_maths.whiten_scores(scores_B, floor)
        scale = used_std.item()
        trainer.first_std = scale if trainer.first_std is None else trainer.first_std
    rewards_BT = reward_maths.token_rewards(scores_B, kl_BT, mask_BT, config.kl_coef)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages_BT, _ = whiten(advantages_BT, mask_BT)

    batch = RolloutBatch(
        tokens, finished_B, scores.raw_scores_BM, scores_B, old_logprobs_BT, ref_logprobs_BT, sampler_logprobs_BT,
        old["entropy_BT"], values_BT, kl_BT, rewards_BT, advantages_BT, returns_BT,
    )  # fmt: skip
    return batch, {
        "score": paid_B.mean().item(),
        "score_std": paid_B.std(unbiased=False).item(),
        "kl": kl_BT.sum(dim=1).mean().item(),
        "kl_per_token": masked_mean(kl_BT, mask_BT).item(),
        "effective_kl_coef": config.kl_coef * scale,
        "entropy": masked_mean(old["entropy_BT"], mask_BT).item(),
        "length": tokens.reply_lengths_B.float().mean().item(),
        "eos": finished_B.float().mean().item(),
        "explained_variance": explained_variance(values_BT[mask_BT].cpu(), returns_BT[mask_BT].cpu()),
        "sampler_gap_mean": gap_mean,
        "sampler_gap_p99": gap_p99,
        **scores.metrics,
    }


def score(
    trainer: Trainer, prompts: list[Prompt], tokens: Tokens, finished_B: Tensor, update: int, where: str
) -> tuple[Scores, Tensor]:
    """raw -> stored normalisation of each source -> weighted sum -> missing-EOS rule: the scores, and what is paid."""
    scores = trainer.rewards.score(
        trainer.chat, prompts, tokens, where, contract=trainer.contract,
        trained=lambda: by_micro_batch(trainer, tokens, update, "reward")["scores_BM"],
    )  # fmt: skip
    penalty = trainer.config.missing_eos_penalty
    return scores, reward_maths.penalise_missing_eos(scores.normalised_B, finished_B, penalty)


def layout(trainer: Trainer, tokens: Tokens, update: int) -> list[list[int]]:
    """The update's micro-batches: one partition of its rows, the same for old log-probs and for every epoch.

    bf16 products round differently in another layout, so this is what makes the first ratio exactly 1. Minibatches
    are runs of whole micro-batches, so their rows do not depend on the micro-batch size; epochs shuffle their order.
    Within a minibatch rows are sorted by length, so that a micro-batch holds little padding.
    """
    lengths = tokens.lengths_B.tolist()
    order = rng.permutation(trainer.run.seed, "ppo/layout", update, len(lengths))
    mini, micro = trainer.config.minibatch_size, trainer.config.micro_batch_size
    minibatches = [sorted(order[i : i + mini], key=lambda row: lengths[row]) for i in range(0, len(order), mini)]
    return [rows[i : i + micro] for rows in minibatches for i in range(0, len(rows), micro)]


@torch.no_grad()
def by_micro_batch(trainer: Trainer, tokens: Tokens, update: int, role: Role) -> dict[str, Tensor]:
    """Everything `role` can say about `tokens`, computed in the update's layout, rows back in their order."""
    need = {"policy": {"logprobs", "values"}, "reference": {"logprobs"}, "reward": {"scores"}}[role]
    found: dict[str, Tensor] = {}
    for rows in layout(trainer, tokens, update):
        output = (trainer.scorer if role == "reward" else trainer.roles)(tokens.rows(rows), role, frozenset(need))
        for name, part in vars(output).items():
            if part is not None:
                shape = (len(tokens.lengths_B), part.shape[1]) if name == "scores_BM" else tokens.tokens_BT.shape
                whole = found.setdefault(name, part.new_zeros(shape))
                whole[:, : part.shape[1]][rows] = part
    return found


def update_policy(trainer: Trainer, batch: RolloutBatch, update: int, clock: Clock) -> dict[str, float]:
    """All epochs over one batch; returns metrics averaged over its optimiser steps."""
    config = trainer.config
    micro_batches = layout(trainer, batch.tokens, update)
    per_step = config.minibatch_size // config.micro_batch_size
    steps: list[dict[str, float]] = []
    with clock.part("training"):
        for epoch in range(config.epochs):
            for i in rng.permutation(trainer.run.seed, f"ppo/epoch/{epoch}", update, len(micro_batches) // per_step):
                where = f"PPO update {update + 1}, step {len(steps) + 1}"
                terms, ratio_gap = _accumulate(trainer, batch, micro_batches[i * per_step : (i + 1) * per_step], where)
                if not steps:
                    invariants.check_first_ratio(ratio_gap, trainer.run.machine.dtype)
                terms["learning_rate"] = float(trainer.schedule.get_last_lr()[0])
                terms["grad_norm"] = optimiser_step(trainer.optimiser, trainer.schedule, config.max_grad_norm, where)
                steps.append(terms)
    # The entropy is logged once, over the batch as it was sampled.
    return {name: float(np.mean([step[name] for step in steps])) for name in steps[0] if name != "entropy"}


def _accumulate(
    trainer: Trainer, batch: RolloutBatch, micro_batches: list[list[int]], where: str
) -> tuple[dict[str, float], float]:
    """Backward over the micro-batches of one optimiser step; returns its terms and max |ratio − 1|."""
    config = trainer.config
    # One denominator for the whole step: its reply tokens (correctness.md row 14).
    count = float(sum(int(batch.tokens.rows(rows).reply_lengths_B.sum()) for rows in micro_batches))
    totals: dict[str, float] = {}
    ratio_gap = 0.0
    for rows in micro_batches:
        tokens = batch.tokens.rows(rows)
        output = trainer.roles(tokens, "policy", frozenset({"logprobs", "values"}))
        assert output.logprobs_BT is not None and output.values_BT is not None and output.entropy_BT is not None
        here = (rows, slice(tokens.tokens_BT.shape[1]))
        old_logprobs_BT = batch.old_logprobs_BT[here]
        terms = ppo_loss(
            logprobs_BT=output.logprobs_BT,
            old_logprobs_BT=old_logprobs_BT,
            advantages_BT=batch.advantages_BT[here],
            values_BT=output.values_BT,
            returns_BT=batch.returns_BT[here],
            entropy_BT=output.entropy_BT,
            mask_BT=tokens.mask_BT,
            count=count,
            clip_range=config.clip_range,
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
        )
        invariants.check_finite("the loss", terms.loss.item(), where)
        terms.loss.backward()
        ratio_BT = (output.logprobs_BT.detach() - old_logprobs_BT).exp()
        ratio_gap = max(ratio_gap, (ratio_BT - 1).abs().max().item())
        for name, value in vars(terms).items():
            totals[name] = totals.get(name, 0.0) + value.item()
    return totals, ratio_gap


@torch.no_grad()
def evaluate(trainer: Trainer, prompts: list[Prompt]) -> dict[str, float]:
    """The policy on held-out prompts, with the same random numbers every time: score, KL a reply, length, endings."""
    tokens, _, finished_B = sample(trainer, prompts, "ppo/validation", 0)
    scores, paid_B = score(trainer, prompts, tokens, finished_B, 0, "PPO, validation prompts")
    policy = by_micro_batch(trainer, tokens, 0, "policy")
    reference = by_micro_batch(trainer, tokens, 0, "reference")
    kl_BT = reward_maths.kl_estimate(policy["logprobs_BT"], reference["logprobs_BT"])
    return {
        "score": paid_B.mean().item(),
        "kl": kl_BT.sum(dim=1).mean().item(),
        "entropy": masked_mean(policy["entropy_BT"], tokens.mask_BT).item(),
        "length": tokens.reply_lengths_B.float().mean().item(),
        "eos": finished_B.float().mean().item(),
        **scores.metrics,
    }
