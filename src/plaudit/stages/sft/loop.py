"""Supervised fine-tuning: the model learns the replies of the demonstrations; a LoRA adapter is merged at the end.

    loss = −(1/N) Σ log π(a_t | s_t)   over the N completion tokens (end-of-turn tokens included) of an optimiser step

Leaves sft/model (Hugging Face checkpoint: *the* SFT model from here on), sft/adapter (PEFT; not for full fine-tuning),
sft/metrics.jsonl, sft/samples.jsonl and sft/summary.json. Settings are in config.py. A cache of tokens on disk is
not here.

    plaudit sft RECIPE
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.data.examples import Encoder, Source, Step, held_out_rows, training_steps
from plaudit.data.mixture import Share, counts
from plaudit.data.packing import Example
from plaudit.data.table import DemonstrationTable
from plaudit.errors import UserError
from plaudit.guard.invariants import check_finite, check_unchanged, fingerprint, joint_fingerprint
from plaudit.models.export import merged_in_place
from plaudit.models.full import FullPolicy
from plaudit.models.kernels.attention import prepare_attention
from plaudit.models.load import CPU, ids_in, load_model, save_model
from plaudit.models.recompute import recompute_activations
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.sharded import shard
from plaudit.models.tokens import Batch, pack_examples, pad_examples
from plaudit.records import Demonstration, messages_as_json
from plaudit.run.display import progress
from plaudit.run.metrics import Metrics
from plaudit.stages.sft.config import SFTConfig, SourceConfig
from plaudit.train.micro_batches import MicroBatches, batch_kept
from plaudit.train.optimiser import MasterAdamW, move_schedule, optimiser_step, schedule_of
from plaudit.train.run import Run
from plaudit.train.saving import Saver, State, load_parameters, within

EVALUATE_ON = 1000
"""Held-out demonstrations in a held-out loss at most; of more, a seeded choice: enough to see it move."""
TITLES = {"sft": "SFT", "rejection": "Rejection sampling"}
"""Stages that learn demonstrations, as they are called."""
Sources = list[tuple[str, DemonstrationTable]]
"""(name, rows of every split) of each source of the mixture."""


def sources_of(
    config: SFTConfig, demonstrations: DemonstrationTable, mixed: Mapping[Path, DemonstrationTable]
) -> Sources:
    """The sources, when an epoch can be made of them; UserError when not."""
    found: Sources = [] if config.mixture else [("data.demonstrations", demonstrations)]
    for number, source in enumerate(config.mixture):
        rows = demonstrations if source.path is None else mixed[source.path]
        name = f"sft.mixture[{number}] ({', '.join(str(part) for part in (source.path, source.kind) if part)})"
        rows = rows if source.kind is None else rows.where(rows.kinds == source.kind)
        found.append((name, rows if source.label is None else rows.labelled(source.label)))
    counts([source.share for source in _train_sources(config, found)])
    if all((rows.splits == "train").all() for _, rows in found):
        raise UserError("sft.mixture: none of its demonstrations has split 'validation' or 'test'; SFT needs some")
    return found


def _train_sources(config: SFTConfig, found: Sources) -> list[Source]:
    settings = config.mixture or [SourceConfig()]
    sources = []
    for (name, rows), source in zip(found, settings, strict=True):
        train = rows.where(rows.splits == "train")
        sources.append(Source(train, Share(name, len(train), source.weight, source.rows, source.repeat)))
    return sources


class SFTTraining:
    """What the loop holds."""

    def __init__(
        self,
        config: SFTConfig,
        run: Run,
        encoder: Encoder,
        held_out: list[Example],
        prompts: list[Demonstration],
        stage: str,
    ):
        """On the run's model, for the stage of this name; the first of the held-out `prompts` are those that are
        answered at every evaluation."""
        full, machine, chat = run.lora is None, run.machine, encoder.chat
        self.stage, self.title, self.encoder = stage, TITLES[stage], encoder
        base = load_model(run.model, torch.float32 if full else machine.dtype, machine.device, run.quantise)
        layout = prepare_attention(base)
        self.config, self.run, self.chat, self.held_out = config, run, chat, held_out
        self.packed = layout.packs
        self.shares = layout.kind == "shared"
        """Whether a packed row holds the start that all its demonstrations have once."""
        self.layout = "packed" if layout.packs else str(layout)
        """That of its rows in words."""
        self.model: Roles | FullPolicy = (
            FullPolicy(base, machine.dtype) if full else Roles(base, trained="policy", lora=run.lora, seed=run.seed)
        )
        self.frozen = fingerprint(self.model.base_tensors()) if isinstance(self.model, Roles) else {}
        if config.gradient_checkpointing:
            recompute_activations(base)
        if isinstance(self.model, Roles):
            shard(self.model, base, run.ranks)
        self.prompts = prompts[: config.samples]
        self.engine = run.engine(run.model, chat) if config.samples and run.ranks.first else None
        self.micro = MicroBatches(run, stage, "sft.micro_batch_size", config.micro_batch_size)
        self.best: dict[str, Tensor] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.without_gain = 0
        """Evaluations in a row without a lower held-out loss."""
        self.seconds = 0.0
        self.trainable_parameters = sum(parameter.numel() for parameter in _learning(self.model).values())

    def batches(self, examples: Sequence[Example]) -> list[tuple[Batch, float]]:
        """This rank's passes over some examples, each with its weight: packed rows, or padded rows of like length."""
        groups = self.micro.groups([len(example.ids) for example in examples], packed=self.packed)
        device, pad_id = self.run.machine.device, self.chat.pad_id
        found = []
        for group, weight in self.run.ranks.passes(groups):
            chosen = [examples[i] for i in group]
            packed = self.packed
            batch = pack_examples(chosen, device, share=self.shares) if packed else pad_examples(chosen, pad_id, device)
            found.append((batch, weight))
        return found

    def loss(self, batch: Batch) -> Tensor:
        """−Σ log π(a_t) over the batch's completion tokens."""
        loss = self.model(batch, "policy", frozenset({"loss"})).loss
        assert isinstance(loss, Tensor)
        return loss


