"""PPO: sample, score, reward, advantage, update, record, look, keep the best; on one base with four roles.

    L(φ,ψ) = Ê_t[ L_CLIP(φ) − c1·L_VF(ψ) + c2·S[π_φ](s_t) ],   loss = −L                 (Schulman et al. 2017)
    R_t = −β·(log π_φold(a_t|s_t) − log π_ref(a_t|s_t)), + the whitened score at the last token

Settings are in ppo_config.py, a score's way in ppo_scores.py, the validation prompts in ppo_evaluate.py, what these
share in ppo_trainer.py, what a checkpoint keeps in ppo_state.py. The policy that is kept is the best on the validation
prompts among those within the KL budget; it is not simply the last. Leaves ppo/adapter (PEFT), ppo/value_head and, of a
critic of its own, ppo/critic, ppo/model (merged checkpoint), ppo/metrics.jsonl, ppo/evaluations.jsonl,
ppo/validation/*.jsonl, ppo/times.jsonl, ppo/rollouts/*.safetensors and ppo/summary.json.

    plaudit ppo RECIPE
"""

from functools import partial
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo import advantages as estimators
from plaudit.algo import rewards as reward_maths
from plaudit.algo.masked import masked_mean, whiten
from plaudit.algo.statistics import explained_variance
from plaudit.data.annotator import Annotator
from plaudit.data.chat import ChatFormat
from plaudit.data.examples import Encoder
from plaudit.data.packing import Example
from plaudit.dist.machine import release_memory
from plaudit.errors import UserError
from plaudit.guard import invariants
from plaudit.guard.doctor import latest
from plaudit.guard.invariants import digest
from plaudit.guard.watch import verdict
from plaudit.models.config import LoraSettings
from plaudit.models.export import export_policy
from plaudit.models.heads import save_head
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.kernels.compiled import compile_layers
from plaudit.models.kernels.fused import plain
from plaudit.models.load import load_model
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens
from plaudit.records import Prompt
from plaudit.rewards.saved import RewardFiles, RewardModel
from plaudit.rewards.sources import Rewards, Scores
from plaudit.rollout.batch import RolloutBatch
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.display import console, progress
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.ppo.checks import RunChecks
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.looks import Keeper, Looks
from plaudit.stages.ppo.scores import clipped_and_scaled, earned, picked, score_references
from plaudit.stages.ppo.state import forget_later, pack, unpack
from plaudit.stages.ppo.step import accumulate, gather_new_logprobs
from plaudit.stages.ppo.trainer import Numbers, Trainer, as_rows, by_micro_batch, layout, raw_scores, sample
from plaudit.stages.reward.loop import trained_reward
from plaudit.train.micro_batches import MicroBatches, batch_kept
from plaudit.train.optimiser import MasterAdamW, optimiser_step, schedule_of
from plaudit.train.run import Run
from plaudit.train.saving import Saver


