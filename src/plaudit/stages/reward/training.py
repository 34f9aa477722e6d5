"""How the reward model learns: the comparisons in a ranking, their loss, and the optimiser steps of one member.

All comparisons of a ranking are in one step, and every ranking counts once (Ouyang et al. 2022;
docs/correctness.md, row 24). The losses are algo/preferences.py's; what becomes of the model is reward/loop.py's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plaudit import rng
from plaudit.algo.preferences import (
    LARGEST_TIE_GROUP,
    bradley_terry_loss,
    centring_penalty,
    davidson_loss,
    plackett_luce_loss,
    vote_targets,
)
from plaudit.data.chat import ChatFormat
from plaudit.data.packing import cost_of
from plaudit.errors import UserError
from plaudit.guard.invariants import check_finite
from plaudit.models.full import FullReward, raw_scores
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Roles, reward_adapter
from plaudit.models.tokens import ReplyRow, Tokens, pack_replies, pad_right
from plaudit.records import Labelled, Ranking
from plaudit.run.display import progress
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.reward.labels import EncodedLabel, encode_labels, labels_loss, places_of, starting_biases
from plaudit.train.micro_batches import MicroBatches, batch_kept
from plaudit.train.optimiser import MasterAdamW, move_schedule, optimiser_step, schedule_of
from plaudit.train.run import Run
from plaudit.train.saving import Saver, State, load_parameters, within

T = TypeVar("T")
EVALUATE_ON = 100
"""Held-out rankings in a held-out loss at most; of more, a seeded choice. The test at the end takes all."""


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking in tokens, and what is learnt of it: (better, worse, probability that better wins, margin)."""

    ranking: Ranking
    prompt: list[int]
    replies: list[list[int]]
    comparisons: list[tuple[int, int, float, float]]


def comparisons(config: RewardConfig, ranking: Ranking) -> list[tuple[int, int, float, float]]:
    """The pairs of a ranking under the settings; empty for one that teaches nothing."""
    strength = ranking.strength or 0.0
    found = [(w, l, 1.0, config.margin_coef * strength) for w, l in ranking.pairs()]
    if config.loss == "davidson" or config.ties == "half":
        ranks = ranking.ranks
        found += [(i, j, 0.5, 0.0) for i, j in combinations(range(len(ranks)), 2) if ranks[i] == ranks[j]]
    if config.soft_labels and ranking.votes is not None and found:
        votes = torch.tensor(ranking.votes, dtype=torch.float64)
        wins, losses = [w for w, *_ in found], [l for _, l, *_ in found]
        targets = vote_targets(votes[wins], votes[losses]).tolist()
        found = [(w, l, target, margin) for (w, l, _, margin), target in zip(found, targets, strict=True)]
    return found


def encode(config: RewardConfig, chat: ChatFormat, rankings: Sequence[Ranking]) -> list[EncodedRanking]:
    """The rankings that teach something, in tokens."""
    kept = [(ranking, pairs) for ranking in rankings if (pairs := comparisons(config, ranking))]
    return [
        EncodedRanking(r, chat.prompt_ids(r.prompt.messages), [chat.reply_ids(reply) for reply in r.replies], pairs)
        for r, pairs in kept
    ]


def divided(config: RewardConfig, rankings: Sequence[Ranking], where: str) -> tuple[list[Ranking], list[Ranking]]:
    """The rankings to learn from and those to test on; UserError, which names their file, where one kind is not there
    or a setting does not fit them."""
    learnt = [r for r in rankings if r.prompt.split == "train" and comparisons(config, r)]
    test = [r for r in rankings if r.prompt.split != "train" and r.pairs()]
    if not learnt or not test:
        raise UserError(
            f"{where} has {len(learnt)} training and {len(test)} held-out rankings with a strict pair; the reward "
            "model needs both: give each row a field 'split', train for most and validation or test for some (a row "
            "without one is of split train)"
        )
    check_rankings(config, learnt)
    return learnt, test


