"""One optimiser step's gradient: the PPO loss over its micro-batches, the KL loss and PTX where the recipe has them.

Every term divides by a count of the whole step, so that neither the split into micro-batches nor the number of ranks
that share them changes anything.
"""

import torch

from plaudit import rng
from plaudit.algo.losses import kl_loss, ppo_loss
from plaudit.guard import invariants
from plaudit.models.tokens import pad_examples
from plaudit.rollout.batch import RolloutBatch, minibatches
from plaudit.stages.ppo.trainer import Trainer


def accumulate(
    trainer: Trainer, batch: RolloutBatch, minibatch: list[list[int]], update: int, step: int, where: str
) -> tuple[dict[str, float], float]:
    """Backward over the micro-batches of one optimiser step, divided among the ranks; returns the step's terms and this
    rank's max |ratio − 1|."""
    config, roles, numbers = trainer.config, trainer.roles, trainer.numbers
    warming = update < config.critic_warmup
    # One denominator for the whole step: its reply tokens (docs/correctness.md, row 14).
    count = float(sum(int(batch.tokens.rows(rows).reply_lengths_B.sum()) for rows in minibatch))
    totals: dict[str, float] = {}
    ratio_gap = 0.0
    for rows in trainer.ranks.share(minibatch):
        tokens = batch.tokens.rows(rows)
        here = (rows, slice(tokens.tokens_BT.shape[1]))
        output = roles(tokens, "policy", trainer.needs("policy") - {"last_values"})
        values_BT = output.values_BT
        if config.critic == "own":
            values_BT = roles(tokens, "critic", frozenset({"values"})).values_BT
        old_logprobs_BT, advantages_BT = batch.old_logprobs_BT[here], batch.advantages_BT[here]
        clips_values = batch.values_BT is not None and config.value_clip is not None
        terms = ppo_loss(
            logprobs_BT=output.logprobs_BT,
            old_logprobs_BT=old_logprobs_BT,
            # While the critic warms up nothing but its own loss is left.
            advantages_BT=torch.zeros_like(advantages_BT) if warming else advantages_BT,
            values_BT=values_BT,
            returns_BT=None if batch.returns_BT is None else batch.returns_BT[here],
            entropy_BT=output.entropy_BT,
            mask_BT=tokens.mask_BT,
            count=count,
            clip_range=config.clip_range,
            clip_range_high=config.clip_range_high,
            dual_clip=config.dual_clip,
            old_values_BT=batch.values_BT[here] if batch.values_BT is not None and clips_values else None,
            value_clip=config.value_clip,
            value_coef=config.value_coef,
            entropy_coef=0.0 if warming else config.entropy_coef,
        )
        loss, found = terms.loss, {name: value.item() for name, value in vars(terms).items()}
        if config.kl_in == "loss" and not warming:
            kl = kl_loss(
                logprobs_BT=output.logprobs_BT,
                old_logprobs_BT=old_logprobs_BT,
                ref_logprobs_BT=batch.ref_logprobs_BT[here],
                mask_BT=tokens.mask_BT,
                count=count,
            )
            loss = loss + numbers.controller.coef * kl
            found |= {"loss": loss.item(), "kl_loss": kl.item()}
        invariants.check_finite("the loss", found["loss"], where)
        loss.backward()
        if batch.new_logprobs_BT is not None:
            batch.new_logprobs_BT[here] = output.logprobs_BT.detach()
        ratio_BT = (output.logprobs_BT.detach() - old_logprobs_BT).exp()
        ratio_gap = max(ratio_gap, (ratio_BT - 1).abs().max().item())
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value
    if config.ptx_coef and not warming:
        totals["ptx_loss"] = _mix_in_demonstrations(trainer, step, where)
        totals["loss"] = totals.get("loss", 0.0) + config.ptx_coef * totals["ptx_loss"]
    if warming:
        for parameter in roles.adapter_parameters("policy"):
            parameter.grad = None
    trainer.ranks.add_gradients(roles.trainable().values())
    whole = trainer.ranks.total({name: torch.tensor(total, dtype=torch.float64) for name, total in totals.items()})
    return {name: total.item() for name, total in whole.items()}, ratio_gap


def gather_new_logprobs(trainer: Trainer, batch: RolloutBatch, parts: list[list[list[int]]]) -> None:
    """Every row's new log-probs on every rank: those of a row are known where its micro-batches were trained."""
    if batch.new_logprobs_BT is not None:
        mine = [row for minibatch in parts for rows in trainer.ranks.share(minibatch) for row in rows]
        own_BT = torch.zeros_like(batch.new_logprobs_BT)
        own_BT[mine] = batch.new_logprobs_BT[mine]
        batch.new_logprobs_BT.copy_(trainer.ranks.total({"new": own_BT})["new"])


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
    rows, tokens = (None, config.micro_batch_tokens) if config.micro_batch_tokens else (config.micro_batch_size, None)
    (parts,) = minibatches(lengths, places, range(len(chosen)), len(chosen), rows=rows, tokens=tokens)
    for part in trainer.ranks.share(parts):
        examples = pad_examples([chosen[i] for i in part], trainer.chat.pad_id, device)
        loss = trainer.roles(examples, "policy", frozenset({"loss"})).loss / count
        invariants.check_finite("the PTX loss", loss.item(), where)
        (config.ptx_coef * loss).backward()
        total += loss.item()
    return total
