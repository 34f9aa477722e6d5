"""What PPO's loop holds, and the calls that its parts share: sampling, one partition, forward passes, raw scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo.masked import Moments
from plaudit.algo.rewards import KLController
from plaudit.data.chat import ChatFormat
from plaudit.data.packing import Example
from plaudit.dist.ranks import Ranks
from plaudit.models.full import FullReward
from plaudit.models.roles import Need, Role, Roles
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Prompt
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.sources import Rewards, Scores
from plaudit.rollout.batch import minibatches, per_token
from plaudit.rollout.engine import Sampled
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.stages.ppo.config import PPOConfig
from plaudit.train.micro_batches import MicroBatches
from plaudit.train.optimiser import MasterAdamW
from plaudit.train.run import Run


@dataclass
class Numbers:
    """The plain numbers that an update hands to the next one; with weights and optimiser they are PPO's whole state."""

    controller: KLController
    first_std: float | None = None
    """Std of the first update's scores: whitening is floored at a quarter of it."""
    running: Moments = field(default_factory=Moments)
    """Of all scores so far, for the running scale."""


@dataclass
class Trainer:
    """What the loop holds: the four roles, the sampling engine, the optimiser, and the numbers it hands on."""

    config: PPOConfig
    run: Run
    chat: ChatFormat
    roles: Roles
    scorer: Roles | FullReward | None
    engine: InProcessEngine
    rewards: Rewards
    contract: RewardContract | None
    optimiser: MasterAdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    numbers: Numbers
    micro: MicroBatches
    demonstrations: list[Example] = field(default_factory=list)
    """What PTX mixes in."""
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    """Prompt id -> source -> normalised score of the reference reply, where scores are centred on it."""

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work."""
        return self.run.ranks

    @property
    def value_role(self) -> Role:
        """Whose pass gives the values."""
        return "critic" if self.config.critic == "own" else "policy"

    def needs(self, role: Role) -> frozenset[Need]:
        """What the loop asks of a role about a rollout."""
        found: dict[Role, set[Need]] = {"policy": {"logprobs"}, "reference": {"logprobs"}, "reward": {"scores"}}
        own = found.get(role, set())
        if self.config.has_critic and role == self.value_role:
            own |= {"values", "last_values"} if self.config.bootstrap else {"values"}
        return frozenset(own)


def sample(trainer: Trainer, prompts: Sequence[Prompt], stream: str, step: int) -> tuple[Tokens, Tensor, Tensor]:
    """One reply a prompt from the current policy: tokens, the sampler's log-probs [B, T], which replies ended [B].

    Every rank samples its share of the replies; their random numbers are their own wherever they are sampled.
    """
    prompt_ids = [trainer.chat.prompt_ids(prompt.messages) for prompt in prompts]
    mine, longest = trainer.ranks.share(range(len(prompts))), trainer.config.max_new_tokens
    uniforms = rng.uniforms(trainer.run.seed, stream, step, list(mine), longest)
    trainer.engine.load_weights(trainer.roles.merged_weights("policy"))
    sampled = all_replies(trainer, mine, trainer.engine.generate([prompt_ids[i] for i in mine], uniforms), len(prompts))
    device = trainer.run.machine.device
    tokens = pad_right(prompt_ids, [reply.ids for reply in sampled], trainer.chat.pad_id, device)
    finished_B = torch.tensor([reply.ids[-1] == trainer.chat.eos_id for reply in sampled], device=device)
    return tokens, per_token([reply.logprobs for reply in sampled], tokens), finished_B


def all_replies(trainer: Trainer, rows: Sequence[int], sampled: Sequence[Sampled], count: int) -> list[Sampled]:
    """The `count` replies of all ranks, in the order of their rows; this rank has `sampled` those of `rows`."""
    lengths_B = torch.zeros(count, dtype=torch.int64)
    ids_BN = torch.zeros(count, trainer.config.max_new_tokens, dtype=torch.int64)
    logprobs_BN = torch.zeros(ids_BN.shape, dtype=torch.float64)
    for row, reply in zip(rows, sampled, strict=True):
        here = (row, slice(len(reply.ids)))
        lengths_B[row], ids_BN[here] = len(reply.ids), torch.tensor(reply.ids)
        logprobs_BN[here] = torch.tensor(reply.logprobs, dtype=torch.float64)
    whole = trainer.ranks.total({"lengths": lengths_B, "ids": ids_BN, "logprobs": logprobs_BN})
    return [
        Sampled(ids[:length], logprobs[:length])
        for ids, logprobs, length in zip(
            whole["ids"].tolist(), whole["logprobs"].tolist(), whole["lengths"].tolist(), strict=True
        )
    ]


def layout(trainer: Trainer, tokens: Tokens, update: int) -> list[list[list[int]]]:
    """The update's minibatches, each in its micro-batches: one partition, the same for old log-probs and every epoch.

    bf16 products round differently in another layout, so this is what makes the first ratio exactly 1. Epochs shuffle
    the order of the minibatches.
    """
    config, lengths, prompts = trainer.config, tokens.lengths_B.tolist(), tokens.prompts
    order = rng.permutation(trainer.run.seed, "ppo/layout", update, len(lengths))
    if config.micro_batch_tokens is not None:
        budget = trainer.micro.rows(config.micro_batch_tokens)
        return minibatches(lengths, prompts, order, config.minibatch_size, tokens=budget)
    rows = trainer.micro.rows(config.micro_batch_size)
    return minibatches(lengths, prompts, order, config.minibatch_size, rows=rows)


@torch.no_grad()
def by_micro_batch(trainer: Trainer, tokens: Tokens, update: int, role: Role) -> dict[str, Tensor]:
    """Everything the loop asks `role` about `tokens`, computed in the update's layout, rows back in their order.

    Every rank does its share of each minibatch: the very micro-batches that it will train on.
    """
    model, found = trainer.scorer if role == "reward" else trainer.roles, dict[str, Tensor]()
    assert model is not None
    share = trainer.ranks.share
    for rows in (rows for minibatch in layout(trainer, tokens, update) for rows in share(minibatch)):
        output = model(tokens.rows(rows), role, trainer.needs(role))
        for name, part in vars(output).items():
            if part is None:
                continue
            width = tokens.tokens_BT.shape[1:] if name.endswith("_BT") else part.shape[1:]
            whole = found.setdefault(name, part.new_zeros(len(tokens.lengths_B), *width))
            if part.dim() == 1:
                whole[rows] = part
            else:
                whole[:, : part.shape[1]][rows] = part
    return {name: whole.to(trainer.run.machine.device) for name, whole in trainer.ranks.total(found).items()}


def raw_scores(
    trainer: Trainer, prompts: Sequence[Prompt], tokens: Tokens, update: int, where: str, *, watched: bool = False
) -> Scores:
    """What the sources say of the replies, raw and normalised."""
    return trainer.rewards.score(
        trainer.chat, prompts, tokens, where, contract=trainer.contract, watched=watched,
        trained=lambda: by_micro_batch(trainer, tokens, update, "reward")["scores_BM"],
    )  # fmt: skip


def as_rows(trainer: Trainer, prompts: Sequence[Prompt], tokens: Tokens) -> list[dict[str, Any]]:
    """What is kept of a rollout that stopped before it was stored: each reply with its prompt and ids."""
    return [
        {**prompt.as_json(), **trainer.chat.completion(ids).as_json(), "ids": ids}
        for prompt, ids in zip(prompts, tokens.replies, strict=True)
    ]