def check_rankings(config: RewardConfig, rankings: Sequence[Ranking]) -> None:
    """UserError for a setting that these training rankings leave without effect, or that cannot take them."""
    tied = any(len(set(r.ranks)) < len(r.ranks) for r in rankings)
    needs = {
        "reward.soft_labels=true needs votes": config.soft_labels and all(r.votes is None for r in rankings),
        "reward.margin_coef needs rankings with a strength": config.margin_coef > 0
        and all(r.strength is None for r in rankings),
        "reward.ties=half needs ties": config.ties == "half" and not tied,
        "reward.loss=davidson needs ties": config.loss == "davidson" and not tied,
    }
    for what, lacking in needs.items():
        if lacking:
            raise UserError(f"{what}: no training ranking has any; leave the setting out")
    if config.loss == "plackett_luce":
        for r in rankings:
            groups = [len(group) for group in _tie_groups(r)[:-1]]
            if groups and max(groups) > LARGEST_TIE_GROUP:
                raise UserError(
                    f"ranking {r.prompt.id!r} ties {max(groups)} replies above others, reward.loss=plackett_luce takes "
                    f"{LARGEST_TIE_GROUP}; set reward.loss=davidson or pairs"
                )


def _tie_groups(ranking: Ranking, first: int = 0) -> list[list[int]]:
    """Replies from best to worst, ties together; numbered from `first`."""
    levels = sorted(set(ranking.ranks))
    return [[first + i for i, rank in enumerate(ranking.ranks) if rank == level] for level in levels]


Example = EncodedRanking | EncodedLabel
Rows = tuple[list[Ranking], list[Labelled]]


