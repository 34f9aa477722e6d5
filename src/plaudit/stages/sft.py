"""Supervised fine-tuning: a LoRA adapter learns the replies of the demonstrations, then is merged into the base.

    loss = −(1/N) Σ log π(a_t | s_t)   over the N completion tokens (end-of-turn token included) of an optimiser step

Leaves sft/adapter (PEFT) and sft/model (merged Hugging Face checkpoint: *the* SFT model from here on), with
sft/metrics.jsonl and sft/summary.json. Packing, more formats, full fine-tuning and early stopping are not here yet.

    plaudit sft RECIPE
"""

import hashlib
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import rng
from plaudit.algo.losses import language_model_loss
from plaudit.algo.masked import masked_sum
from plaudit.data.chat import ChatFormat
from plaudit.errors import UserError
from plaudit.guard.invariants import check_finite
from plaudit.models.load import load_model, save_model
from plaudit.models.optimiser import MasterAdamW
from plaudit.models.roles import LoraSettings, Roles, merge_into
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Completion, Demonstration
from plaudit.run.display import progress
from plaudit.run.metrics import Metrics
from plaudit.stages.base import Run, StageConfig, cosine_schedule, optimiser_step


class SFTConfig(StageConfig):
    """Supervised fine-tuning."""

    epochs: int = Field(3, ge=1)
    """Passes over the training demonstrations."""
    batch_size: int = Field(16, ge=1)
    """Demonstrations in one optimiser step."""
    micro_batch_size: int = Field(8, ge=1)
    """Demonstrations in one forward and backward pass; must divide batch_size. Changes memory, not the result."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW; cosine to a tenth of it."""
    warmup_steps: int = Field(4, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    max_length: int = Field(512, ge=8)
    """Longest prompt + reply in tokens; a longer demonstration is refused by name."""
    lora: LoraSettings = LoraSettings()
    """The adapter that is trained and merged."""

    @model_validator(mode="after")
    def _divisible(self) -> "SFTConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}")
        return self


def run(config: SFTConfig, run: Run) -> dict[str, Any]:
    """Train, merge, save; returns the summary."""
    chat = run.chat(run.model)
    train = _tokenise(chat, [d for d in run.demonstrations if d.prompt.split == "train"], config)
    held_out = _tokenise(chat, [d for d in run.demonstrations if d.prompt.split != "train"], config)
    base = load_model(run.model, run.machine.dtype, run.machine.device)
    roles = Roles(base, trained="policy", lora=config.lora, seed=run.seed)
    base_hash = tensors_hash(roles)
    parameters = [p for name, p in roles.trainable().items() if "value_head" not in name]
    optimiser = MasterAdamW([{"params": parameters, "lr": config.learning_rate}])
    steps_per_epoch = -(-len(train) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    schedule = cosine_schedule(optimiser, steps, config.warmup_steps)

    with Metrics(run.folder.stage("sft") / "metrics.jsonl") as metrics, progress("SFT", steps, "step") as advance:
        before = held_out_loss(roles, held_out, chat.pad_id, config.micro_batch_size)
        metrics.log(step=0, eval_loss=before)
        for step in range(steps):
            epoch, offset = divmod(step, steps_per_epoch)
            order = rng.permutation(run.seed, "sft", epoch, len(train))
            rows = [train[i] for i in order[offset * config.batch_size : (offset + 1) * config.batch_size]]
            loss = _accumulate(roles, rows, chat.pad_id, config.micro_batch_size, f"SFT step {step + 1}")
            row = {"loss": loss, "learning_rate": schedule.get_last_lr()[0]}
            row["grad_norm"] = optimiser_step(optimiser, schedule, config.max_grad_norm, f"SFT step {step + 1}")
            if offset == steps_per_epoch - 1:
                row["eval_loss"] = held_out_loss(roles, held_out, chat.pad_id, config.micro_batch_size)
            metrics.log(step=step + 1, **row)
            advance(f"loss {loss:.3f}")
    if tensors_hash(roles) != base_hash:
        raise AssertionError("the frozen base changed during SFT")

    folder = run.folder.stage("sft")
    roles.save_adapter(folder / "adapter")
    merged = load_model(run.model, run.machine.dtype, run.machine.device)
    merge_into(merged, roles.merged_weights("policy"))
    save_model(merged, chat.tokenizer, folder / "model")
    summary = {
        "demonstrations_train": len(train),
        "demonstrations_held_out": len(held_out),
        "eval_loss_before": before,
        "eval_loss_after": held_out_loss(roles, held_out, chat.pad_id, config.micro_batch_size),
        "trainable_parameters": sum(p.numel() for p in parameters),
        "steps": steps,
    }
    return run.finish("sft", "SFT", summary, tuple(summary))


Row = tuple[list[int], list[int]]


def _tokenise(chat: ChatFormat, demonstrations: list[Demonstration], config: SFTConfig) -> list[Row]:
    rows = []
    for item in demonstrations:
        prompt, reply = chat.prompt_ids(item.prompt.messages), chat.reply_ids(Completion(item.completion))
        if len(prompt) + len(reply) > config.max_length:
            raise UserError(
                f"demonstration {item.prompt.id!r} has {len(prompt) + len(reply)} tokens, more than sft.max_length="
                f"{config.max_length}; shorten it or raise sft.max_length"
            )
        rows.append((prompt, reply))
    return rows


def _pad(roles: Roles, rows: list[Row], pad_id: int) -> Tokens:
    return pad_right([p for p, _ in rows], [r for _, r in rows], pad_id, roles.value_head.weight.device)


def _logprobs(roles: Roles, tokens: Tokens) -> Tensor:
    logprobs_BT = roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT
    assert logprobs_BT is not None
    return logprobs_BT


def _accumulate(roles: Roles, rows: list[Row], pad_id: int, micro: int, where: str) -> float:
    """Backward over micro-batches, divided by the completion tokens of the whole step (correctness.md row 14)."""
    count = sum(len(reply) for _, reply in rows)
    rows = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))  # rows of like length share a micro-batch
    total = 0.0
    for start in range(0, len(rows), micro):
        tokens = _pad(roles, rows[start : start + micro], pad_id)
        loss = language_model_loss(_logprobs(roles, tokens), tokens.mask_BT, count)
        check_finite("the loss", loss.item(), where)
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def held_out_loss(roles: Roles, rows: list[Row], pad_id: int, micro: int) -> float:
    """Mean negative log-likelihood per completion token of the held-out demonstrations, in nats."""
    total = 0.0
    for start in range(0, len(rows), micro):
        tokens = _pad(roles, rows[start : start + micro], pad_id)
        total -= masked_sum(_logprobs(roles, tokens), tokens.mask_BT).item()
    return total / sum(len(reply) for _, reply in rows)


def tensors_hash(roles: Roles) -> str:
    """SHA-256 over the names and bytes of the frozen base."""
    digest = hashlib.sha256()
    for name, tensor in roles.base_tensors():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
