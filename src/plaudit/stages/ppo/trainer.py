"""What PPO's loop holds, how it is built, and the passes its parts share: one partition, forward passes, scores."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit import rng
from plaudit.algo.masked import Moments
from plaudit.algo.rewards import KLController, Multiplier
from plaudit.data.chat import ChatFormat
from plaudit.data.examples import Encoder
from plaudit.data.packing import Example
from plaudit.errors import UserError
from plaudit.models.adapted import put_adapter
from plaudit.models.full import FullRoles
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.kernels.choose import own_decoder
from plaudit.models.load import CPU, load_model
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Need, Role, Roles
from plaudit.models.rounding import Rounding
from plaudit.models.sharded import shard
from plaudit.models.tokens import Tokens
from plaudit.records import Prompt
from plaudit.rewards.config import earns_by_trained
from plaudit.rewards.saved import trained_reward
from plaudit.rewards.sources import RewardSources, Scores
from plaudit.rollout.batch import minibatches
from plaudit.rollout.engine import Engine
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.sampling import Sampler
from plaudit.train.micro_batches import MicroBatches
from plaudit.train.optimiser import MasterAdamW, schedule_of
from plaudit.train.run import Run
from plaudit.train.saving import load_parameters


@dataclass
class Numbers:
    """The plain numbers that an update hands to the next one; with weights and optimiser they are PPO's whole state."""

    controller: KLController
    first_std: float | None = None
    """Std of the first update's scores: whitening is floored at a quarter of it."""
    sampler_noise: float | None = None
    """Mean square of sampler − trainer in the first rollout: rounding, before there is an adapter to lose."""
    running: Moments = field(default_factory=Moments)
    """Of all scores so far, for the running scale."""
    multipliers: dict[str, Multiplier] = field(default_factory=dict)
    """Source -> λ, of the constraints."""


class Trainer:
    """What the loop holds: the four roles, the sampling engine, the optimiser, and the numbers it hands on."""

    def __init__(self, config: PPOConfig, run: Run):
        """The four roles on the run's SFT model, the sampling engine with its own copy, the sources that pay."""
        self.config, self.run, self.ranks = config, run, run.ranks
        self.chat = run.chat(run.sft_model)
        self.rewards = RewardSources(config.rewards, run.machine, run.ranks)
        files = trained_reward(run.folder, self.chat) if self.rewards.trained else None
        adapters = files.adapters if files else []
        machine = run.machine
        # The reward model stands on the SFT model, also where the policy and its reference have left that.
        moved = run.rounds.moves_reference
        self.roles = _roles(config, run, [] if moved else adapters)
        on = self.roles if isinstance(self.roles, Roles) else self.roles.others
        if moved and adapters:
            on = Roles(run.base()[0], reward=adapters)
        reward = files.attach(on, machine.dtype, machine.device) if files else None
        self.scorer = reward.model if reward else None
        self.contract = reward.contract if reward else None
        # For its kernel, the faster one for short rows; a model that does not take it keeps its own. Only now, since it
        # rounds otherwise in bf16: golden scores are compared as they were made, by the usual kernel.
        own = None if config.sampling_copy else own_decoder(self.roles.bases[0], self.roles.as_policy)
        shares = machine.device.type == "cpu"
        for base in self.roles.bases:
            shares = prepare_attention(base).kind == "shared" and shares
            if config.gradient_checkpointing:
                recompute_activations(base)
        # On a GPU padded rows were faster (docs/benchmarks.md).
        self.roles.packs = shares
        learnt = config.critic == "own" and earns_by_trained(config.rewards)
        if learnt and reward is not None and isinstance(reward.model, Roles):
            reward.model.start_critic(reward.contract.mean[0], reward.contract.std[0])
        if isinstance(self.roles, Roles):
            shard(self.roles, self.roles.bases[0], run.ranks)
        self.engine: Engine = (
            run.engine(run.last_policy if moved else run.sft_model, self.chat)
            if own is None
            else InProcessEngine(own.model, eos_id=self.chat.ends, temperature=run.sampling.temperature, decoder=own)
        )
        self.sampler = Sampler(run, self.roles, self.engine, self.chat)
        self.optimiser, self.schedule = _optimiser(config, run, self.roles)
        self.numbers = Numbers(KLController(config.kl_coef, config.kl_target, config.kl_horizon))
        key = "micro_batch_size" if config.micro_batch_tokens is None else "micro_batch_tokens"
        self.micro = MicroBatches(run, "ppo", key, config.micro_batch_size, tokens=config.micro_batch_tokens)
        self.demonstrations = _demonstrations(run, self.chat) if config.ptx_coef else []
        """What PTX mixes in."""
        self.references: dict[str, dict[str, float]] = {}
        """Prompt id -> source -> normalised score of the reference reply, where scores are centred on it."""

    @property
    def starts_as_reference(self) -> bool:
        """Whether the policy is its reference before it has learnt: not where it goes on from an earlier round."""
        return not self.run.rounds.goes_on or self.run.rounds.moves_reference

    def needs(self, role: Role) -> frozenset[Need]:
        """What the loop asks of a role about a rollout."""
        found: set[Need] = {"scores"} if role == "reward" else set() if role == "critic" else {"logprobs"}
        if self.config.has_critic and role == ("critic" if self.config.critic == "own" else "policy"):
            found |= {"values", "last_values"} if self.config.bootstrap else {"values"}
        return frozenset(found)


