"""Reward model: the SFT model with a scalar head in place of its LM head learns to score what was preferred.

    loss = −(1/n) Σ_rankings (1/pairs) Σ_(w,l) log σ(r_θ(x, y_w) − r_θ(x, y_l))

All pairs of a ranking are in one step, and every ranking counts once (Ouyang et al. 2022). The score is read at the
reply's last token. Leaves reward/adapter (PEFT), reward/head.safetensors, reward/reward.json (the rules its scores
stand under), reward/model (merged `AutoModelForSequenceClassification`, raw scores), reward/metrics.jsonl,
reward/card.json (its report card on the held-out rankings) and reward/summary.json.

    plaudit reward RECIPE
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import rng
from plaudit.algo.preferences import bradley_terry_loss
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rankings, write_json
from plaudit.errors import UserError
from plaudit.guard.invariants import check_finite
from plaudit.models.export import export_reward_model
from plaudit.models.heads import RewardContract, save_head
from plaudit.models.load import load_model
from plaudit.models.optimiser import MasterAdamW
from plaudit.models.roles import LoraSettings, Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Prompt, Ranking
from plaudit.run.card_table import print_alarms
from plaudit.run.display import progress
from plaudit.run.metrics import Metrics
from plaudit.stages.base import Run, StageConfig, cosine_schedule, optimiser_step
from plaudit.stages.reward_report import held_out_card


class RewardConfig(StageConfig):
    """Training of the reward model."""

    epochs: int = Field(1, ge=1)
    """Passes over the training rankings; more than one over-fits quickly."""
    rankings_per_step: int = Field(8, ge=1)
    """Rankings in one optimiser step."""
    rankings_per_micro_batch: int = Field(2, ge=1)
    """Rankings in one forward and backward pass; must divide rankings_per_step. Changes memory, not the result."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW for adapter and head; cosine to a tenth of it."""
    warmup_steps: int = Field(4, ge=0)
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    normalise_on: int = Field(256, ge=2)
    """Replies of the training rankings whose scores get mean 0 and std 1."""
    lora: LoraSettings = LoraSettings()
    """The reward model's own adapter on the shared base."""

    @model_validator(mode="after")
    def _divisible(self) -> "RewardConfig":
        if self.rankings_per_step % self.rankings_per_micro_batch:
            raise ValueError(
                f"rankings_per_micro_batch={self.rankings_per_micro_batch} does not divide "
                f"rankings_per_step={self.rankings_per_step}"
            )
        return self