class RewardTraining:
    """The members in training, and what they learn from."""

    def __init__(self, config: RewardConfig, run: Run, chat: ChatFormat, learnt: Rows, test: Rows):
        """On the run's SFT model; the held-out loss is over some of the rankings and labels `test`."""
        full, dtype = run.lora is None, run.machine.dtype
        base, under = run.base(torch.float32 if full else dtype)
        self.config, self.optimiser, self.seed, self.chat = config, run.optimiser, run.seed, chat
        self.ranks = run.ranks
        self.model: Roles | FullReward = (
            FullReward(base, dtype, learns=True)
            if full
            else Roles(base, trained="reward", lora=run.lora, seed=run.seed, members=config.members, under=under)
        )
        if config.gradient_checkpointing:
            recompute_activations(base)
        self._places = places_of(config.annotator_bias, learnt[1])
        self._biases = starting_biases(self._places, learnt[1])
        """Of the labels' annotators: where each member begins."""
        self.held_out = self._encoded(self._some(test[0]), self._some(test[1]))
        self.micro = MicroBatches(run, "reward", "rankings_per_micro_batch", config.rankings_per_micro_batch)
        self.layout, self.train = prepare_attention(base), self._encoded(*learnt)
        self.log_nus: list[float] = []
        """log ν of the ties of every member that is trained; 0 unless the loss is davidson."""
        self.seconds: list[float] = []
        """Seconds of its steps, the member that is being trained included."""
        self.learns_too = ["log_nu"] * (config.loss == "davidson") + ["biases"] * bool(learnt[1])
        """What learns beside the model."""

    def own(self) -> nn.ParameterDict:
        """A member's own numbers, at their start: log ν of ties, and the biases of annotators."""
        start = {"log_nu": torch.zeros(()), "biases": self._biases.clone()}
        return nn.ParameterDict({name: nn.Parameter(value) for name, value in start.items()}).to(self.model.device)

    def _some(self, rows: Sequence[T]) -> list[T]:
        """Of many held-out rankings, or labels, a seeded choice, in file order."""
        return [rows[i] for i in sorted(rng.permutation(self.seed, "reward/held_out", 0, len(rows))[:EVALUATE_ON])]

    def _encoded(self, rankings: list[Ranking], labels: list[Labelled]) -> list[Example]:
        return [*encode(self.config, self.chat, rankings), *encode_labels(self.chat, self._places, labels)]

    def micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Examples of each forward and backward pass of this rank: of like cost when packed, of like length when
        padded."""
        cost = [cost_of(e.prompt, e.replies, shared=self.layout.kind == "shared") for e in examples]
        groups = self.micro.groups(cost, packed=self.layout.packs)
        return [[examples[i] for i in group] for group in self.ranks.share(groups)]

    def scores(self, examples: Sequence[Example], member: int) -> Tensor:
        """Raw scores [N] of all replies of the examples, in order."""
        tokens: Tokens | ReplyRow
        if not self.layout.packs:
            rows = [(e.prompt, reply) for e in examples for reply in e.replies]
            tokens = pad_right([p for p, _ in rows], [r for _, r in rows], self.chat.pad_id, self.model.device)
        else:
            groups = [(e.prompt, e.replies) for e in examples]
            tokens = pack_replies(groups, self.model.device, share=self.layout.kind == "shared")
        return raw_scores(self.model, tokens, member)[:, 0]


def rankings_loss(
    config: RewardConfig, scores_N: Tensor, examples: Sequence[EncodedRanking], log_nu: Tensor
) -> tuple[Tensor, float, int]:
    """(Σ over the rankings of their losses, strict pairs that are right, strict pairs); `scores_N` of all replies.
    A pair of equal scores counts ½: before the first step all are equal, since the head starts at zero.

    A ranking of P comparisons gives each the weight 1/P; of a whole order, with K − 1 choices, 1/(K − 1).
    """
    pairs, strict, orders, first = list[tuple[Any, ...]](), list[tuple[int, int]](), list[list[list[int]]](), 0
    for example in examples:
        weight = 1 / len(example.comparisons)
        pairs += [(first + w, first + l, target, margin, weight) for w, l, target, margin in example.comparisons]
        strict += [(first + w, first + l) for w, l in example.ranking.pairs()]
        orders.append(_tie_groups(example.ranking, first))
        first += len(example.replies)
    assert scores_N.shape == (first,), (scores_N.shape, first)
    better, worse, targets, margins, weights = (list(column) for column in zip(*pairs, strict=True))
    chosen_P, rejected_P = scores_N[better], scores_N[worse]
    targets_P, weights_P = scores_N.new_tensor(targets), scores_N.new_tensor(weights)
    match config.loss:
        case "pairs":
            loss = bradley_terry_loss(
                chosen_P,
                rejected_P,
                weights_P,
                targets=targets_P,
                margins=scores_N.new_tensor(margins),
                label_smoothing=config.label_smoothing,
            )
        case "davidson":
            loss = davidson_loss(chosen_P, rejected_P, targets_P, weights_P, log_nu)
        case "plackett_luce":
            choices = scores_N.new_tensor([1 / (len(example.replies) - 1) for example in examples])
            loss = plackett_luce_loss(scores_N, orders, choices)
    if config.centring_coef:
        loss = loss + config.centring_coef * centring_penalty(chosen_P, rejected_P, weights_P)
    winners, losers = ([pair[i] for pair in strict] for i in (0, 1))
    right = (torch.sign(scores_N[winners] - scores_N[losers]) / 2 + 0.5).sum().item()
    return loss, right, len(strict)


def examples_loss(
    config: RewardConfig, scores_N: Tensor, examples: Sequence[Example], own: nn.ParameterDict
) -> tuple[Tensor, float, int]:
    """(Σ of the losses of rankings and λ times those of labels, strict pairs and labels that are right, how many there
    are); `scores_N` of all replies."""
    rankings = [example for example in examples if isinstance(example, EncodedRanking)]
    if len(rankings) == len(examples):
        return rankings_loss(config, scores_N, rankings, own["log_nu"])
    labels = [example for example in examples if isinstance(example, EncodedLabel)]
    of_label = torch.tensor([isinstance(example, EncodedLabel) for example in examples for _ in example.replies])
    loss, right = labels_loss(scores_N[of_label], labels, own["biases"])
    if not rankings:
        return config.unpaired_coef * loss, right, len(labels)
    of_rankings, hits, pairs = rankings_loss(config, scores_N[~of_label], rankings, own["log_nu"])
    return of_rankings + config.unpaired_coef * loss, hits + right, pairs + len(labels)


def train_member(training: RewardTraining, member: int, saver: Saver) -> None:
    """The optimiser steps of one member that its checkpoint, if there is one, has not done yet."""
    config, seed = training.config, training.seed
    own = training.own()
    learnt_too = [own[name] for name in training.learns_too]
    parts = (f".{reward_adapter(member)}.", f"score_heads.{member}.")
    learning = [
        parameter
        for name, parameter in training.model.trainable().items()
        if isinstance(training.model, FullReward) or parts[0] in name or name.startswith(parts[1])
    ]
    optimiser = MasterAdamW([{"params": [*learning, *learnt_too], "lr": config.learning_rate}])
    per_epoch = -(-len(training.train) // config.rankings_per_step)
    steps = config.epochs * per_epoch
    schedule = schedule_of(optimiser, steps, training.optimiser.warmup_steps, training.optimiser.schedule)
    stream = "reward" if member == 0 else f"reward/{member}"
    title = "Reward model" if config.members == 1 else f"Reward model {member + 1} of {config.members}"
    metrics = saver.log("metrics.jsonl")
    before = member * steps  # a checkpoint counts the steps of all members
    number = max(saver.step - before, 0)
    with progress(title, steps, "step") as advance:
        if saver.state is not None and number > 0:
            load_parameters(dict(own.items()), saver.state.under("ties"))
            optimiser.load_tensors(saver.state.under("optimiser"))
            move_schedule(schedule, number)
            advance(count=number)
        else:
            training.seconds.append(0.0)
            metrics.log(step=0, member=member, **_evaluate(training, member, own))
        while number < steps:
            epoch, offset = divmod(number, per_epoch)
            number += 1
            where = f"reward step {number}" + (f" of member {member}" if config.members > 1 else "")
            started = time.perf_counter()
            order = rng.permutation(seed, stream, epoch, len(training.train))
            rows = order[offset * config.rankings_per_step : (offset + 1) * config.rankings_per_step]
            examples = [training.train[i] for i in rows]
            with batch_kept(metrics.path.parent, where, partial(_as_rows, examples)):
                loss, accuracy = _accumulate(training, examples, member, own, where)
                training.ranks.add_gradients([*learning, *learnt_too])
                row = {"loss": loss, "accuracy": accuracy, "learning_rate": schedule.get_last_lr()[0]}
                row["grad_norm"] = optimiser_step(optimiser, schedule, training.optimiser.max_grad_norm, where)
            training.seconds[member] += time.perf_counter() - started
            every = config.evaluate_every or per_epoch
            if number % every == 0 or number == steps:
                row |= _evaluate(training, member, own)
            metrics.log(step=number, member=member, **row)
            advance(f"loss {loss:.3f}  accuracy {accuracy:.2f}")
            if number == steps:
                training.log_nus.append(own["log_nu"].item())
            saver.checkpoint(before + number, lambda: _pack(training, optimiser, own), last=number == steps)


def _pack(training: RewardTraining, optimiser: MasterAdamW, own: nn.ParameterDict) -> State:
    tensors = within("model", training.model.trainable()) | within("optimiser", optimiser.tensors())
    tensors |= within("ties", dict(own.items()))
    values = {"log_nus": training.log_nus, "halvings": training.micro.halvings}
    return State(tensors, values, {"seconds": training.seconds})


def load_members(training: RewardTraining, state: State) -> None:
    """The weights of all members, as a checkpoint has them; the optimiser in it is of the one that was learning."""
    load_parameters(training.model.trainable(), state.under("model"))
    training.log_nus, training.seconds = list(state.values["log_nus"]), list(state.times["seconds"])
    training.micro.halvings = state.values["halvings"]


def _accumulate(
    training: RewardTraining, examples: list[Example], member: int, own: nn.ParameterDict, where: str
) -> tuple[float, float]:
    """Backward over this rank's micro-batches of whole examples; returns the whole step's loss and its accuracy."""

    def backward() -> tuple[float, float, int]:
        loss_sum, right, pairs = 0.0, 0.0, 0
        for part in training.micro_batches(examples):
            total, hits, of = examples_loss(training.config, training.scores(part, member), part, own)
            loss = total / len(examples)
            check_finite("the loss", loss.item(), where)
            loss.backward()
            loss_sum, right, pairs = loss_sum + loss.item(), right + hits, pairs + of
        return loss_sum, right, pairs

    def undo() -> None:
        training.model.zero_grad()
        own.zero_grad()

    mine = training.micro.fit(where, backward, undo)
    loss, right, pairs = training.ranks.sums(*mine)
    return loss, right / pairs if pairs else 0.5  # a step of ties only


def _as_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """What is kept of a step that stopped: its rankings and labels."""
    return [(e.labelled if isinstance(e, EncodedLabel) else e.ranking).as_json() for e in examples]


@torch.no_grad()
def _evaluate(training: RewardTraining, member: int, own: nn.ParameterDict) -> dict[str, float]:
    """Loss an example and accuracy, on strict pairs and labels, of the held-out ones."""
    loss_sum, right, pairs = 0.0, 0.0, 0
    begins = not training.model.score_heads[member].get_parameter("weight").any()  # so is every score 0, without a pass
    for part in training.micro_batches(training.held_out):
        replies = sum(len(example.replies) for example in part)
        scores_N = torch.zeros(replies, device=training.model.device) if begins else training.scores(part, member)
        loss, hits, of = examples_loss(training.config, scores_N, part, own)
        loss_sum, right, pairs = loss_sum + loss.item(), right + hits, pairs + of
    loss_sum, right, of_all = training.ranks.sums(loss_sum, right, pairs)
    return {"eval_loss": loss_sum / len(training.held_out), "eval_accuracy": right / of_all}
