"""The second verb of PPO: `update(batch) -> metrics`. All epochs over one batch, an optimiser step a minibatch.

    L(φ,ψ) = Ê_t[ L_CLIP(φ) − c1·L_VF(ψ) + c2·S[π_φ](s_t) ],   loss = −L       (algo/losses.py: ppo_loss)

and the KL loss and PTX where the recipe has them. Every term divides by a count of the whole step, so that neither the
split into micro-batches nor the number of ranks that share them changes anything.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo.losses import kl_loss, ppo_loss, sampler_weights
from plaudit.guard import invariants
from plaudit.models.tokens import pad_examples
from plaudit.rollout.batch import RolloutBatch, minibatches
from plaudit.run.metrics import Clock
from plaudit.stages.ppo.trainer import Trainer, by_micro_batch, layout
from plaudit.train.optimiser import optimiser_step

Minibatch = list[list[int]]
"""The rows of one optimiser step, in its micro-batches."""


def update(trainer: Trainer, batch: RolloutBatch, number: int, clock: Clock) -> tuple[RolloutBatch, dict[str, float]]:
    """Train on the batch of update `number`; returns it with the log-probabilities of its last pass, and metrics
    averaged over its optimiser steps, and how many there were."""
    config = trainer.config
    count = config.batch_size // config.minibatch_size
    order = [
        place
        for epoch in range(config.epochs)
        for place in rng.permutation(trainer.run.seed, f"ppo/epoch/{epoch}", number, count)
    ]
    steps: list[dict[str, float]] = []
    new_logprobs_BT = batch.old_logprobs_BT.clone()
    with clock.part("training"):
        for done, place in enumerate(order):
            where, step = f"PPO update {number + 1}, step {done + 1}", number * config.steps_per_update + done
            batch, terms, ratio_gap = gradient(trainer, batch, new_logprobs_BT, number, place, step, where)
            if done == 0:
                invariants.check_first_ratio(ratio_gap, trainer.run.machine.dtype)
            if config.target_kl is not None and terms["approx_kl"] > config.target_kl:
                trainer.roles.zero_grad(set_to_none=True)
                break
            terms["learning_rate"] = float(trainer.schedule.get_last_lr()[0])
            terms["grad_norm"] = optimiser_step(
                trainer.optimiser, trainer.schedule, trainer.run.optimiser.max_grad_norm, where
            )
            steps.append(terms)
        for _ in range(len(order) - len(steps)):
            trainer.schedule.step()  # the rate depends on the update, not on how early those before it ended
        # Every row's new log-probs on every rank: those of a row are known where its micro-batches were trained.
        shares = [trainer.ranks.share(minibatch) for minibatch in layout(trainer, batch.tokens, number)]
        mine = [row for share in shares for rows in share for row in rows]
        own_BT = torch.zeros_like(new_logprobs_BT)
        own_BT[mine] = new_logprobs_BT[mine]
        whole_BT = trainer.ranks.total({"new": own_BT})["new"]
    # The entropy is logged once, over the batch as it was sampled.
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0] if name != "entropy"}
    return replace(batch, new_logprobs_BT=whole_BT), {**means, "steps": len(steps)}


def gradient(
    trainer: Trainer, batch: RolloutBatch, new_logprobs_BT: Tensor, number: int, place: int, step: int, where: str
) -> tuple[RolloutBatch, dict[str, float], float]:
    """Backward over minibatch `place` of update `number`, for optimiser step `step` of the run; returns the batch, the
    step's terms and max |ratio − 1|.

    Where memory runs out it is done again in smaller micro-batches. Before the first step of an update the old
    log-probabilities are then computed anew in these, so that the first ratio is 1 in them too: the batch has them.
    """
    before, first = trainer.micro.halvings, step == number * trainer.config.steps_per_update

    def backward() -> tuple[RolloutBatch, dict[str, float], float]:
        used = batch
        if first and trainer.micro.halvings > before:
            again = by_micro_batch(trainer, batch.tokens, number, "policy")
            used = replace(batch, old_logprobs_BT=again["logprobs_BT"])
        minibatch = layout(trainer, used.tokens, number)[place]
        return used, *accumulate(trainer, used, new_logprobs_BT, minibatch, number, step, where)

    undo = partial(trainer.roles.zero_grad, set_to_none=True)
    return trainer.micro.fit(where, backward, undo)


def accumulate(
    trainer: Trainer,
    batch: RolloutBatch,
    new_logprobs_BT: Tensor,
    minibatch: Minibatch,
    number: int,
    step: int,
    where: str,
) -> tuple[dict[str, float], float]:
    """Backward over the micro-batches of one optimiser step, divided among the ranks; returns the step's terms and this
    rank's max |ratio − 1|. The log-probabilities of the pass go into the rows of `new_logprobs_BT`."""
    config = trainer.config
    warming = number < config.critic_warmup
    # One denominator for the whole step: its reply tokens (docs/correctness.md, row 14).
    count = float(sum(int(batch.tokens.rows(rows).reply_lengths_B.sum()) for rows in minibatch))
    totals: dict[str, float] = {}
    ratio_gap = 0.0
    for rows, weight in trainer.ranks.passes(minibatch):
        loss, terms, logprobs_BT = _loss(trainer, batch, rows, count, warming=warming)
        invariants.check_finite("the loss", terms["loss"], where)
        (weight * loss).backward()
        if not weight:
            continue
        place = (rows, slice(logprobs_BT.shape[1]))
        new_logprobs_BT[place] = logprobs_BT
        ratio_gap = max(ratio_gap, ((logprobs_BT - batch.old_logprobs_BT[place]).exp() - 1).abs().max().item())
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + value
    if config.ptx_coef and not warming:
        totals["ptx_loss"] = _mix_in_demonstrations(trainer, step, where)
        totals["loss"] = totals.get("loss", 0.0) + config.ptx_coef * totals["ptx_loss"]
    if warming:
        for parameter in trainer.roles.adapter_parameters("policy"):
            parameter.grad = None
    trainer.ranks.add_gradients(trainer.roles.trainable().values())
    whole = trainer.ranks.total({name: torch.tensor(total, dtype=torch.float64) for name, total in totals.items()})
    return {name: total.item() for name, total in whole.items()}, ratio_gap