def run(config: PPOConfig, run: Run, annotator: Annotator | None = None) -> dict[str, Any]:
    """Train, keep the best policy, save; returns the summary. `annotator` gives the validation replies' gold score."""
    trainer = _build(config, run)
    folder = run.folder.stage("ppo")
    train, validation = run.split("train"), run.split("validation")
    checks, stopped, seconds = RunChecks(trainer), None, list[float]()
    looks = Looks(trainer, validation, annotator, folder)
    keeper = Keeper(config.keep_by, config.watch.patience, config.kl_budget)
    saver = Saver(run, "ppo", {what: digest(found) for what, found in checks.before.items()}, trainer.ranks)
    if saver.state is not None:
        seconds = unpack(saver.state, trainer, looks, keeper)
    else:
        # A fresh policy is the SFT model: its replies are what foreign scores are normalised and centred on.
        trainer.rewards.prepare(trainer.chat, train, lambda few: sample(trainer, few, "ppo/reference", 0)[0], folder)
        if config.sigmoid_centred:
            score_references(trainer, train, validation, folder)
    forget_later(folder, saver.step)
    metrics, evaluated = saver.log("metrics.jsonl"), saver.log("evaluations.jsonl")
    times, rows = saver.log("times.jsonl", timed=True), read_metrics(metrics.path)
    with saver, progress("PPO", config.updates, "update") as advance:
        advance(count=saver.step)
        for update in range(saver.step, config.updates + 1):
            last = update == config.updates
            saver.checkpoint(update, lambda: pack(trainer, looks, keeper, seconds), last=last)
            if update % config.evaluate_every == 0 or last:
                evaluated.log(**looks.look(update))
                keeper.add(looks.rows[-1], trainer.roles.adapter_state())
                stopped = verdict(looks.rows, config.watch)
            if last or stopped is not None:
                break
            clock = Clock()
            checks.before_rollout()
            batch, about_batch = rollout(trainer, picked(trainer, train, update), update, clock)
            checks.before_update(batch, update)
            _store(trainer, batch, update)  # before the update, so that one that stops leaves what it stopped on
            about_update = update_policy(trainer, batch, update, clock)
            _store(trainer, batch, update)
            kl = about_batch["kl"]
            trainer.numbers.controller = reward_maths.adapt_kl(trainer.numbers.controller, kl, config.batch_size)
            rows.append({"update": update + 1, **about_batch, **about_update})
            metrics.log(**rows[-1])
            times.log(update=update + 1, **clock.seconds)
            release_memory()
            seconds.append(sum(clock.seconds.values()))
            note = f"score {about_batch['score']:+.2f}  KL {kl:.1f}  length {about_batch['length']:.0f}"
            symptom = latest(rows, config.model_dump())
            advance(note if symptom is None else f"{note}  doctor: {symptom}")

    checks.at_end()
    if stopped is not None:
        console.print(f"PPO was stopped by the watch: {stopped}", soft_wrap=True)
    kept, state = keeper.kept(stopped=stopped is not None)
    trainer.roles.load_adapter_state(state)
    if trainer.ranks.first:
        _save(trainer)
    summary = {
        "updates": update,
        "kept_update": kept["update"],
        "kept_by": keeper.by,
        "seconds_per_update": float(np.median(seconds[1:] or seconds)),
        "kl": kept["kl"],
        "score_sft": looks.rows[0]["score"],
        "score_ppo": kept["score"],
        "length_sft": looks.rows[0]["length"],
        "length_ppo": kept["length"],
        "stopped": stopped,
    }
    return run.finish("ppo", "PPO", summary, tuple(name for name in summary if summary[name] is not None))


def _build(config: PPOConfig, run: Run) -> Trainer:
    chat = run.chat(run.sft_model)
    rewards = Rewards(config.rewards, run.machine, run.ranks)
    files = trained_reward(run, chat) if rewards.trained else None
    source, machine = str(run.sft_model), run.machine
    base = load_model(source, machine.dtype, machine.device)
    roles = Roles(
        base,
        trained="policy",
        lora=config.lora,
        seed=run.seed,
        reward=files.adapters if files else [],
        critic=_critic_start(config, files),
        value_gradient=config.value_gradient and config.critic == "policy",
        temperature=config.temperature,
    )
    reward = files.attach(roles, machine.dtype, machine.device) if files else None
    # For its kernel, the faster one for short rows; a model that does not take it keeps its own. Only now, since it
    # rounds otherwise in bf16: golden scores are compared as they were made, by the usual kernel.
    rows = prepare_attention(base)
    if config.torch_compile:
        compile_layers(base)
    else:
        # On a GPU padded rows were faster (docs/benchmarks.md).
        roles.packs = rows.kind == "shared" and not plain() and machine.device.type == "cpu"
    if config.critic == "own" and reward is not None and files is not None and files.adapters:
        roles.start_critic(reward.contract.mean[0], reward.contract.std[0])
    engine = InProcessEngine(
        load_model(source, machine.dtype, machine.device),
        eos_id=chat.eos_id,
        temperature=config.temperature,
    )
    return _trainer(config, run, chat, rewards, roles, reward, engine)


def _critic_start(config: PPOConfig, files: RewardFiles | None) -> Path | LoraSettings | None:
    """What a critic of its own starts from: the trained reward model's adapter; where there is none, a fresh one."""
    if config.critic != "own":
        return None
    return files.adapters[0] if files is not None and files.adapters else config.lora


def _trainer(
    config: PPOConfig,
    run: Run,
    chat: ChatFormat,
    rewards: Rewards,
    roles: Roles,
    reward: RewardModel | None,
    engine: InProcessEngine,
) -> Trainer:
    policy = roles.adapter_parameters("policy")
    critic = [*roles.adapter_parameters("critic"), *roles.value_head.parameters()]
    groups: list[dict[str, Any]] = [{"params": policy, "lr": config.learning_rate}]
    groups += [{"params": critic, "lr": config.critic_learning_rate}] if config.has_critic else []
    optimiser = MasterAdamW(groups, betas=(0.9, 0.95), eps=1e-5)
    steps = config.updates * config.steps_per_update
    starts = [config.critic_warmup * config.steps_per_update]
    schedule = schedule_of(optimiser, steps, config.warmup_steps, config.schedule, starts)
    controller = reward_maths.KLController(config.kl_coef, config.kl_target, config.kl_horizon)
    scorer, contract = (reward.model, reward.contract) if reward else (None, None)
    demonstrations = _demonstrations(config, run, chat) if config.ptx_coef else []
    return Trainer(
        config, run, chat, roles, scorer, engine, rewards, contract, optimiser, schedule, Numbers(controller),
        MicroBatches(run.folder.stage("ppo"), config.micro_batch[0], alone=run.ranks.count == 1), demonstrations,
    )  # fmt: skip


