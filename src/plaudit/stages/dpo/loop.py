"""DPO: the policy learns the rankings themselves, without a reward model and without sampling.

    h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)      β·h is the margin of the implicit rewards
    loss = −(1/n) Σ_rankings (1/pairs) Σ_(w,l) log σ(β·h)          or, with loss: ipo, (h − 1/2β)²

after Rafailov et al. 2023 (arXiv:2305.18290) and Azar et al. 2023 (arXiv:2310.12036). It reads the rankings that the
reward model reads and starts where PPO starts: on the SFT model, with PPO's adapter and at its temperature. What the
reference says of every reply is computed once. The weights with the lowest held-out loss at the end of an epoch are
kept. Leaves dpo/adapter (PEFT; not for full fine-tuning), dpo/model (merged checkpoint), dpo/metrics.jsonl and
dpo/summary.json.

    plaudit dpo RECIPE
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from plaudit import rng
from plaudit.algo.preferences import dpo_loss
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rankings
from plaudit.data.hashes import sha256
from plaudit.data.packing import cost_of
from plaudit.errors import UserError
from plaudit.guard.invariants import check_finite, check_unchanged, fingerprint, joint_fingerprint
from plaudit.models.export import export_policy
from plaudit.models.full import FullRoles
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Role, Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import pad_right
from plaudit.records import Ranking
from plaudit.run.display import progress
from plaudit.stages.dpo.config import DPOConfig
from plaudit.train.micro_batches import MicroBatches, batch_kept
from plaudit.train.optimiser import MasterAdamW, move_schedule, optimiser_step, schedule_of
from plaudit.train.run import Run
from plaudit.train.saving import Saver, State, load_parameters, within

WHERE = "preferences/rankings.jsonl"
EARLIER = "preferences/earlier.jsonl"
"""Those of the rounds before, where there are some."""


@dataclass(frozen=True)
class Example:
    """A ranking in tokens: its pairs as (better, worse, probability that better wins), and log π_ref of its replies."""

    ranking: Ranking
    prompt: list[int]
    replies: list[list[int]]
    pairs: list[tuple[int, int, float]]
    reference: list[float]


class DPOTraining:
    """What the loop holds: policy and reference on one base, and the rankings with what the reference says of them."""

    def __init__(self, config: DPOConfig, run: Run, chat: ChatFormat):
        """On the run's SFT model; of each ranking's replies the reference's log-probabilities are computed here."""
        self.config, self.run, self.chat = config, run, chat
        base, under = run.base()
        temperature = run.sampling.temperature
        self.model: Roles | FullRoles = (
            FullRoles(run.base()[0], base, None, value_gradient=False, temperature=temperature)
            if run.lora is None
            else Roles(base, trained="policy", lora=run.lora, seed=run.seed, temperature=temperature, under=under)
        )
        shares = run.machine.device.type == "cpu"
        for one in self.model.bases:
            shares = prepare_attention(one).kind == "shared" and shares
            if config.gradient_checkpointing:
                recompute_activations(one)
        self.model.packs = shares
        rounding = None if run.lora is not None else Rounding(run.seed, "dpo/policy")
        groups = [{"params": self.model.adapter_parameters("policy"), "lr": config.learning_rate}]
        self.optimiser = MasterAdamW(groups, rounding=rounding)
        self.micro = MicroBatches(run, "dpo", "rankings_per_micro_batch", config.rankings_per_micro_batch)
        rankings = [r for file in files_of(run) for r in read_rankings(file)]
        learnt = [r for r in rankings if r.prompt.split == "train" and pairs_of(config, r)]
        strict = [r for r in rankings if r.prompt.split != "train" and r.pairs()]
        # What is kept is chosen on these: where there is a validation split, the test split is left to judge it.
        held_out = [r for r in strict if r.prompt.split == "validation"] or strict
        check_rankings(config, learnt, held_out)
        with progress("Reference", len(learnt) + len(held_out), "ranking") as advance:
            self.train, self.held_out = ([self._encoded(r, advance) for r in part] for part in (learnt, held_out))
        self.per_epoch = -(-len(self.train) // config.rankings_per_step)
        self.steps = config.epochs * self.per_epoch
        self.schedule: LambdaLR = schedule_of(
            self.optimiser, self.steps, run.optimiser.warmup_steps, run.optimiser.schedule
        )
        self.best: dict[str, Tensor] = {}
        self.evaluations: list[dict[str, float]] = []
        self.seconds = 0.0

    @torch.no_grad()
    def _encoded(self, ranking: Ranking, advance: Any) -> Example:
        prompt = self.chat.prompt_ids(ranking.prompt.messages)
        replies = [self.chat.reply_ids(reply) for reply in ranking.replies]
        example = Example(ranking, prompt, replies, pairs_of(self.config, ranking), [])
        advance()
        return Example(**{**vars(example), "reference": self.logprobs([example], "reference").tolist()})

    def logprobs(self, examples: Sequence[Example], role: Role) -> Tensor:
        """log π of every reply [N] under policy or reference, in order."""
        rows = [(example.prompt, reply) for example in examples for reply in example.replies]
        tokens = pad_right([p for p, _ in rows], [r for _, r in rows], self.chat.pad_id, self.model.device)
        logprobs_BT = self.model(tokens, role, frozenset({"logprobs"})).logprobs_BT
        assert isinstance(logprobs_BT, Tensor)
        return logprobs_BT.sum(dim=1)

    def micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Rankings of one forward and backward pass, of like length."""
        cost = [cost_of(e.prompt, e.replies, shared=self.model.packs) for e in examples]
        return [[examples[i] for i in group] for group in self.micro.groups(cost, packed=False)]


def files_of(run: Run) -> list[Path]:
    """Where the rankings are, in the order in which the reward model reads them."""
    return [file for name in (EARLIER, WHERE) if (file := run.folder.path / name).is_file()]


def pairs_of(config: DPOConfig, ranking: Ranking) -> list[tuple[int, int, float]]:
    """(better, worse, probability that better wins) of what is learnt of a ranking; empty where that is nothing."""
    found = [(w, l, 1.0) for w, l in ranking.pairs()]
    if config.ties == "half":
        both = combinations(range(len(ranking.ranks)), 2)
        found += [(i, j, 0.5) for i, j in both if ranking.ranks[i] == ranking.ranks[j]]
    return found


def check_rankings(config: DPOConfig, learnt: Sequence[Ranking], held_out: Sequence[Ranking]) -> None:
    """UserError where the rankings leave nothing to learn or to test on, or a setting without effect."""
    if not learnt or not held_out:
        raise UserError(
            f"{WHERE} has {len(learnt)} training and {len(held_out)} held-out rankings with a strict pair; DPO needs "
            "both: give each row a field 'split', train for most and validation or test for some"
        )
    if config.ties == "half" and all(len(set(r.ranks)) == len(r.ranks) for r in learnt):
        raise UserError("dpo.ties=half needs ties: no training ranking has any; leave the setting out")


def train(config: DPOConfig, run: Run) -> dict[str, Any]:
    """Train, keep the best, merge, save; returns the summary."""
    run.folder.require(WHERE, "preferences")
    training = DPOTraining(config, run, run.chat(run.sft_model))
    frozen = fingerprint(training.model.base_tensors())
    inputs = {"base": joint_fingerprint(frozen), **{file.stem: sha256(file) for file in files_of(run)}}
    with Saver.open(run, "dpo", inputs) as saver:
        optimise(training, saver)
    check_unchanged("the frozen base", frozen, fingerprint(training.model.base_tensors()))
    load_parameters(training.model.trainable(), training.best)
    kept = min(training.evaluations[1:], key=lambda row: row["eval_loss"])
    _save(training)
    first = training.evaluations[0]
    pairs = sum(len(example.pairs) for example in training.train)
    summary = {
        "loss": config.loss,
        "rankings_train": len(training.train),
        "pairs_train": pairs,
        "rankings_held_out": len(training.held_out),
        "steps": training.steps,
        "kept_step": int(kept["step"]),
        "eval_loss_before": first["eval_loss"],
        "eval_loss_after": kept["eval_loss"],
        "accuracy": kept["eval_accuracy"],
        "margin": kept["eval_margin"],
        "pairs_per_second": config.epochs * pairs / training.seconds,
    }
    return run.finish("dpo", "DPO", summary, tuple(summary))


def optimise(training: DPOTraining, saver: Saver) -> None:
    """The loop: the optimiser steps that a checkpoint, if there is one, has not done yet."""
    config, run = training.config, training.run
    metrics, number = saver.log("metrics.jsonl"), saver.step
    with progress("DPO", training.steps, "step") as advance:
        if saver.state is None:
            metrics.log(step=0, **_evaluate(training, 0))
        else:
            _unpack(training, saver.state)
            advance(count=number)
        while number < training.steps:
            epoch, offset = divmod(number, training.per_epoch)
            number += 1
            where, started = f"DPO step {number}", time.perf_counter()
            order = rng.permutation(run.seed, "dpo", epoch, len(training.train))
            rows = order[offset * config.rankings_per_step : (offset + 1) * config.rankings_per_step]
            examples = [training.train[i] for i in rows]
            with batch_kept(metrics.path.parent, where, partial(_as_rows, examples)):
                row = _accumulate(training, examples, where)
                row["learning_rate"] = float(training.schedule.get_last_lr()[0])
                limit = run.optimiser.max_grad_norm
                row["grad_norm"] = optimiser_step(training.optimiser, training.schedule, limit, where)
            training.seconds += time.perf_counter() - started
            if number % training.per_epoch == 0:
                row |= _evaluate(training, number)
            metrics.log(step=number, **row)
            advance(f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.2f}")
            saver.checkpoint(number, lambda: _pack(training), last=number == training.steps)


def _loss(training: DPOTraining, examples: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
    """(Σ over the rankings of their losses; sums over the rankings of the share of strict pairs that are right and of
    the mean margin of the implicit rewards of these). A pair of equal implicit rewards counts ½."""
    config = training.config
    reference_N = torch.tensor([value for e in examples for value in e.reference], device=training.model.device)
    ratio_N = training.logprobs(examples, "policy") - reference_N
    better, worse, targets, weights, first = list[int](), list[int](), list[float](), list[float](), 0
    right, margin = 0.0, 0.0
    for e in examples:
        better += [first + w for w, _, _ in e.pairs]
        worse += [first + l for _, l, _ in e.pairs]
        targets += [target for *_, target in e.pairs]
        weights += [1 / len(e.pairs)] * len(e.pairs)
        strict = [(w, l) for w, l, target in e.pairs if target == 1]
        if strict:
            own_N = ratio_N.detach()[first : first + len(e.replies)]
            h_P = own_N[[w for w, _ in strict]] - own_N[[l for _, l in strict]]
            right += (torch.sign(h_P) / 2 + 0.5).mean().item()
            margin += config.beta * h_P.mean().item()
        first += len(e.replies)
    loss = dpo_loss(
        ratio_N[better],
        ratio_N[worse],
        ratio_N.new_tensor(weights),
        beta=config.beta,
        loss=config.loss,
        targets=ratio_N.new_tensor(targets),
        label_smoothing=config.label_smoothing,
    )
    return loss, {"accuracy": right, "margin": margin}


def _accumulate(training: DPOTraining, examples: list[Example], where: str) -> dict[str, float]:
    """Backward over micro-batches of whole rankings; the step's loss and its measures."""
    strict = sum(bool(e.ranking.pairs()) for e in examples)

    def backward() -> dict[str, float]:
        found = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        for part in training.micro_batches(examples):
            total, measures = _loss(training, part)
            loss = total / len(examples)
            check_finite("the loss", loss.item(), where)
            loss.backward()
            found["loss"] += loss.item()
            for name, value in measures.items():
                found[name] += value / max(strict, 1)
        return found

    return training.micro.fit(where, backward, training.model.zero_grad)


@torch.no_grad()
def _evaluate(training: DPOTraining, step: int) -> dict[str, float]:
    """Held-out loss a ranking, accuracy and margin of the implicit rewards. The weights with the lowest loss after a
    step are kept as the best."""
    found = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
    for part in training.micro_batches(training.held_out):
        loss, measures = _loss(training, part)
        for name, value in {"loss": loss.item(), **measures}.items():
            found[name] += value / len(training.held_out)
    row = {f"eval_{name}": value for name, value in found.items()}
    lowest = min((old["eval_loss"] for old in training.evaluations[1:]), default=float("inf"))
    if step > 0 and row["eval_loss"] < lowest:
        training.best = training.model.adapter_state()
    training.evaluations.append({"step": step, **row})
    return row


def _pack(training: DPOTraining) -> State:
    tensors = within("model", training.model.trainable()) | within("optimiser", training.optimiser.tensors())
    tensors |= within("best", training.best)
    values = {"evaluations": training.evaluations, "halvings": training.micro.halvings}
    values["schedule"] = training.schedule.last_epoch
    return State(tensors, values, {"seconds": training.seconds})


def _unpack(training: DPOTraining, state: State) -> None:
    load_parameters(training.model.trainable(), state.under("model"))
    training.optimiser.load_tensors(state.under("optimiser"))
    move_schedule(training.schedule, state.values["schedule"])
    training.best, training.evaluations = state.under("best"), state.values["evaluations"]
    training.micro.halvings, training.seconds = state.values["halvings"], state.times["seconds"]


def _save(training: DPOTraining) -> None:
    """The last thing that is done with the model: its base becomes the policy that is written."""
    run, model, folder = training.run, training.model, training.run.folder.stage("dpo")
    if isinstance(model, Roles):
        model.save_adapter(folder / "adapter")
    rounding, temperature = Rounding(run.seed, "dpo/model"), run.sampling.temperature
    to, dtype = folder / "model", run.machine.dtype
    export_policy(model, training.chat, str(run.sft_model), to, dtype, rounding, temperature)


def _as_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """What is kept of a step that stopped: its rankings."""
    return [e.ranking.as_json() for e in examples]
