"""Rows of docs/correctness.md in the stage itself: from the files that a run leaves, worked again in plain loops."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from conftest import TINY, tiny_stage, write_lines
from plaudit.data.files import read_prompts
from plaudit.models.config import LoraSettings
from plaudit.models.heads import load_head
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import RewardFiles
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo import sampling as ppo_sampling
from plaudit.stages.ppo import update as ppo_update
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.looks import HELD_OUT, Keeper, length_correlation
from plaudit.stages.ppo.rollout import picked
from plaudit.stages.ppo.trainer import Trainer, layout
from plaudit.train.optimiser import schedule_of
from plaudit.train.run import Run

Load = Callable[[Path], PreTrainedModel]
OWN = {"critic": "own"}
LORA = LoraSettings(**TINY["lora"])
SHARE_OF_E = """
def share(items):
    return {i["id"]: 3 * i["completion"].count("e") / max(1, len(i["completion"])) for i in items}

def nothing(items):
    return {i["id"]: 0.0 for i in items}
"""


def settings(run: Run, **changes: Any) -> tuple[PPOConfig, Run]:
    """The tiny recipe, two rows at once; an estimator without a critic takes no rate for one."""
    if changes.get("advantages", "gae") != "gae":
        changes = {"critic_learning_rate": PPOConfig().critic_learning_rate, **changes}
    return tiny_stage("ppo", run, **{"micro_batch_size": 2, **changes})


@pytest.fixture
def run_ppo(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> Callable[..., Path]:
    """run_ppo("name", gamma=0.9) -> the ppo folder of a new run on the trained SFT and reward models."""

    def call(name: str = "run", **changes: Any) -> Path:
        run = tiny_run(tmp_path / name, trained)
        ppo.train(*settings(run, **changes))
        return run.folder.path / "ppo"

    return call


@pytest.fixture
def build(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> Callable[..., Trainer]:
    """build(gamma=0.9) -> a trainer before its first update."""
    made = iter(range(99))
    return lambda **changes: ppo.Trainer(*settings(tiny_run(tmp_path / f"build-{next(made)}", trained), **changes))


def step(trainer: Trainer, update: int = 0) -> tuple[Any, dict[str, float]]:
    """One update: its batch and everything that was logged."""
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), update), update, Clock())
    batch, learnt = ppo.update(trainer, batch, update, Clock())
    return batch, {**batch.metrics, **learnt}


@pytest.fixture
def functions(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    (tmp_path / "scores.py").write_text(SHARE_OF_E)
    return lambda name: {"function": f"{tmp_path / 'scores.py'}:{name}", "mean": 0.0, "std": 1.0}


def spans(saved: dict[str, Tensor]) -> Iterator[tuple[int, slice]]:
    """(row, its reply's columns) of a saved batch."""
    starts, ends = saved["prompt_lengths_B"].tolist(), saved["lengths_B"].tolist()
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        yield row, slice(start - 1, end - 1)


def first_batch(folder: Path, update: int = 1) -> dict[str, Tensor]:
    return load_file(folder / "rollouts" / f"{update:05d}.safetensors")


# --- a score's way ---


@pytest.mark.row(3)
@pytest.mark.parametrize("rule", ["subtract", "replace", "none"])
def test_row_03_the_missing_eos_rule_of_the_recipe(rule: str, run_ppo: Callable[..., Path], trained: Path) -> None:
    contract = json.loads((trained / "reward/reward.json").read_text())
    penalty = {} if rule == "none" else {"missing_eos_penalty": 2.5}
    saved = first_batch(run_ppo(missing_eos=rule, score_scale="none", score_clip=50.0, updates=1, **penalty))
    assert len(set(saved["finished_B"].tolist())) == 2, "needs a cut and a whole reply"
    for row, columns in spans(saved):
        score = (saved["raw_scores_BM"][row, 0].item() - contract["mean"][0]) / contract["std"][0]
        if not saved["finished_B"][row]:
            score = {"subtract": score - 2.5, "replace": -2.5, "none": score}[rule]
        assert saved["scores_B"][row].item() == pytest.approx(score, abs=1e-4)
        rewards = saved["rewards_BT"][row, columns]
        # Nothing but the KL, which is 0 in the first update, before the last token.
        assert not rewards[:-1].any()
        assert rewards[-1].item() == pytest.approx(score, abs=1e-4)


def test_the_length_penalty_is_a_term_of_its_own(run_ppo: Callable[..., Path]) -> None:
    plain = run_ppo("plain", updates=1, score_scale="none", score_clip=50.0)
    fined = run_ppo("fined", updates=1, score_scale="none", score_clip=50.0, length_penalty=0.1, length_free=5)
    one, other = first_batch(plain), first_batch(fined)
    lengths = (one["lengths_B"] - one["prompt_lengths_B"]).tolist()
    costs = [0.1 * max(0, length - 5) for length in lengths]
    assert max(costs) > 0
    assert (one["scores_B"] - other["scores_B"]).tolist() == pytest.approx(costs, abs=1e-5)
    (row,) = read_metrics(fined / "metrics.jsonl")
    assert row["length_penalty"] == pytest.approx(np.mean(costs), abs=1e-6)
    assert "length_penalty" not in read_metrics(plain / "metrics.jsonl")[0]
    looked = read_metrics(fined / "evaluations.jsonl")[0]
    without = read_metrics(plain / "evaluations.jsonl")[0]
    assert looked["score"] == pytest.approx(without["score"] - looked["length_penalty"], abs=1e-5)


@pytest.mark.row(11)
def test_row_11_the_running_scale_by_hand_and_the_logged_coefficient(run_ppo: Callable[..., Path]) -> None:
    """The std is that of every score so far, and β·std is what the log says is applied."""
    folder = run_ppo(score_scale="running", updates=3, missing_eos="none", kl_coef=0.1)
    plain = run_ppo("plain", score_scale="none", updates=1, missing_eos="none", kl_coef=0.1)
    rows, seen = read_metrics(folder / "metrics.jsonl"), np.zeros(0)
    for update, row in enumerate(rows, start=1):
        saved = first_batch(folder, update)
        used = row["effective_kl_coef"] / 0.1
        earned = saved["scores_B"].numpy() * used
        seen = np.concatenate([seen, earned])
        assert used == pytest.approx(seen.std(), rel=1e-4)
        assert row["score"] == pytest.approx(earned.mean(), abs=1e-4)
        paid = [0.1 * saved["kl_BT"][i, columns].sum().item() for i, columns in spans(saved)]
        assert row["kl_penalty"] == pytest.approx(np.mean(paid), abs=1e-6)
        for i, columns in spans(saved):
            total = saved["scores_B"][i].item() - 0.1 * saved["kl_BT"][i, columns].sum().item()
            assert saved["rewards_BT"][i, columns].sum().item() == pytest.approx(total, abs=1e-5)
    assert first_batch(folder)["scores_B"].numpy() * rows[0]["effective_kl_coef"] / 0.1 == pytest.approx(
        first_batch(plain)["scores_B"].numpy(), abs=1e-4
    )


def test_scores_centred_on_the_reference_reply_by_hand(
    run_ppo: Callable[..., Path], build: Callable[..., Trainer], trained: Path
) -> None:
    """4·σ(r − r_ref), both normalised; one reference reply a prompt, of the SFT model, however often it is asked."""
    folder = run_ppo(sigmoid_centred=True, score_scale="none", missing_eos="none", updates=2, replies_per_prompt=2)
    contract = json.loads((trained / "reward/reward.json").read_text())
    references = [json.loads(line) for line in (folder / "references.jsonl").read_text().splitlines()]
    assert len(references) == 2 * 2 + 6  # two updates of two prompts, and the validation prompts
    judge = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    fresh = build()
    prompts = {prompt.id: prompt for prompt in fresh.run.prompts}
    tokens, _, _ = fresh.sampler.sample([prompts[row["id"]] for row in references], "ppo/references", 0)
    by_ids = {}
    for i, row in enumerate(references):
        ids = tokens.tokens_BT[i, : tokens.lengths_B[i]]
        with torch.no_grad():
            raw = judge(input_ids=ids[None]).logits.item()
        assert row["scores"]["trained"] == pytest.approx((raw - contract["mean"][0]) / contract["std"][0], abs=1e-3)
        assert row["text"] == fresh.chat.completion(ids[tokens.prompt_lengths_B[i] :].tolist()).text
        by_ids[tuple(ids[: tokens.prompt_lengths_B[i]].tolist())] = row["scores"]["trained"]
    saved = first_batch(folder)
    for row in range(4):
        reference = by_ids[tuple(saved["tokens_BT"][row, : saved["prompt_lengths_B"][row]].tolist())]
        score = (saved["raw_scores_BM"][row, 0].item() - contract["mean"][0]) / contract["std"][0]
        assert saved["scores_B"][row].item() == pytest.approx(4 / (1 + math.exp(reference - score)), abs=4e-4)


# --- law, padding, ids ---


@pytest.mark.row(5)
def test_row_05_old_logprobs_are_those_of_the_sampling_temperature(
    run_ppo: Callable[..., Path], trained: Path, load: Load
) -> None:
    saved = first_batch(run_ppo(temperature=0.6, updates=1))
    with torch.no_grad():
        logits_BTV = load(trained / "sft/model")(input_ids=saved["tokens_BT"]).logits
    for row, columns in spans(saved):
        actions = saved["tokens_BT"][row, columns.start + 1 : columns.stop + 1]
        law = torch.log_softmax(logits_BTV[row, columns] / 0.6, dim=-1)
        expected = law.gather(1, actions[:, None]).squeeze(1)
        for name in ("old_logprobs_BT", "ref_logprobs_BT", "sampler_logprobs_BT"):
            torch.testing.assert_close(saved[name][row, columns], expected, rtol=0, atol=1e-4)
        entropy = -(law.exp() * law).sum(dim=-1)
        torch.testing.assert_close(saved["old_entropy_BT"][row, columns], entropy, rtol=0, atol=1e-4)


@pytest.mark.row(7)
def test_row_07_at_any_temperature_the_first_step_is_at_ratio_one(run_ppo: Callable[..., Path]) -> None:
    rows = read_metrics(run_ppo(temperature=0.6, epochs=1, minibatch_size=4, **OWN) / "metrics.jsonl")
    assert [row["clip_fraction"] for row in rows] == [0, 0]
    assert [row["approx_kl"] for row in rows] == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.row(17)
@pytest.mark.parametrize(
    "changes", [{}, {**OWN, "missing_eos": "bootstrap"}, {"advantages": "rloo", "replies_per_prompt": 2}]
)
def test_row_17_every_logged_metric_is_invariant_to_padding(
    changes: dict[str, Any], run_ppo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine columns of pads more in every batch: nothing that is logged, looked at or kept changes."""
    more = {"kl_target": 1.0, "ptx_coef": 0.1, "length_penalty": 0.01, "target_kl": 0.05, **changes}
    usual = run_ppo("usual", **more)
    plain = ppo_sampling.pad_right

    def wider(prompts: Any, replies: Any, pad_id: int, device: torch.device) -> Tokens:
        tokens = plain(prompts, replies, pad_id, device)
        pads = torch.full((len(tokens.tokens_BT), 9), pad_id, device=device)
        return Tokens(torch.cat([tokens.tokens_BT, pads], dim=1), tokens.prompt_lengths_B, tokens.lengths_B)

    monkeypatch.setattr(ppo_sampling, "pad_right", wider)
    padded = run_ppo("padded", **more)
    assert first_batch(padded)["tokens_BT"].shape[1] == first_batch(usual)["tokens_BT"].shape[1] + 9
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows, others = read_metrics(usual / name), read_metrics(padded / name)
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.row(22)
def test_row_22_what_is_trained_on_are_the_sampled_ids(build: Callable[..., Trainer]) -> None:
    trainer, drawn, trained_on = build(), [], []
    generate, forward = trainer.engine.generate, trainer.roles.forward

    def spied(*arguments: Any, **named: Any) -> Any:
        drawn.extend(generate(*arguments, **named))
        return drawn

    def seen(tokens: Tokens, role: str, *rest: Any) -> Any:
        if torch.is_grad_enabled():
            trained_on.extend(map(tuple, tokens.replies))
        return forward(tokens, role, *rest)

    trainer.engine.generate, trainer.roles.forward = spied, seen  # type: ignore[method-assign]
    step(trainer)
    assert sorted(trained_on) == sorted(2 * [tuple(reply.ids) for reply in drawn])  # two epochs


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory behind some tensors; what two of them share counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("critic", ["policy", "own"])
def test_memory_is_one_base_one_copy_and_three_times_what_learns(critic: str, build: Callable[..., Trainer]) -> None:
    """Four roles on one base; the engine's merged copy; AdamW's two moments of adapters and heads alone."""
    trainer = build(critic=critic)
    step(trainer)
    roles, learning = trainer.roles, trainer.roles.trainable()
    base = bytes_of(tensor for _, tensor in roles.base_tensors())
    small = bytes_of(p for name, p in roles.named_parameters() if ".lora_" in name or "head" in name)
    assert bytes_of(roles.parameters()) == base + small
    assert bytes_of(trainer.engine.model.parameters()) == base
    moments = [tensor for name, tensor in trainer.optimiser.tensors().items() if not name.endswith("step")]
    assert bytes_of(moments) == 2 * bytes_of(learning.values())
    assert small < base / 2  # else the sums above would say little


@pytest.mark.row(29)
def test_row_29_every_epoch_is_measured_against_the_frozen_old_policy(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, calls, loss = build(epochs=3, minibatch_size=4, micro_batch_size=4), [], ppo_update.ppo_loss
    monkeypatch.setattr(ppo_update, "ppo_loss", lambda **named: calls.append(named) or loss(**named))
    batch, about = step(trainer)
    old = batch.old_logprobs_BT[batch.mask_BT].sort().values
    now = [call["logprobs_BT"].detach()[call["mask_BT"]].sort().values for call in calls]
    for call in calls:
        torch.testing.assert_close(call["old_logprobs_BT"][call["mask_BT"]].sort().values, old, rtol=0, atol=0)
    assert (now[0] - old).abs().max() < 1e-6
    assert (now[1] - now[0]).abs().max() > 1e-4 < (now[2] - now[1]).abs().max()
    assert about["approx_kl"] > 0


def test_an_update_writes_to_no_tensor_of_its_batch(build: Callable[..., Trainer]) -> None:
    """Neither in an ordinary update nor in one whose old log-probabilities are computed anew in smaller parts."""
    trainer = build(epochs=2, minibatch_size=4, micro_batch_size=4)
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 0), 0, Clock())
    tensors = [value for value in (*vars(batch).values(), *vars(batch.tokens).values()) if isinstance(value, Tensor)]
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    forward = trainer.roles.forward

    def once(*arguments: Any) -> Any:
        if trainer.micro.halvings == 0 and torch.is_grad_enabled():
            raise MemoryError
        return forward(*arguments)

    trainer.roles.forward = once
    trained, _ = ppo.update(trainer, batch, 0, Clock())
    assert trainer.micro.halvings == 1
    assert len(tensors) > 12
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert tensor._version == version and torch.equal(tensor, copy)
    assert trained.new_logprobs_BT is not None
    assert not torch.equal(trained.new_logprobs_BT, trained.old_logprobs_BT)


# --- truncation, the critic ---


@pytest.mark.row(13, 30)
def test_rows_13_and_30_a_critic_of_its_own_starts_as_the_reward_model_and_bootstraps(
    run_ppo: Callable[..., Path], trained: Path, load: Load
) -> None:
    """V(s_T) is the reward model's normalised score of the reply; a cut reply's last token is worth it, discounted."""
    contract = json.loads((trained / "reward/reward.json").read_text())
    folder = run_ppo(**OWN, missing_eos="bootstrap", gamma=0.9, lam=0.5, updates=1)
    saved = first_batch(folder)
    scores = [(raw - contract["mean"][0]) / contract["std"][0] for raw in saved["raw_scores_BM"][:, 0].tolist()]
    assert saved["last_values_B"].tolist() == pytest.approx(scores, abs=1e-4)
    # At every state: the exported reward model on the prefix, whose head transformers applies to its last token.
    judge = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    assert len(set(saved["finished_B"].tolist())) == 2
    for row, columns in spans(saved):
        values = saved["values_BT"][row, columns].tolist()
        with torch.no_grad():
            prefixes = [
                judge(input_ids=saved["tokens_BT"][row : row + 1, : t + 1]).logits.item()
                for t in range(columns.start, columns.stop)
            ]
        expected = [(raw - contract["mean"][0]) / contract["std"][0] for raw in prefixes]
        assert values == pytest.approx(expected, abs=1e-3)
        rewards = saved["rewards_BT"][row, columns].tolist()
        values.append(0.0 if saved["finished_B"][row] else scores[row])
        deltas = [r + 0.9 * values[t + 1] - values[t] for t, r in enumerate(rewards)]
        own = [sum((0.9 * 0.5) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
        returns = [a + v for a, v in zip(own, values, strict=False)]
        assert saved["returns_BT"][row, columns].tolist() == pytest.approx(returns, abs=1e-4)
    assert "explained_variance" in read_metrics(folder / "metrics.jsonl")[0]


@pytest.mark.row(13)
def test_row_13_a_longer_limit_after_eos_changes_nothing(build: Callable[..., Trainer]) -> None:
    """The replies that ended by themselves are the same under a limit of 8 and of 16."""
    found = []
    for limit in (8, 16):
        trainer = build(max_new_tokens=limit, score_scale="none", whiten_advantages=False, batch_size=8)
        batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 0), 0, Clock())
        found.append(batch)
    short, long = found
    ended = [row for row in range(8) if short.finished_B[row]]
    assert ended
    for row in ended:
        n = int(short.tokens.lengths_B[row])
        assert long.tokens.lengths_B[row] == n
        assert torch.equal(short.tokens.tokens_BT[row, :n], long.tokens.tokens_BT[row, :n])
        for name in ("rewards_BT", "advantages_BT", "returns_BT"):
            torch.testing.assert_close(getattr(short, name)[row, :n], getattr(long, name)[row, :n], rtol=0, atol=1e-5)


def tensors_of(trainer: Trainer, part: str) -> bytes:
    """The bytes of what must not drift: the base, or the reward model's adapter and head."""
    named = trainer.roles.base_tensors() if part == "base" else trainer.roles.named_parameters()
    digest = hashlib.sha256()
    for name, tensor in named:
        if part == "base" or ".reward." in name or name.startswith("score_heads"):
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.digest()


@pytest.mark.row(19, 20)
def test_rows_19_and_20_everything_on_and_only_policy_and_critic_move(build: Callable[..., Trainer]) -> None:
    trainer = build(**OWN, kl_penalty="loss", ptx_coef=0.5, entropy_coef=0.01, batch_size=8)
    before = {part: tensors_of(trainer, part) for part in ("base", "reward")}
    adapters = {name: parameter.detach().clone() for name, parameter in trainer.roles.trainable().items()}
    moving = {parameter.untyped_storage().data_ptr() for parameter in trainer.roles.trainable().values()}
    fixed = {p.untyped_storage().data_ptr() for p in trainer.roles.parameters() if not p.requires_grad}
    assert not moving & fixed, "the critic shares memory with the reward model it starts from"
    for update in range(2):
        step(trainer, update)
    assert {part: tensors_of(trainer, part) for part in before} == before
    assert not any(module.training for module in trainer.roles.modules())
    now = trainer.roles.trainable()
    for name in ("policy", "critic", "value_head"):
        assert any(not torch.equal(now[key], old) for key, old in adapters.items() if name in key), name


@pytest.mark.row(20)
@pytest.mark.parametrize(
    ("changes", "reached"),
    [({"critic": "head"}, {"value_head"}), ({}, {"value_head", "policy"}), (OWN, {"value_head", "critic"})],
)
def test_row_20_the_value_loss_reaches_what_the_recipe_says(
    changes: dict[str, Any], reached: set[str], build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of the value loss alone, and of the rest alone, in the stage's own step."""
    trainer = build(value_coef=1.0, **changes)
    step(trainer)  # B of LoRA starts at 0, and with it A's gradient
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 1), 1, Clock())
    parts, new_BT = layout(trainer, batch.tokens, 1), batch.old_logprobs_BT.clone()
    batch = replace(batch, advantages_BT=torch.zeros_like(batch.advantages_BT))
    ppo_update.accumulate(trainer, batch, new_BT, parts[0], 1, 0, "here")
    names = ("value_head", "policy", "critic")
    grads = {n: p.grad for n, p in trainer.roles.trainable().items() if p.grad is not None and p.grad.any()}
    assert {name for name in names if any(name in key for key in grads)} == reached
    trainer.roles.zero_grad()
    batch = replace(batch, advantages_BT=torch.where(batch.mask_BT, 1.0, 0.0))
    object.__setattr__(trainer.config, "value_coef", 0.0)
    ppo_update.accumulate(trainer, batch, new_BT, parts[0], 1, 0, "here")
    grads = {n: p.grad for n, p in trainer.roles.trainable().items() if p.grad is not None and p.grad.any()}
    assert {name for name in names if any(name in key for key in grads)} == {"policy"}


def test_a_critic_of_its_own_is_saved_and_restored(run_ppo: Callable[..., Path], trained: Path, load: Load) -> None:
    folder = run_ppo(**OWN, updates=2, kl_budget=1000.0, evaluate_every=2)
    saved = first_batch(folder, 2)
    tokens = Tokens(saved["tokens_BT"], saved["prompt_lengths_B"], saved["lengths_B"])
    need = frozenset({"values"})
    roles = Roles(
        load(trained / "sft/model"),
        trained="policy",
        lora=LORA,
        critic=folder / "critic",
        reward=[trained / "reward/adapter"],
    )
    load_head(roles.value_head, folder / "value_head")
    start = Roles(
        load(trained / "sft/model"),
        trained="policy",
        lora=LORA,
        critic=trained / "reward/adapter",
        reward=[trained / "reward/adapter"],
    )
    load_head(start.score_heads[0], trained / "reward")
    contract = RewardContract.load(trained / "reward")
    start.start_critic(contract.mean[0], contract.std[0])
    with torch.no_grad():
        restored, fresh = (r(tokens, "critic", need).values_BT for r in (roles, start))
    kept = json.loads((folder / "summary.json").read_text())["kept_update"]
    assert torch.equal(restored, fresh) == (kept == 0)


@pytest.mark.parametrize("paid_by_a_function", [True, False])
def test_without_a_reward_models_adapter_the_critic_starts_fresh_and_learns(
    build: Callable[..., Trainer],
    functions: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    paid_by_a_function: bool,
) -> None:
    """No reward model in the run, or a fully fine-tuned one."""
    if not paid_by_a_function:
        monkeypatch.setattr(RewardFiles, "adapters", [])
        monkeypatch.setattr(RewardFiles, "attach", lambda *_: None)
    trainer = build(**OWN, **({"rewards": [functions("share")]} if paid_by_a_function else {}))
    prompts = picked(trainer, trainer.run.split("train"), 0)
    tokens = trainer.sampler.sample(prompts, "ppo/rollout", 0)[0]
    need = frozenset({"values"})
    before = trainer.roles(tokens, "critic", need).values_BT
    assert before is not None and not before.any()
    assert not any(p.any() for name, p in trainer.roles.trainable().items() if "lora_B.critic" in name)
    if paid_by_a_function:
        for update in range(2):
            step(trainer, update)
        after = trainer.roles(tokens, "critic", need).values_BT
        assert after is not None and after.any()
        assert any(p.any() for name, p in trainer.roles.trainable().items() if "lora_B.critic" in name)


def test_a_reward_model_that_is_only_watched_has_no_part_in_the_critic(
    build: Callable[..., Trainer], functions: Callable[[str], dict[str, Any]]
) -> None:
    trainer = build(**OWN, rewards=[functions("share"), {"trained": True, "watch": True}])
    tokens = trainer.sampler.sample(picked(trainer, trainer.run.split("train"), 0), "ppo/rollout", 0)[0]
    values_BT = trainer.roles(tokens, "critic", frozenset({"values"})).values_BT
    assert values_BT is not None and not values_BT.any()
    assert not any(p.any() for name, p in trainer.roles.trainable().items() if "lora_B.critic" in name)


@pytest.mark.parametrize("changes", [{}, {"critic": "head"}, OWN])
def test_while_the_critic_warms_up_the_policy_stands_still(
    changes: dict[str, Any], build: Callable[..., Trainer]
) -> None:
    trainer = build(critic_warmup=2, updates=4, ptx_coef=0.1, entropy_coef=0.1, **changes)
    rows, policies, critics = [], [], []
    for update in range(3):
        state = trainer.roles.adapter_state()
        policies.append([tensor for name, tensor in state.items() if ".policy." in name])
        critics.append(state["value_head.weight"])
        rows.append(step(trainer, update)[1])
    policies.append(trainer.roles.adapter_parameters("policy"))
    same = [all(map(torch.equal, a, b)) for a, b in pairwise(policies)]
    assert same == [True, True, False]
    assert not torch.equal(critics[0], critics[1])
    assert [row["kl"] for row in rows] == [0, 0, 0] and rows[0]["l_clip"] == 0
    # The policy's own schedule begins when it does: at the first rate of four optimiser steps an update.
    assert rows[2]["learning_rate"] == pytest.approx(rows[0]["learning_rate"], rel=0.5) and "ptx_loss" not in rows[0]


def test_a_group_that_begins_later_has_the_same_curve_later() -> None:
    """Steps 0..9 of two groups, warm-up 1; the first begins at step 4 and ends with the other."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0} for _ in range(2)]
    optimiser = torch.optim.SGD(groups)
    schedule, rates = schedule_of(optimiser, 10, 1, "linear", [4]), []
    for _ in range(10):
        rates.append(schedule.get_last_lr())
        optimiser.step()
        schedule.step()
    first, second = zip(*rates, strict=True)
    assert first == pytest.approx([0.5] * 5 + [0.1 + 0.9 * (1 - i / 5) for i in range(5)])
    assert second == pytest.approx([0.5] + [0.1 + 0.9 * (1 - i / 9) for i in range(9)])


# --- the objective's other terms ---


def test_the_kl_as_a_loss_is_the_one_of_the_formula(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """½(log π − log π_ref)² weighted by the ratio, per token of the step; the reward is left without a KL."""
    trainer = build(kl_penalty="loss", kl_coef=0.7, epochs=1, minibatch_size=4, micro_batch_size=4)
    step(trainer)
    batch = ppo.rollout(trainer, picked(trainer, trainer.run.split("train"), 1), 1, Clock())
    about = batch.metrics
    assert about["kl_penalty"] == 0 and about["kl"] != 0
    assert batch.rewards_BT.sum().item() == pytest.approx(batch.scores_B.sum().item(), abs=1e-5)
    _, found = ppo.update(trainer, batch, 1, Clock())
    gaps = (batch.old_logprobs_BT - batch.ref_logprobs_BT)[batch.mask_BT]
    assert found["kl_loss"] == pytest.approx((0.5 * gaps**2).mean().item(), rel=1e-3)
    assert found["loss"] == pytest.approx(
        -(found["l_clip"] - 0.1 * found["l_vf"]) + 0.7 * found["kl_loss"], rel=1e-4, abs=1e-6
    )


def test_ptx_is_the_sft_loss_of_its_rows(build: Callable[..., Trainer], trained: Path, load: Load) -> None:
    """Nats a completion token at temperature 1, whatever PPO samples at; for any split into micro-batches."""
    losses = []
    for micro in ({"micro_batch_size": 4}, {"micro_batch_size": "auto", "micro_batch_tokens": 60}):
        trainer = build(ptx_coef=0.5, ptx_rows=4, minibatch_size=4, epochs=1, temperature=0.6, **micro)
        assert len(trainer.demonstrations) == 24
        _, found = step(trainer)
        losses.append(found["ptx_loss"])
        assert found["loss"] == pytest.approx(-(found["l_clip"] - 0.1 * found["l_vf"]) + 0.5 * losses[-1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    from plaudit import rng

    model, nll, count = load(trained / "sft/model"), 0.0, 0
    for place in rng.stream(0, "ppo/ptx", 24, 0, 4):
        example = trainer.demonstrations[place]
        ids = torch.tensor([list(example.ids)])
        with torch.no_grad():
            law = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        for t in range(1, ids.shape[1]):
            if example.learnt[t]:
                nll, count = nll - law[t - 1, ids[0, t]].item(), count + 1
    assert losses[0] == pytest.approx(nll / count, rel=1e-4)


def test_the_update_ends_when_the_policy_has_moved_too_far(build: Callable[..., Trainer]) -> None:
    free, held = build(epochs=4), build(epochs=4, target_kl=1e-5)
    assert step(free)[1]["steps"] == 8
    assert 1 <= step(held)[1]["steps"] < 8
    # The rate of the next update is the same: it depends on the update, not on when the one before it ended.
    assert held.schedule.get_last_lr() == free.schedule.get_last_lr()
    assert not any(parameter.grad is not None for parameter in held.roles.parameters())


def test_the_kl_coefficient_is_moved_towards_its_target(run_ppo: Callable[..., Path]) -> None:
    """Ziegler et al.: β ← β·(1 + clip(KL/target − 1, ±0.2)·replies/horizon), from the KL of the batch itself."""
    rows = read_metrics(run_ppo(updates=4, kl_coef=0.3, kl_target=0.5, kl_horizon=8) / "metrics.jsonl")
    expected = 0.3
    for row in rows:
        assert row["kl_coef"] == pytest.approx(expected, rel=1e-9)
        expected *= 1 + max(-0.2, min(0.2, row["kl"] / 0.5 - 1)) * 4 / 8
    assert rows[1]["kl_coef"] == pytest.approx(0.3 * 0.9) and rows[1]["kl_coef"] != rows[3]["kl_coef"]


# --- the loop ---


def test_groups_are_neighbours_and_a_critic_free_estimator_has_no_values(run_ppo: Callable[..., Path]) -> None:
    folder = run_ppo(advantages="rloo", replies_per_prompt=2, batch_size=8, updates=1)
    saved = first_batch(folder)
    assert not {"values_BT", "returns_BT"} & set(saved)
    assert not (folder / "value_head").exists()
    row = read_metrics(folder / "metrics.jsonl")[0]
    assert row["l_vf"] == 0 and "explained_variance" not in row
    texts = [saved["tokens_BT"][i, : saved["prompt_lengths_B"][i]].tolist() for i in range(8)]
    assert all(texts[i] == texts[i + 1] for i in range(0, 8, 2)) and len(set(map(tuple, texts))) == 4
    for i in range(0, 8, 2):
        totals = [saved["rewards_BT"][j].sum().item() for j in (i, i + 1)]
        found = [saved["advantages_BT"][j][saved["mask_BT"][j]] for j in (i, i + 1)]
        for own, other, got in ((totals[0], totals[1], found[0]), (totals[1], totals[0], found[1])):
            assert got.tolist() == pytest.approx([own - other] * len(got), abs=1e-5)


@pytest.mark.row(14)
def test_row_14_a_budget_of_tokens_changes_no_result(run_ppo: Callable[..., Path]) -> None:
    small = {"batch_size": 8, "minibatch_size": 8, "learning_rate": 1e-3}
    rows = [
        read_metrics(run_ppo(name, **small, **micro) / "metrics.jsonl")
        for name, micro in (
            ("rows", {"micro_batch_size": 8}),
            ("tokens", {"micro_batch_size": "auto", "micro_batch_tokens": 90}),
            ("alone", {"micro_batch_size": "auto", "micro_batch_tokens": 1}),
        )
    ]
    for other in rows[1:]:
        for one, two in zip(rows[0], other, strict=True):
            assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


def test_prompts_of_several_turns_are_conversations(
    tiny_run: Callable[..., Run], trained: Path, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path, trained)
    turns = [
        ("user", "Hello."),
        ("assistant", "It is great."),
        ("user", "Tell me more."),
        ("assistant", "No."),
        ("user", "Why?"),
    ]
    rows = [
        {
            "id": f"{split}-{i}",
            "kind": "talk",
            "split": split,
            "prompt": [{"role": role, "content": f"{text} {split} {i}"} for role, text in turns[: 1 + 2 * (i % 3)]],
        }
        for split, count in (("train", 6), ("validation", 3))
        for i in range(count)
    ]
    prompts = tuple(read_prompts(write_lines(tmp_path / "talk.jsonl", rows)))
    object.__setattr__(run, "prompts", prompts)
    ppo.train(*settings(run, updates=1))
    saved, chat = first_batch(run.folder.path / "ppo"), run.chat(run.sft_model)
    used = {tuple(saved["tokens_BT"][i, : saved["prompt_lengths_B"][i]].tolist()) for i in range(4)}
    assert used <= {tuple(chat.prompt_ids(prompt.messages)) for prompt in prompts}
    assert max(map(len, used)) > 2 * min(map(len, used))


# --- the looks, the policy that is kept, the watch ---


def test_a_look_by_hand(
    tiny_run: Callable[..., Run], trained: Path, tmp_path: Path, functions: Callable[[str], dict[str, Any]]
) -> None:
    """Every column of an evaluation from the replies that were written beside it."""
    run = tiny_run(tmp_path / "run", trained)
    told = [{"trained": True}, {**functions("share"), "watch": True}]

    class Taste:
        def utility(self, prompt: Any, text: str) -> float:
            return len(text) / 10

    ppo.train(*settings(run, rewards=told, evaluate_replies=2, missing_eos="none"), Taste())  # type: ignore[arg-type]
    folder = run.folder.path / "ppo"
    assert first_batch(folder)["raw_scores_BM"].shape == (4, 1), "a watched source is not asked while training"
    assert all("score_function" not in row for row in read_metrics(folder / "metrics.jsonl"))
    firsts: dict[str, list[float]] = {}
    for row in read_metrics(folder / "evaluations.jsonl"):
        replies = [json.loads(x) for x in (folder / f"validation/{row['update']:05d}.jsonl").read_text().splitlines()]
        assert len(replies) == 12 and [r["id"] for r in replies[::2]] == [p.id for p in run.split("validation")]
        texts = [reply["text"] for reply in replies]
        share = [3 * text.count("e") / max(1, len(text)) for text in texts]
        gold = [len(text) / 10 for text in texts]
        for name, values in (("score_function", share), ("held_out_score", share), ("gold", gold)):
            assert row[name] == pytest.approx(np.mean(values), abs=1e-6), name
        assert [reply["gold"] for reply in replies] == gold
        assert row["score"] == pytest.approx(np.mean([r["score_trained"] for r in replies]), abs=1e-5)
        assert row["kl"] == pytest.approx(np.mean([r["kl"] for r in replies]), abs=1e-5)
        by_prompt = np.reshape(share, (6, 2)).mean(axis=1)
        gains = by_prompt - firsts.setdefault("held_out", by_prompt)  # type: ignore[arg-type]
        assert row["held_out_gain_se"] == pytest.approx(gains.std(ddof=1) / 6**0.5, abs=1e-6)
    assert row["held_out_gain_se"] > 0


def test_score_and_length_are_correlated_within_prompts() -> None:
    from plaudit.records import Message, Prompt

    prompts = [Prompt(f"{name}", (Message("user", name),), "x", "validation") for name in ("a", "a", "b", "b")]
    # Within each prompt the longer reply scores lower; across prompts longer is higher.
    assert length_correlation(prompts, [1.0, 0.0, 11.0, 10.0], [1, 2, 11, 12]) == pytest.approx(-1)
    assert length_correlation(prompts[1:3], [0.0, 11.0], [2, 11]) == pytest.approx(1)


def rows_of(*scores: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"update": i, "score": s, HELD_OUT: h, "kl": kl} for i, (s, h, kl) in enumerate(scores)]


def keep(
    by: Literal["score", "held_out"] | None,
    rows: list[dict[str, float]],
    stopped: bool = False,
    budget: float | None = None,
    patience: int = 2,
) -> float:
    keeper = Keeper(by, patience, budget)
    for row in rows:
        keeper.add(row, {"is": torch.tensor(row["update"])})
        assert len(keeper.held) <= patience + 1
    row, state = keeper.kept(stopped=stopped)
    assert state["is"].item() == row["update"]
    return row["update"]


def test_the_policy_that_is_kept_by_hand() -> None:
    rows = rows_of((0, 0, 0), (1, 3, 2), (2, 2, 4), (2, 1, 5), (3, 0, 6), (9, 9, 11))
    without = [{k: v for k, v in row.items() if k != HELD_OUT} for row in rows]
    for by, found in (("score", rows), (None, without)):
        assert keep(by, found) == 4  # the last one is over the usual budget
        assert keep(by, found, budget=12) == 5
        assert keep(by, found[:4]) == 2  # the earliest of equals
        assert keep(by, found[:1]) == 0
        # Stopped by the watch: the last two are those that it stopped.
        assert keep(by, found[:5], stopped=True) == 2
    for by in ("held_out", None):  # where a held-out score is there it decides, and sets the bound itself
        assert keep(by, rows) == 5
        assert keep(by, rows, budget=10) == 1
        assert keep(by, rows, stopped=True) == 1


def test_the_watch_stops_a_reward_that_is_gamed_and_an_earlier_policy_is_kept(
    tmp_path: Path, run_ppo: Callable[..., Path], load: Load, trained: Path
) -> None:
    """A paid score that rises with every look, a watched one that falls: three looks after the best one it ends."""
    (tmp_path / "gamed.py").write_text(
        "calls = 0\n"
        "def count(items, sign):\n    global calls\n    calls += 1\n"
        "    return {i['id']: sign * float(calls) for i in items}\n"
        "def paid(items):\n    return count(items, 1)\n"
        "def watched(items):\n    return count(items, -1)\n"
    )
    told = [{"function": f"{tmp_path / 'gamed.py'}:{name}", "mean": 0.0, "std": 1.0} for name in ("paid", "watched")]
    folder = run_ppo(
        updates=9, rewards=[told[0], {**told[1], "watch": True}], score_clip=100.0, keep_by=None, entropy_coef=0.1
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped"].startswith("the held-out score fell while the score PPO is paid by rose")
    assert (summary["updates"], summary["kept_update"]) == (3, 0)
    assert [row["update"] for row in read_metrics(folder / "evaluations.jsonl")] == [0, 1, 2, 3]
    policy = dict(load(folder / "model").named_parameters())
    for name, tensor in load(trained / "sft/model").named_parameters():
        assert torch.equal(tensor, policy[name]), name


# --- whole-loop proofs on a transformer ---

ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {},
    "gae, head alone": {"critic": "head"},
    "gae, own critic": OWN,
    "rloo": {"advantages": "rloo", "replies_per_prompt": 4},
    "grpo": {"advantages": "grpo", "replies_per_prompt": 4},
    "reinforce_pp": {"advantages": "reinforce_pp"},
}


def paid_by(changes: dict[str, Any], function: dict[str, Any]) -> list[dict[str, Any]]:
    """A critic of its own needs the reward model to be there; its share is next to nothing."""
    return [*([{"trained": True, "weight": 1e-9}] if changes == OWN else []), function]


@pytest.mark.proof("b")
@pytest.mark.parametrize("changes", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_proof_b_no_reward_no_movement(
    changes: dict[str, Any], run_ppo: Callable[..., Path], functions: Callable[[str], dict[str, Any]]
) -> None:
    """r ≡ 0 through a function, whitening of scores off: what moves is the noise of a critic that starts elsewhere."""
    told = {"score_scale": "none", "missing_eos": "none", "kl_coef": 0.5}
    told |= dict.fromkeys(("batch_size", "minibatch_size", "micro_batch_size"), 8)
    told |= {"whiten_advantages": False} if changes.get("advantages") != "reinforce_pp" else {}
    # A critic that starts as the reward model must first learn that nothing is paid.
    told |= {"critic_warmup": 8, "critic_learning_rate": 3e-2, "learning_rate": 1e-3} if changes == OWN else {}
    updates = 12 if changes == OWN else 3
    told |= {"updates": updates, "evaluate_every": updates}
    folder = run_ppo(rewards=paid_by(changes, functions("nothing")), **told, **changes)
    first, last = read_metrics(folder / "evaluations.jsonl")
    assert first["kl"] == 0
    assert abs(last["kl"]) < (0.1 if changes == OWN else 1e-12), "nats a reply"
    if changes == OWN:  # Adam makes steps of noise, too, so what can be told here is that this critic has learned it
        rows = list(read_metrics(folder / "metrics.jsonl"))
        assert rows[-1]["l_vf"] < 0.05 * rows[0]["l_vf"]


@pytest.mark.parametrize(
    "changes",
    # GAE with the usual critic learns in test_train.py, too: test_ppo_learns_what_is_rewarded.
    [
        pytest.param(changes, id=name, marks=[pytest.mark.slow] * (name == "gae"))
        for name, changes in ESTIMATORS.items()
    ],
)
def test_every_estimator_and_critic_learns_a_simple_reward(
    changes: dict[str, Any], run_ppo: Callable[..., Path], functions: Callable[[str], dict[str, Any]]
) -> None:
    """Paid by the share of the letter e, the policy comes to write more of it."""
    folder = run_ppo(
        rewards=paid_by(changes, functions("share")),
        updates=12,
        batch_size=24,
        minibatch_size=12,
        micro_batch_size=12,
        missing_eos_penalty=0.0,
        kl_coef=0.01,
        evaluate_every=12,
        kl_budget=100.0,
        learning_rate=4e-2,
        evaluate_replies=4,
        **changes,
    )
    before, after = (row["score_function"] for row in read_metrics(folder / "evaluations.jsonl"))
    assert after > before + 0.25, (before, after)