def _demonstrations(config: PPOConfig, run: Run, chat: ChatFormat) -> list[Example]:
    """The training demonstrations that PTX mixes in, as tokens."""
    encoder = Encoder(chat, config.ptx_max_length, "left_truncate")
    train = run.demonstrations.where(run.demonstrations.splits == "train")
    found = [example for example in map(encoder.encode, train) if example is not None]
    if not found:
        raise UserError(f"every training demonstration's reply is longer than ppo.ptx_max_length={encoder.max_length}")
    return found


def _store(trainer: Trainer, batch: RolloutBatch, update: int) -> None:
    if trainer.ranks.first:
        batch.save(trainer.run.folder.stage("ppo") / "rollouts" / f"{update + 1:05d}.safetensors")


def _save(trainer: Trainer) -> None:
    config, run, roles = trainer.config, trainer.run, trainer.roles
    folder = run.folder.stage("ppo")
    roles.save_adapter(folder / "adapter")
    if config.has_critic:
        save_head(roles.value_head, folder / "value_head")
    if config.critic == "own":
        roles.save_adapter(folder / "critic", 1)
    export_policy(roles, trainer.chat, str(run.sft_model), folder / "model", run.machine.dtype)


@torch.no_grad()
def rollout(
    trainer: Trainer, prompts: list[Prompt], update: int, clock: Clock
) -> tuple[RolloutBatch, dict[str, float]]:
    """Sample replies, score them, and turn scores into rewards, advantages and returns."""
    config, dtype = trainer.config, trainer.run.machine.dtype
    with clock.part("rollout"):
        tokens, sampler_logprobs_BT, finished_B = sample(trainer, prompts, "ppo/rollout", update)
    mask_BT = tokens.mask_BT
    where, folder = f"PPO update {update + 1}", trainer.run.folder.stage("ppo")
    with clock.part("scoring"), batch_kept(folder, where, partial(as_rows, trainer, prompts, tokens)):
        scores, ref_logprobs_BT, old = judge(trainer, prompts, tokens, update, where)
        old_logprobs_BT, values_BT, last_values_B = old["logprobs_BT"], old.get("values_BT"), old.get("last_values_B")
        gap_mean, gap_p99 = invariants.check_sampler(sampler_logprobs_BT, old_logprobs_BT, mask_BT, dtype)
        k1_BT = reward_maths.kl_estimate(old_logprobs_BT, ref_logprobs_BT)
        invariants.check_finite("a log-probability", k1_BT.sum().item(), where)
        if update == 0:
            invariants.check_fresh_kl(k1_BT, dtype)

    earned_B, terms = earned(trainer, prompts, tokens, finished_B, scores)
    scores_B, scale = clipped_and_scaled(config, trainer.numbers, earned_B)
    kl_BT = reward_maths.kl_estimate(old_logprobs_BT, ref_logprobs_BT, config.kl_estimator)
    coef = trainer.numbers.controller.coef
    in_reward = coef if config.kl_in == "reward" else 0.0
    rewards_BT = reward_maths.token_rewards(scores_B, kl_BT, mask_BT, in_reward)
    bootstrap_B = None if last_values_B is None else torch.where(finished_B, 0.0, last_values_B)
    advantages_BT, returns_BT = advantages(config, rewards_BT, values_BT, mask_BT, bootstrap_B)

    batch = RolloutBatch(
        tokens, finished_B, scores.raw_scores_BM, scores_B, old_logprobs_BT, ref_logprobs_BT, sampler_logprobs_BT,
        old["entropy_BT"], values_BT, kl_BT, rewards_BT, advantages_BT, returns_BT, last_values_B,
        old_logprobs_BT.clone(),
    )  # fmt: skip
    about = {
        "score": earned_B.mean().item(),
        "score_std": earned_B.std(unbiased=False).item(),
        "kl": k1_BT.sum(dim=1).mean().item(),
        "kl_per_token": masked_mean(k1_BT, mask_BT).item(),
        "kl_coef": coef,
        "effective_kl_coef": coef * scale,
        "kl_penalty": in_reward * kl_BT.sum(dim=1).mean().item(),
        "entropy": masked_mean(old["entropy_BT"], mask_BT).item(),
        "length": tokens.reply_lengths_B.float().mean().item(),
        "eos": finished_B.float().mean().item(),
        "sampler_gap_mean": gap_mean,
        "sampler_gap_p99": gap_p99,
        **scores.metrics,
        **terms,
    }
    if values_BT is not None and returns_BT is not None:
        about["explained_variance"] = explained_variance(values_BT[mask_BT].cpu(), returns_BT[mask_BT].cpu())
    return batch, about