def run(config: RewardConfig, run: Run) -> dict[str, Any]:
    """Train, test on held-out prompts, save; returns the summary."""
    rankings = read_rankings(run.folder.require("preferences/rankings.jsonl", "preferences"))
    train = [r for r in rankings if r.prompt.split == "train" and r.pairs()]
    test = [r for r in rankings if r.prompt.split != "train" and r.pairs()]
    if not train or not test:
        raise UserError(
            f"preferences/rankings.jsonl has {len(train)} training and {len(test)} held-out rankings with a strict "
            "pair; the reward model needs both: give prompts of split train and of split validation or test"
        )
    chat = run.chat(run.sft_model)
    base = load_model(str(run.sft_model), run.machine.dtype, run.machine.device)
    roles = Roles(base, trained="reward", lora=config.lora, seed=run.seed)
    optimiser = MasterAdamW([{"params": list(roles.trainable().values()), "lr": config.learning_rate}])
    steps_per_epoch = -(-len(train) // config.rankings_per_step)
    steps = config.epochs * steps_per_epoch
    schedule = cosine_schedule(optimiser, steps, config.warmup_steps)
    folder = run.folder.stage("reward")
    with Metrics(folder / "metrics.jsonl") as metrics, progress("Reward model", steps, "step") as advance:
        for step in range(steps):
            epoch, offset = divmod(step, steps_per_epoch)
            order = rng.permutation(run.seed, "reward", epoch, len(train))
            rows = [
                train[i] for i in order[offset * config.rankings_per_step : (offset + 1) * config.rankings_per_step]
            ]
            loss, accuracy = _accumulate(roles, chat, rows, config.rankings_per_micro_batch, f"reward step {step + 1}")
            row = {"loss": loss, "accuracy": accuracy, "learning_rate": schedule.get_last_lr()[0]}
            row["grad_norm"] = optimiser_step(optimiser, schedule, config.max_grad_norm, f"reward step {step + 1}")
            metrics.log(step=step + 1, **row)
            advance(f"loss {loss:.3f}  accuracy {accuracy:.2f}")

    reference = [(r.prompt, reply) for r in train for reply in r.replies][: config.normalise_on]
    contract = reward_contract(chat, score_replies(roles, chat, reference, label="Normalising"))
    roles.save_adapter(folder / "adapter")
    save_head(roles.score_heads[0], folder)
    contract.save(folder)
    export_reward_model(roles, chat, str(run.sft_model), contract, folder / "model", run.machine.dtype)
    raw_BM = score_replies(roles, chat, [(r.prompt, reply) for r in test for reply in r.replies], label="Testing")
    summary, card = held_out_card(raw_BM, contract, train, test, simulated=run.rankings is None)
    write_json(folder / "card.json", card)
    shown = ("pairs_train", "pairs_test", "accuracy", "accuracy_ci", "length_baseline_accuracy", "ece")
    run.finish("reward", "Reward model", summary, (*shown, "length_score_correlation"))
    print_alarms(card)
    return summary


def _accumulate(roles: Roles, chat: ChatFormat, rows: list[Ranking], micro: int, where: str) -> tuple[float, float]:
    """Backward over micro-batches of whole rankings; returns the step's loss and its accuracy on strict pairs."""
    loss_sum, right, pairs = 0.0, 0, 0
    # Rankings of like length share a micro-batch; each counts the same wherever it is.
    rows = sorted(rows, key=lambda r: len(r.prompt.text) + max(len(reply.text) for reply in r.replies))
    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        scores = _scores(roles, chat, [(r.prompt, reply) for r in part for reply in r.replies])[:, 0]
        better, worse, weights, first = [], [], [], 0
        for ranking in part:
            strict = ranking.pairs()
            better += [first + w for w, _ in strict]
            worse += [first + l for _, l in strict]
            weights += [1 / len(strict)] * len(strict)
            first += len(ranking.replies)
        loss = bradley_terry_loss(scores[better], scores[worse], scores.new_tensor(weights)) / len(rows)
        check_finite("the loss", loss.item(), where)
        loss.backward()
        loss_sum += loss.item()
        right += int((scores[better] > scores[worse]).sum())
        pairs += len(better)
    return loss_sum, right / pairs


def _scores(roles: Roles, chat: ChatFormat, replies: list[tuple[Prompt, Completion]]) -> Tensor:
    prompts = [chat.prompt_ids(prompt.messages) for prompt, _ in replies]
    tokens = pad_right(prompts, [chat.reply_ids(r) for _, r in replies], chat.pad_id, roles.device)
    scores_BM = roles(tokens, "reward", frozenset({"scores"})).scores_BM
    assert scores_BM is not None
    return scores_BM


@torch.no_grad()
def score_replies(roles: Roles, chat: ChatFormat, replies: list[tuple[Prompt, Completion]], *, label: str) -> Tensor:
    """Raw scores of replies, in order: [B, M] on the CPU."""
    order = sorted(range(len(replies)), key=lambda i: len(replies[i][0].text) + len(replies[i][1].text))
    scores_BM = torch.zeros(len(replies), roles.members)
    with progress(label, len(replies), "reply") as advance:
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            scores_BM[part] = _scores(roles, chat, [replies[i] for i in part]).cpu()
            advance(count=len(part))
    return scores_BM


def reward_contract(chat: ChatFormat, reference_BM: Tensor) -> RewardContract:
    """The rules the scores stand under: moments of the raw scores of reference replies, template, end-of-turn token,
    system prompt."""
    scores = reference_BM.double()
    std = scores.std(dim=0, correction=0).clamp(min=1e-6)
    return RewardContract(
        tuple(scores.mean(dim=0).tolist()), tuple(std.tolist()), chat.eos_id, chat.system, template_hash(chat)
    )


def load_contract(run: Run, chat: ChatFormat) -> tuple[Path, RewardContract]:
    """Folder and rules of the run's reward model; UserError when this run would turn texts into other tokens."""
    folder = run.folder.require("reward/reward.json", "reward").parent
    contract = RewardContract.load(folder)
    contract.check(chat.eos_id, chat.system, template_hash(chat))
    return folder, contract


def template_hash(chat: ChatFormat) -> str:
    return hashlib.sha256(chat.tokenizer.chat_template.encode()).hexdigest()