def _loss(
    trainer: Trainer, batch: RolloutBatch, rows: list[int], count: float, *, warming: bool
) -> tuple[Tensor, dict[str, float], Tensor]:
    """The loss of a micro-batch, its terms for the log, and the policy's log-probabilities [B, T] without gradient."""
    config, roles, tokens = trainer.config, trainer.roles, batch.tokens.rows(rows)
    place = (rows, slice(tokens.tokens_BT.shape[1]))
    output = roles(tokens, "policy", trainer.needs("policy") - {"last_values"})
    values_BT = output.values_BT
    if config.critic == "own":
        values_BT = roles(tokens, "critic", frozenset({"values"})).values_BT
    old_logprobs_BT, advantages_BT = batch.old_logprobs_BT[place], batch.advantages_BT[place]
    weights_BT = sampler_weights(
        trainer.run.rollout.sampler_correction, old_logprobs_BT, batch.sampler_logprobs_BT[place]
    )
    terms = ppo_loss(
        logprobs_BT=output.logprobs_BT,
        old_logprobs_BT=old_logprobs_BT,
        # While the critic warms up nothing but its own loss is left.
        advantages_BT=torch.zeros_like(advantages_BT) if warming else advantages_BT,
        values_BT=values_BT,
        returns_BT=None if batch.returns_BT is None else batch.returns_BT[place],
        entropy_BT=output.entropy_BT,
        mask_BT=tokens.mask_BT,
        count=count,
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        dual_clip=config.dual_clip,
        old_values_BT=None if batch.values_BT is None or config.value_clip is None else batch.values_BT[place],
        value_clip=config.value_clip,
        value_coef=config.value_coef,
        entropy_coef=0.0 if warming else config.entropy_coef,
        weights_BT=weights_BT,
    )
    loss, logged = terms.loss, {name: value.item() for name, value in vars(terms).items()}
    if config.kl_penalty == "loss" and not warming:
        kl = kl_loss(
            logprobs_BT=output.logprobs_BT,
            old_logprobs_BT=old_logprobs_BT,
            ref_logprobs_BT=batch.ref_logprobs_BT[place],
            mask_BT=tokens.mask_BT,
            count=count,
            weights_BT=weights_BT,
        )
        loss = loss + trainer.numbers.controller.coef * kl
        logged |= {"loss": loss.item(), "kl_loss": kl.item()}
    return loss, logged, output.logprobs_BT.detach()


def _mix_in_demonstrations(trainer: Trainer, step: int, where: str) -> float:
    """PTX (Ouyang et al. 2022, arXiv:2203.02155): backward of the SFT loss on a few demonstrations; returns this
    rank's part of that loss, in nats a completion token."""
    config, device = trainer.config, trainer.run.machine.device
    places = rng.stream(
        trainer.run.seed, "ppo/ptx", len(trainer.demonstrations), step * config.ptx_rows, config.ptx_rows
    )
    chosen = [trainer.demonstrations[place] for place in places]
    count, total = sum(example.targets for example in chosen), 0.0
    lengths = [len(example.ids) for example in chosen]
    rows, tokens = trainer.micro.bounds(len(chosen))
    (parts,) = minibatches(lengths, places, range(len(chosen)), len(chosen), rows=rows, tokens=tokens)
    for part, weight in trainer.ranks.passes(parts):
        examples = pad_examples([chosen[i] for i in part], trainer.chat.pad_id, device)
        loss = trainer.roles(examples, "policy", frozenset({"loss"})).loss / count
        invariants.check_finite("the PTX loss", loss.item(), where)
        (weight * config.ptx_coef * loss).backward()
        total += weight * loss.item()
    return total