def train(config: SFTConfig, run: Run) -> dict[str, Any]:
    """Train, keep the best, merge, save; returns the summary."""
    training, steps = begin(config, run)
    with Saver.open(run, "sft", {"base": joint_fingerprint(training.frozen)}) as saver:
        done = optimise(training, steps, saver)
    keep_best(training)
    if run.ranks.first:
        _save(training, run.folder.stage("sft"))
    summary = summary_of(training, steps, done)
    return run.finish(
        "sft", "SFT", summary, [name for name in summary if name != "kinds"], _kind_rows(summary["kinds"])
    )


def begin(config: SFTConfig, run: Run, stage: str = "sft") -> tuple[SFTTraining, list[Step]]:
    """What the loop of a stage holds, and its optimiser steps in order."""
    found = sources_of(config, run.demonstrations, run.mixed)
    encoder = Encoder(run.chat(run.model), config.max_length, config.too_long, config.learn)
    steps = training_steps(
        _train_sources(config, found),
        encoder,
        seed=run.seed,
        epochs=config.epochs,
        size=config.batch_size,
        limit=config.max_steps,
    )
    chosen = held_out_rows([rows for _, rows in found], EVALUATE_ON, run.seed)
    held_out = [example for row in chosen if (example := encoder.encode(row)) is not None]
    if not held_out:
        raise UserError(f"every held-out demonstration is longer than sft.max_length={config.max_length}; raise it")
    return SFTTraining(config, run, encoder, held_out, chosen, stage), steps


def keep_best(training: SFTTraining) -> None:
    """Put the weights with the lowest held-out loss in place; the base must be what it was."""
    if isinstance(training.model, Roles):
        check_unchanged("the frozen base", training.frozen, fingerprint(training.model.base_tensors()))
    load_parameters(training.model.trainable(), training.best)
    if training.engine is not None:
        training.engine.close()


def summary_of(training: SFTTraining, steps: list[Step], done: int) -> dict[str, Any]:
    """What `done` of the steps came to."""
    kept = min(training.evaluations[1:], key=lambda row: row["eval_loss"])
    kinds = _by_kind(steps[:done], training.evaluations[0], kept)
    epoch = next((i for i, step in enumerate(steps, start=1) if step.ends_epoch), len(steps))
    return {
        "demonstrations_train": sum(len(step.examples) for step in steps[:epoch]),
        "demonstrations_held_out": len(training.held_out),
        "dropped": training.encoder.dropped,
        "truncated": training.encoder.truncated,
        "layout": training.layout,
        "chat_template": training.chat.origin,
        "eval_loss_before": training.evaluations[0]["eval_loss"],
        "eval_loss_after": kept["eval_loss"],
        "kept_step": kept["step"],
        "trainable_parameters": training.trainable_parameters,
        "steps": done,
        "tokens": sum(part["tokens"] for part in kinds.values()),
        "tokens_per_second": sum(part["tokens"] for part in kinds.values()) / training.seconds,
        "kinds": kinds,
    }


def _learning(model: Roles | FullPolicy) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.trainable().items() if "value_head" not in name}