def _roles(config: PPOConfig, run: Run, reward: list[Path]) -> Roles | FullRoles:
    """The roles on the run's SFT model, with the adapters `reward` of its reward model; or on the policy of the round
    before, where that is the reference."""
    moved = run.rounds.moves_reference
    # A critic of its own starts from the adapter of the reward model that pays; where there is none, from a fresh one.
    # A score that is only watched must have no part in what is learnt.
    critic = None if config.critic != "own" else reward[0] if reward and earns_by_trained(config.rewards) else run.lora
    common: dict[str, Any] = {"value_gradient": config.critic == "policy", "temperature": run.sampling.temperature}
    base, under = (
        (load_model(str(run.last_policy), run.machine.dtype, run.machine.device), None) if moved else run.base()
    )
    if run.lora is not None:
        # A served sampler loses what bfloat16 loses of a small adapter in its own order: the policy is to be its like.
        served = run.rollout.engine == "vllm"
        common |= {"lora": run.lora, "seed": run.seed, "under": under, "base_first": served}
        return Roles(base, trained="policy", reward=reward, critic=critic, **common)
    others = Roles(base, reward=reward, critic=critic, plain_base=True, **common) if reward else None
    policy = copy.deepcopy(base) if moved else run.base()[0]
    return FullRoles(policy, base, others, away=CPU if config.offload_reference else None, **common)


def whole_again(trainer: Trainer) -> Roles:
    """The roles as they are, on a base that this rank has all of: read once more, where memory is cheap."""
    run, config = trainer.run, trainer.config
    assert isinstance(trainer.roles, Roles)
    files = trained_reward(run.folder, trainer.chat) if trainer.rewards.trained else None
    roles = _roles(config, replace(run, machine=replace(run.machine, device=CPU)), files.adapters if files else [])
    assert isinstance(roles, Roles)
    load_parameters(roles.trainable(), trainer.roles.adapter_state())
    return roles


@torch.no_grad()
def start_from_last(trainer: Trainer) -> None:
    """Put the policy that the round before kept into roles that stand on the SFT model, and begin to optimise there."""
    run, roles = trainer.run, trainer.roles
    if not isinstance(roles, Roles):
        last = load_model(str(run.last_policy), run.machine.dtype, run.machine.device)
        load_parameters(dict(roles.policy.named_parameters()), dict(last.named_parameters()))
    else:
        put_adapter(roles.peft, "policy", run.before[-1] / "ppo" / "adapter")
    trainer.optimiser, trainer.schedule = _optimiser(trainer.config, run, roles)