def judge(
    trainer: Trainer, prompts: list[Prompt], tokens: Tokens, update: int, where: str
) -> tuple[Scores, Tensor, dict[str, Tensor]]:
    """Scores of a rollout, the reference's log-probs [B, T], and what policy and critic say of it; all in one layout,
    so that where memory runs out all are done again."""

    def passes() -> tuple[Scores, Tensor, dict[str, Tensor]]:
        scores = raw_scores(trainer, prompts, tokens, update, where)
        ref_logprobs_BT = by_micro_batch(trainer, tokens, update, "reference")["logprobs_BT"]
        old = by_micro_batch(trainer, tokens, update, "policy")
        if trainer.config.critic == "own":
            old |= by_micro_batch(trainer, tokens, update, "critic")
        return scores, ref_logprobs_BT, old

    return trainer.micro.fit(trainer.config.micro_batch[1], where, passes, lambda: None)


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
        case "grpo":
            group, scale_std = config.replies_per_prompt, config.grpo_std
            advantages_BT, _ = estimators.grpo(rewards_BT, mask_BT, group_size=group, scale_std=scale_std)
        case "reinforce_pp":
            advantages_BT, _ = estimators.reinforce_plus_plus(rewards_BT, mask_BT, gamma=config.gamma)
        case _:
            assert_never(config.advantages)
    if config.whitens_advantages:
        advantages_BT, _ = whiten(advantages_BT, mask_BT)
    return advantages_BT, returns_BT


def update_policy(trainer: Trainer, batch: RolloutBatch, update: int, clock: Clock) -> dict[str, float]:
    """All epochs over one batch; returns metrics averaged over its optimiser steps, and how many there were."""
    config = trainer.config
    count = config.batch_size // config.minibatch_size
    order = [
        (epoch, i)
        for epoch in range(config.epochs)
        for i in rng.permutation(trainer.run.seed, f"ppo/epoch/{epoch}", update, count)
    ]
    steps: list[dict[str, float]] = []
    with clock.part("training"):
        for number, (_, i) in enumerate(order):
            where = f"PPO update {update + 1}, step {number + 1}"
            step = update * config.steps_per_update + number
            terms, ratio_gap = gradient(trainer, batch, i, update, step, where, first=not steps)
            if not steps:
                invariants.check_first_ratio(ratio_gap, trainer.run.machine.dtype)
            if config.target_kl is not None and terms["approx_kl"] > config.target_kl:
                trainer.roles.zero_grad(set_to_none=True)
                break
            terms["learning_rate"] = float(trainer.schedule.get_last_lr()[0])
            terms["grad_norm"] = optimiser_step(trainer.optimiser, trainer.schedule, config.max_grad_norm, where)
            steps.append(terms)
        for _ in range(len(order) - len(steps)):
            trainer.schedule.step()  # the rate depends on the update, not on how early those before it ended
        gather_new_logprobs(trainer, batch, layout(trainer, batch.tokens, update))
    # The entropy is logged once, over the batch as it was sampled.
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0] if name != "entropy"}
    return {**means, "steps": len(steps)}


def gradient(
    trainer: Trainer, batch: RolloutBatch, number: int, update: int, step: int, where: str, *, first: bool
) -> tuple[dict[str, float], float]:
    """Backward over the update's minibatch `number`; returns its terms and max |ratio − 1|.

    Where memory runs out it is done again in smaller micro-batches. Before the `first` step of an update the old
    log-probabilities are then computed anew in these, so that the first ratio is 1 in them too.
    """
    before = trainer.micro.halvings

    def backward() -> tuple[dict[str, float], float]:
        if first and trainer.micro.halvings > before:
            batch.old_logprobs_BT.copy_(by_micro_batch(trainer, batch.tokens, update, "policy")["logprobs_BT"])
        return accumulate(trainer, batch, layout(trainer, batch.tokens, update)[number], update, step, where)

    undo = partial(trainer.roles.zero_grad, set_to_none=True)
    return trainer.micro.fit(trainer.config.micro_batch[1], where, backward, undo)