def optimise(training: SFTTraining, steps: list[Step], saver: Saver, first: int = 0) -> int:
    """The loop; returns the optimiser steps that were done. A checkpoint counts them after `first` steps of the stage
    in which something else was done."""
    config = training.config
    learning = _learning(training.model).values()
    parts = {config.weight_decay: [p for p in learning if p.dim() >= 2]}
    parts[0.0] = parts.get(0.0, []) + [p for p in learning if p.dim() < 2]
    optimiser = MasterAdamW(
        [{"params": part, "lr": config.learning_rate, "weight_decay": decay} for decay, part in parts.items() if part]
    )
    schedule = schedule_of(optimiser, len(steps), training.run.optimiser.warmup_steps, training.run.optimiser.schedule)
    metrics, samples = saver.log("metrics.jsonl"), saver.log("samples.jsonl")
    number = max(0, saver.step - first)
    with progress(training.title, len(steps), "step") as advance:
        if saver.state is None or not number:
            metrics.log(step=0, **_evaluate(training, 0, samples))
        else:
            _unpack(training, optimiser, schedule, saver.state)
            advance(count=number)
        while number < len(steps) and not _out_of_patience(training):
            step, number = steps[number], number + 1
            where = f"{training.title} step {number}"
            started = time.perf_counter()
            with batch_kept(metrics.path.parent, where, partial(_as_rows, training, step.examples)):
                loss = _accumulate(training, step.examples, where)
                row: dict[str, Any] = {"loss": loss, "learning_rate": schedule.get_last_lr()[0]}
                row["tokens"] = sum(len(example.ids) for example in step.examples)
                row["grad_norm"] = optimiser_step(optimiser, schedule, training.run.optimiser.max_grad_norm, where)
            training.seconds += time.perf_counter() - started
            due = step.ends_epoch if config.evaluate_every is None else number % config.evaluate_every == 0
            if due or number == len(steps):
                row |= _evaluate(training, number, samples)
            metrics.log(step=number, **row)
            advance(f"loss {loss:.3f}")
            last = number == len(steps) or _out_of_patience(training)
            saver.checkpoint(first + number, lambda: _pack(training, optimiser, schedule), last=last)
    return number


def _out_of_patience(training: SFTTraining) -> bool:
    return training.config.patience is not None and training.without_gain >= training.config.patience


def _pack(training: SFTTraining, optimiser: MasterAdamW, schedule: LambdaLR) -> State:
    tensors = within("model", training.model.trainable()) | within("optimiser", optimiser.tensors())
    tensors |= within("best", training.best)
    values = {
        "schedule": schedule.last_epoch,
        "evaluations": training.evaluations,
        "without_gain": training.without_gain,
        "halvings": training.micro.halvings,
    }
    return State(tensors, values, {"seconds": training.seconds})


def _unpack(training: SFTTraining, optimiser: MasterAdamW, schedule: LambdaLR, state: State) -> None:
    load_parameters(training.model.trainable(), state.under("model"))
    optimiser.load_tensors(state.under("optimiser"))
    move_schedule(schedule, state.values["schedule"])
    training.best = state.under("best")
    training.evaluations, training.without_gain = state.values["evaluations"], state.values["without_gain"]
    training.micro.halvings, training.seconds = state.values["halvings"], state.times["seconds"]


def _accumulate(training: SFTTraining, examples: list[Example], where: str) -> float:
    """Backward over micro-batches, divided by the completion tokens of the whole step (docs/correctness.md, row 14);
    the ranks add up what their shares gave."""
    ranks, count = training.run.ranks, sum(example.targets for example in examples)

    def backward() -> float:
        total = 0.0
        for batch, weight in training.batches(examples):
            loss = weight * training.loss(batch) / count
            check_finite("the loss", loss.item(), where)
            loss.backward()
            total += loss.item()
        return total

    mine = training.micro.fit(where, backward, training.model.zero_grad)
    ranks.add_gradients(_learning(training.model).values())
    return ranks.sums(mine)[0]


def _as_rows(training: SFTTraining, examples: list[Example]) -> list[dict[str, Any]]:
    """What is kept of a step that stopped: its demonstrations, kind, text and ids."""
    ids = [list(example.ids) for example in examples]
    texts = [training.chat.tokenizer.decode(row) for row in ids]
    return [{"kind": e.kind, "text": t, "ids": row} for e, t, row in zip(examples, texts, ids, strict=True)]