def _optimiser(
    config: PPOConfig, run: Run, roles: Roles | FullRoles
) -> tuple[MasterAdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the policy and, at a rate of its own, the critic; and the schedule of both."""
    critic = [*roles.adapter_parameters("critic"), *roles.value_head.parameters()]
    groups: list[dict[str, Any]] = [{"params": roles.adapter_parameters("policy"), "lr": config.learning_rate}]
    groups += [{"params": critic, "lr": config.critic_learning_rate}] if config.has_critic else []
    rounding = None if run.lora is not None else Rounding(run.seed, "ppo/policy")
    optimiser = MasterAdamW(groups, betas=(0.9, 0.95), eps=1e-5, rounding=rounding)
    steps, starts = config.updates * config.steps_per_update, [config.critic_warmup * config.steps_per_update]
    return optimiser, schedule_of(optimiser, steps, run.optimiser.warmup_steps, run.optimiser.schedule, starts)


def _demonstrations(run: Run, chat: ChatFormat) -> list[Example]:
    """The training demonstrations that PTX mixes in, as tokens."""
    encoder = Encoder(chat, run.max_length, "left_truncate")
    train = run.demonstrations.where(run.demonstrations.splits == "train")
    found = [example for example in map(encoder.encode, train) if example is not None]
    if not found:
        raise UserError(f"every training demonstration's reply is longer than sft.max_length={encoder.max_length}")
    return found


def layout(trainer: Trainer, tokens: Tokens, number: int) -> list[list[list[int]]]:
    """The update's minibatches, each in its micro-batches: one partition, the same for old log-probs and every epoch.

    bf16 products round differently in another layout, so this is what makes the first ratio exactly 1. Epochs shuffle
    the order of the minibatches.
    """
    config, lengths, prompts = trainer.config, tokens.lengths_B.tolist(), tokens.prompts
    order = rng.permutation(trainer.run.seed, "ppo/layout", number, len(lengths))
    rows, budget = trainer.micro.bounds(config.minibatch_size)
    return minibatches(lengths, prompts, order, config.minibatch_size, rows=rows, tokens=budget)


@torch.no_grad()
def by_micro_batch(trainer: Trainer, tokens: Tokens, number: int, role: Role) -> dict[str, Tensor]:
    """Everything the loop asks `role` about `tokens`, computed in the update's layout, rows back in their order.

    Every rank does its share of each minibatch: the very micro-batches that it will train on.
    """
    model, found = trainer.scorer if role == "reward" else trainer.roles, dict[str, Tensor]()
    assert model is not None
    passes = trainer.ranks.passes
    for rows, weight in (one for minibatch in layout(trainer, tokens, number) for one in passes(minibatch)):
        output = model(tokens.rows(rows), role, trainer.needs(role))
        for name, part in vars(output).items():
            if part is None or not weight:
                continue
            width = tokens.tokens_BT.shape[1:] if name.endswith("_BT") else part.shape[1:]
            whole = found.setdefault(name, part.new_zeros(len(tokens.lengths_B), *width))
            if part.dim() == 1:
                whole[rows] = part
            else:
                whole[:, : part.shape[1]][rows] = part
    return {name: whole.to(trainer.run.machine.device) for name, whole in trainer.ranks.total(found).items()}


def raw_scores(
    trainer: Trainer, prompts: Sequence[Prompt], tokens: Tokens, number: int, where: str, *, watched: bool = False
) -> Scores:
    """What the sources say of the replies, raw and normalised."""
    trained_BM = None
    if trainer.rewards.asks_trained(watched=watched):
        trained_BM = by_micro_batch(trainer, tokens, number, "reward")["scores_BM"]
    return trainer.rewards.score(
        trainer.chat, prompts, tokens, where, trained_BM=trained_BM, contract=trainer.contract, watched=watched
    )