@torch.no_grad()
def _evaluate(training: SFTTraining, step: int, samples: Metrics) -> dict[str, Any]:
    """Held-out loss per completion token in nats, of everything and of each kind; and the sample replies. The weights
    with the lowest one after a step are kept as the best."""
    totals: dict[str, tuple[float, int]] = {}
    for kind in sorted({example.kind for example in training.held_out}):
        examples = [example for example in training.held_out if example.kind == kind]
        mine = sum(weight * training.loss(batch).item() for batch, weight in training.batches(examples))
        (nats,) = training.run.ranks.sums(mine)
        totals[kind] = (nats, sum(example.targets for example in examples))
    loss = sum(nats for nats, _ in totals.values()) / sum(count for _, count in totals.values())
    row = {"eval_loss": loss, "eval_loss_by_kind": {kind: nats / count for kind, (nats, count) in totals.items()}}
    if step > 0:
        lowest = min((old["eval_loss"] for old in training.evaluations[1:]), default=float("inf"))
        training.without_gain = 0 if loss < lowest else training.without_gain + 1
        if training.without_gain == 0:
            training.best = training.model.adapter_state()
    training.evaluations.append({"step": step, **row})
    _sample(training, step, samples)
    return row


def _sample(training: SFTTraining, step: int, samples: Metrics) -> None:
    """One reply to each sample prompt, with the same random numbers every time."""
    if training.engine is None:
        return
    ids = [training.chat.prompt_ids(row.prompt.messages) for row in training.prompts]
    uniforms = rng.uniforms(
        training.run.seed, "sft/samples", 0, list(range(len(ids))), training.run.sampling.max_new_tokens
    )
    rounding = Rounding(training.run.seed, "sft/samples")
    training.engine.take(training.model, rounding)
    for row, sampled in zip(training.prompts, training.engine.generate(ids, uniforms), strict=True):
        prompt, reply = messages_as_json(row.prompt.messages), training.chat.completion(sampled.ids)
        samples.log(step=step, id=row.prompt.id, kind=row.prompt.kind, prompt=prompt, **reply.as_json())


def _save(training: SFTTraining, folder: Path) -> None:
    run, model = training.run, training.model
    if isinstance(model, Roles) and run.ranks.shard != "none":
        # The base once more, whole, where memory is cheap: the ranks that hold the rest of this one do not save.
        base = load_model(run.model, run.machine.dtype, CPU)
        learnt = model.adapter_state()
        model = Roles(base, trained="policy", lora=run.lora, seed=run.seed)
        load_parameters(model.trainable(), learnt)
    if isinstance(model, Roles):
        model.save_adapter(folder / "adapter")
    merged = merged_in_place(model, run.model, run.machine.dtype, Rounding(run.seed, "sft/model"))
    _save_model(merged, training.chat, folder)


def _save_model(model: PreTrainedModel, chat: ChatFormat, folder: Path) -> None:
    # Whoever samples from the checkpoint must stop where the replies end, which need not be the tokenizer's EOS.
    found, ends = ids_in(model.generation_config.eos_token_id), chat.ends
    if {*found} != ends:
        model.generation_config.eos_token_id = [*filter(ends.__contains__, found), *sorted(ends.difference(found))]
    save_model(model, chat.tokenizer, folder / "model")


def take(run: Run) -> dict[str, Any]:
    """Where SFT is skipped: the run's model, in the run's format and with its chat template, as the SFT model."""
    chat, machine = run.chat(run.model), run.machine
    if run.ranks.first:
        _save_model(load_model(run.model, machine.dtype, machine.device), chat, run.folder.stage("sft"))
    return run.finish("sft", "SFT: skipped", {"skipped": True, "chat_template": chat.origin}, ("chat_template",))


def _by_kind(steps: list[Step], before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Kind -> examples and tokens that were learnt from, share of the examples, held-out loss before and after."""
    found: dict[str, dict[str, Any]] = {}
    examples = [example for step in steps for example in step.examples]
    for example in examples:
        part = found.setdefault(example.kind, {"examples": 0, "share": 0.0, "tokens": 0, "completion_tokens": 0})
        part["examples"] += 1
        part["tokens"] += len(example.ids)
        part["completion_tokens"] += example.targets
    for kind, part in found.items():
        part["share"] = part["examples"] / len(examples)
        for name, row in (("eval_loss_before", before), ("eval_loss_after", after)):
            part[name] = row["eval_loss_by_kind"].get(kind)
    return dict(sorted(found.items()))


def _kind_rows(kinds: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the stage's table says of each kind."""
    rows = {}
    for kind, part in kinds.items():
        before, after = part["eval_loss_before"], part["eval_loss_after"]
        losses = "none held out" if after is None else f"eval loss {before:.3f} -> {after:.3f}"
        rows[f"  {kind}"] = f"{part['examples']:,} ({part['share']:.1%}), {part['tokens']:,} tokens, {losses}"
    return rows
