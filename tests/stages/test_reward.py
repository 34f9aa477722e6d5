"""The reward stage: what each option learns, ensembles, full fine-tuning, and what the contract says afterwards."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from conftest import CPU, tiny_stage, write_lines
from plaudit.data.hashes import sha256
from plaudit.errors import RunStopped, UserError
from plaudit.models.config import LoraSettings
from plaudit.models.kernels import attention
from plaudit.models.kernels.attention import Layout
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.records import Completion, Message, Prompt, Ranking
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import load_reward_model
from plaudit.run.metrics import read_metrics
from plaudit.stages.export import export_role
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.reward import loop as reward
from plaudit.stages.reward import training
from plaudit.stages.reward.config import RewardConfig
from plaudit.stages.reward.training import (
    EncodedRanking,
    RewardTraining,
    check_rankings,
    comparisons,
    encode,
    rankings_loss,
)
from plaudit.train.run import Run

Rows = list[dict[str, Any]]


def rows(**told: Any) -> Rows:
    """Rankings of three replies, a tie in every second one; `told` goes to every reply or to the row."""
    replies = (("It is great.", 1), ("Well, it is a thing.", 2), ("No.", 2))
    found = []
    for split, count in (("train", 12), ("validation", 3), ("test", 3)):
        for i in range(count):
            responses = [
                {"text": f"{text} {i}", "rank": rank if i % 2 or rank == 1 else rank + (text == "No."), **told}
                for text, rank in replies
            ]
            found.append({"id": f"{split}-{i}", "split": split, "prompt": f"Question {i}?", "responses": responses})
    return found


def pairs_with_strength() -> Rows:
    found = rows()
    for number, row in enumerate(found):
        row["responses"] = row["responses"][:2]
        row["strength"] = 1.0 + number % 3
    return found


def with_votes() -> Rows:
    found = rows()
    for number, row in enumerate(found):
        for place, response in enumerate(row["responses"]):
            response["votes"] = (5 + number % 3, 2, 1)[place]
    return found


@pytest.fixture
def train(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """train("name", rows, **changes) -> (reward folder, summary)."""

    def call(name: str, rankings: Rows, dtype: str = "float32", **changes: Any) -> tuple[Path, dict[str, Any]]:
        run = tiny_run(tmp_path / name, trained, dtype)
        shutil.rmtree(run.folder.path / "reward")
        write_lines(run.folder.path / "preferences" / "rankings.jsonl", rankings)
        return run.folder.path / "reward", reward.train(*tiny_stage("reward", run, **{"epochs": 1, **changes}))

    return call


def weights(folder: Path, member: str = "") -> dict[str, Tensor]:
    adapter = load_file(folder / f"adapter{member}" / "adapter_model.safetensors")
    return {**adapter, **load_file(folder / f"head{member}.safetensors")}


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


# What is learnt of a ranking.


def ranking(ranks: tuple[int, ...], **told: Any) -> Ranking:
    prompt = Prompt("p", (Message("user", "Hi?"),), "domain", "train")
    return Ranking(prompt, tuple(Completion(f"reply {i}") for i in range(len(ranks))), ranks, **told)


def test_the_comparisons_of_a_ranking() -> None:
    tied = ranking((1, 2, 2))
    assert comparisons(RewardConfig(), tied) == [(0, 1, 1.0, 0.0), (0, 2, 1.0, 0.0)]
    half = [(0, 1, 1.0, 0.0), (0, 2, 1.0, 0.0), (1, 2, 0.5, 0.0)]
    assert comparisons(RewardConfig(ties="half"), tied) == half
    assert comparisons(RewardConfig(loss="davidson"), tied) == half
    # Votes 8, 1, 1 under a Jeffreys prior: 8.5/10 and one half.
    voted = comparisons(RewardConfig(ties="half", soft_labels=True), ranking((1, 2, 2), votes=(8, 1, 1)))
    assert [(w, l, round(q, 6)) for w, l, q, _ in voted] == [(0, 1, 0.85), (0, 2, 0.85), (1, 2, 0.5)]
    strong = ranking((2, 1), strength=3.0)
    assert comparisons(RewardConfig(margin_coef=0.5), strong) == [(1, 0, 1.0, 1.5)]
    # What nobody says has no margin and no soft label; ties only teach the pairwise loss nothing.
    assert comparisons(RewardConfig(margin_coef=0.5), ranking((1, 2))) == [(0, 1, 1.0, 0.0)]
    assert comparisons(RewardConfig(soft_labels=True), ranking((1, 2))) == [(0, 1, 1.0, 0.0)]
    assert (
        comparisons(RewardConfig(), ranking((1, 1)))
        == comparisons(RewardConfig(loss="plackett_luce"), ranking((1, 1)))
        == []
    )


def examples_of(config: RewardConfig, *rankings: Ranking) -> list[EncodedRanking]:
    return [EncodedRanking(r, [5], [[6]] * len(r.replies), comparisons(config, r)) for r in rankings]


LOG_NU = torch.tensor(0.3)
SCORES = torch.tensor([1.0, 0.2, -0.4, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.row(24)
def test_row_24_a_step_of_each_loss_by_hand() -> None:
    """Rankings 1 > 2 = 3 and 2 > 1 of scores (1, 0.2, −0.4) and (0.5, 2): each counts once, whatever its pairs."""
    rankings = (ranking((1, 2, 2)), ranking((2, 1)))

    def loss(**settings: Any) -> float:
        config = RewardConfig(**settings)
        total, right, pairs = rankings_loss(config, SCORES, examples_of(config, *rankings), LOG_NU.double())
        assert (right, pairs) == (3, 3)
        return total.item()

    def lost(margin: float) -> float:
        return math.log1p(math.exp(-margin))

    tie = (lost(0.6) + lost(-0.6)) / 2
    assert loss() == pytest.approx((lost(0.8) + lost(1.4)) / 2 + lost(1.5))
    assert loss(ties="half") == pytest.approx((lost(0.8) + lost(1.4) + tie) / 3 + lost(1.5))
    smooth = [0.9 * lost(m) + 0.1 * lost(-m) for m in (0.8, 1.4, 1.5)]
    assert loss(label_smoothing=0.1) == pytest.approx((smooth[0] + smooth[1]) / 2 + smooth[2])
    level = (1.2**2 + 0.6**2) / 2 + 2.5**2
    assert loss(centring_coef=0.01) == pytest.approx((lost(0.8) + lost(1.4)) / 2 + lost(1.5) + 0.01 * level)

    def davidson(difference: float, outcome: float) -> float:
        terms = (math.exp(difference / 2), math.exp(0.3), math.exp(-difference / 2))
        return -math.log(terms[{1.0: 0, 0.5: 1}[outcome]] / sum(terms))

    first = (davidson(0.8, 1.0) + davidson(1.4, 1.0) + davidson(0.6, 0.5)) / 3
    assert loss(loss="davidson") == pytest.approx(first + davidson(1.5, 1.0))
    e = [math.exp(x) for x in SCORES.tolist()]
    # The first of three, then a tie of two whose orders sum to 1; K − 1 = 2 and 1 choices.
    assert loss(loss="plackett_luce") == pytest.approx(-math.log(e[0] / (e[0] + e[1] + e[2])) / 2 + lost(1.5), abs=1e-6)


def test_margins_of_stated_strength_by_hand() -> None:
    config = RewardConfig(margin_coef=0.5)
    total, _, _ = rankings_loss(config, SCORES[:2], examples_of(config, ranking((1, 2), strength=2.0)), LOG_NU)
    assert total.item() == pytest.approx(math.log1p(math.exp(-(0.8 - 1.0))))


# No dead option (row 28).

OPTIONS: dict[str, tuple[Callable[[], Rows], dict[str, Any]]] = {
    "loss: plackett_luce": (rows, {"loss": "plackett_luce"}),
    "loss: davidson": (rows, {"loss": "davidson"}),
    "ties": (rows, {"ties": "half"}),
    "soft_labels": (with_votes, {"soft_labels": True}),
    "margin_coef": (pairs_with_strength, {"margin_coef": 0.5}),
    "label_smoothing": (rows, {"label_smoothing": 0.2}),
    "centring_coef": (rows, {"centring_coef": 0.1}),
    "epochs": (rows, {"epochs": 2}),
    "rankings_per_step": (rows, {"rankings_per_step": 2}),
    "learning_rate": (rows, {"learning_rate": 1e-3}),
    "warmup_steps": (rows, {"warmup_steps": 0}),
    "max_grad_norm": (rows, {"max_grad_norm": 1e-6}),
    "schedule": (rows, {"schedule": "constant", "epochs": 2}),
    "lora": (rows, {"lora": {"r": 4, "alpha": 4}}),
}
SHARED = {"warmup_steps", "max_grad_norm", "schedule", "lora"}
"""What it reads of the sections that stages share."""
ELSEWHERE = {
    *("rankings_per_micro_batch", "gradient_checkpointing", "evaluate_every", "on_alarm"),
    *("members", "aggregate", "aggregate_strength"),
    *("unpaired_coef", "annotator_bias"),  # test_reward_labels.py
}


@pytest.mark.row(28)
def test_row_28_every_option_is_tried() -> None:
    assert {name.partition(":")[0] for name in OPTIONS} | ELSEWHERE == set(RewardConfig.model_fields) | SHARED


@pytest.mark.row(28)
@pytest.mark.parametrize("option", OPTIONS)
def test_row_28_an_option_changes_what_is_learnt(option: str, train: Callable[..., Any]) -> None:
    made, changes = OPTIONS[option]
    usual, changed = (weights(train(name, made(), **values)[0]) for name, values in (("a", {}), ("b", changes)))
    assert apart(usual, changed) > 1e-6


@pytest.mark.row(28)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "plackett_luce", "ties": "half"}, "ties=half belongs to loss=pairs"),
        ({"loss": "davidson", "label_smoothing": 0.1}, "label_smoothing=0.1 belongs to loss=pairs"),
        ({"loss": "davidson", "soft_labels": True}, "soft_labels=True belongs to loss=pairs"),
        ({"loss": "plackett_luce", "margin_coef": 1.0}, "margin_coef=1.0 belongs to loss=pairs"),
        ({"soft_labels": True, "margin_coef": 1.0}, "exclude each other"),
        ({"aggregate": "min"}, "aggregate=min makes one of several members"),
        ({"members": 2, "aggregate_strength": 2.0}, "belongs to aggregate=mean_minus_std and aggregate=pessimistic"),
        ({"members": 2, "aggregate": "pessimistic", "aggregate_strength": 0.0}, "must be above 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_row_28_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig(**settings)


@pytest.mark.row(28)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"soft_labels": True}, "reward.soft_labels=true needs votes"),
        ({"margin_coef": 1.0}, "reward.margin_coef needs rankings with a strength"),
        ({"ties": "half"}, "reward.ties=half needs ties"),
        ({"loss": "davidson"}, "reward.loss=davidson needs ties"),
    ],
)
def test_row_28_settings_that_the_data_leave_idle_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_rankings(RewardConfig(**settings), [ranking((1, 2)), ranking((2, 1, 3))])


def test_a_tie_too_large_for_plackett_luce_is_refused() -> None:
    config = RewardConfig(loss="plackett_luce")
    check_rankings(config, [ranking((*[1] * 10, 2)), ranking((1, *[2] * 11))])
    with pytest.raises(UserError, match="'p' ties 11 replies above others"):
        check_rankings(config, [ranking((*[1] * 11, 2))])


# Layouts.


def _prepared(model: PreTrainedModel, layout: Layout) -> Layout:
    """What a model gets that allows no more than `layout`."""
    if layout.packs:
        assert attention.prepare_attention(model).kind == "shared"
    return layout


@pytest.mark.parametrize("loss", ["pairs", "davidson", "plackett_luce"])
def test_the_layout_does_not_change_the_result(
    loss: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for layout in (Layout("padded"), Layout("packed"), Layout("shared")):
        monkeypatch.setattr(training, "prepare_attention", lambda model, layout=layout: _prepared(model, layout))
        folder, summary = train(layout.kind, rows(), loss=loss, learning_rate=1e-3)
        assert summary["layout"] == layout.kind
        found[layout.kind] = weights(folder)
    assert apart(found["padded"], found["packed"]) < 1e-5
    assert apart(found["padded"], found["shared"]) < 1e-5


def test_gradient_checkpointing_changes_nothing(train: Callable[..., Any]) -> None:
    plain, again = (weights(train(str(on), rows(), gradient_checkpointing=on)[0]) for on in (False, True))
    assert apart(plain, again) < 1e-6


def test_a_model_that_cannot_pack_is_padded_and_says_why(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "use_packed_attention", lambda model: "its tokens see other examples of the row")
    assert train("run", rows())[1]["layout"] == "padded: its tokens see other examples of the row"


def test_a_model_that_cannot_share_is_packed_and_says_why(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "prompt_sharing_refused", lambda model: "a reply comes out otherwise")
    assert train("run", rows())[1]["layout"] == "packed: a reply comes out otherwise"
    assert attention.PACKED  # the layout before it did go through the packed attention


# The log.


def test_what_a_zero_head_says_is_known_without_a_pass(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held-out set takes longer than a step; before the first one all its scores are zero."""
    learns, scores = list[bool](), training.RewardTraining.scores

    def noted(self: training.RewardTraining, *given: Any) -> torch.Tensor:
        learns.append(torch.is_grad_enabled())
        return scores(self, *given)

    monkeypatch.setattr(training.RewardTraining, "scores", noted)
    folder, _ = train("run", rows())
    assert learns[0] and not learns[-1]
    first = read_metrics(folder / "metrics.jsonl")[0]
    assert (first["eval_loss"], first["eval_accuracy"]) == (pytest.approx(math.log(2)), 0.5)


def test_held_out_loss_and_accuracy_during_training(train: Callable[..., Any]) -> None:
    folder, _ = train("run", rows(), epochs=3, evaluate_every=2)
    logged = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in logged] == list(range(10))
    assert [row["step"] for row in logged if "eval_loss" in row] == [0, 2, 4, 6, 8, 9]
    assert all(0 <= row["eval_accuracy"] <= 1 for row in logged if "eval_loss" in row)
    by_epoch, _ = train("again", rows(), epochs=3)
    assert [row["step"] for row in read_metrics(by_epoch / "metrics.jsonl") if "eval_loss" in row] == [0, 3, 6, 9]


def test_the_held_out_loss_is_that_of_the_held_out_rankings(train: Callable[..., Any], trained: Path) -> None:
    """After the last step: the exported model, scored by plain transformers."""
    folder, _ = train("run", rows())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    chat = load_reward_model(folder, torch.float32, CPU).chat
    losses, right, pairs = [], 0, 0
    for row in (row for row in rows() if row["split"] != "train"):
        scores = []
        for response in row["responses"]:
            prompt = chat.prompt_ids((Message("user", row["prompt"]),))
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *chat.reply_ids(Completion(response["text"]))]])
                scores.append(model(input_ids=ids).logits.item())
        ranks = [response["rank"] for response in row["responses"]]
        margins = [scores[i] - scores[j] for i in range(3) for j in range(3) if ranks[i] < ranks[j]]
        losses.append(sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins))
        right, pairs = right + sum(margin > 0 for margin in margins), pairs + len(margins)
    logged = read_metrics(folder / "metrics.jsonl")
    assert logged[-1]["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert logged[-1]["eval_accuracy"] == pytest.approx(right / pairs)
    # Before the first step the head is zero: every pair is a coin.
    assert (logged[0]["eval_loss"], logged[0]["eval_accuracy"]) == (pytest.approx(math.log(2)), 0.5)


# Full fine-tuning.


def test_full_fine_tuning(train: Callable[..., Any], trained: Path) -> None:
    """Every weight of a copy learns, the SFT model stays, and the merged model is the whole artefact."""
    folder, summary = train("full", rows(), lora=None, learning_rate=1e-3, epochs=12)
    rows_of = read_metrics(folder / "metrics.jsonl")
    assert rows_of[-1]["eval_loss"] < 0.6 * rows_of[0]["eval_loss"]
    assert not (folder / "adapter").exists() and not (folder / "head.safetensors").exists()
    sft = trained / "sft/model/model.safetensors"
    assert sha256(sft) == sha256(folder.parent / "sft/model/model.safetensors")
    before, after = load_file(sft), load_file(folder / "model/model.safetensors")
    changed = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= changed
    assert summary["trainable_parameters"] == sum(tensor.numel() for tensor in after.values())
    one = load_reward_model(folder, torch.float32, CPU)
    chat = one.chat
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokens = pad_right([chat.prompt_ids((Message("user", "Hi?"),))], [chat.reply_ids(Completion("No."))], 3, CPU)
    torch.testing.assert_close(one.raw(tokens), plain(tokens.tokens_BT).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ppo_runs_on_a_full_reward_model(
    dtype: str, train: Callable[..., Any], tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    folder, _ = train("full", rows(), dtype, lora=None, learning_rate=1e-3)
    run = tiny_run(tmp_path / "ppo", folder.parent, dtype)
    ppo.train(*tiny_stage("ppo", run, updates=1))
    saved = load_file(run.folder.path / "ppo/rollouts/00001.safetensors")
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    for row, length in enumerate(saved["lengths_B"].tolist()):
        raw = judge(input_ids=saved["tokens_BT"][row, :length][None]).logits.item()
        assert saved["raw_scores_BM"][row].item() == pytest.approx(raw, abs=1e-4 if dtype == "float32" else 0.1)


def test_the_base_is_untouched(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 19: a base that changes while adapters learn stops the stage."""
    plain = reward.train_member

    def harmful(trainer: RewardTraining, *rest: Any) -> Any:
        done = plain(trainer, *rest)
        next(tensor for _, tensor in trainer.model.base_tensors()).add_(1e-3)  # type: ignore[union-attr]
        return done

    monkeypatch.setattr(reward, "train_member", harmful)
    with pytest.raises(RunStopped, match="the frozen base changed"):
        train("run", rows())


# Ensembles.


def test_an_ensemble_through_ppo(
    train: Callable[..., Any], tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    """Each member is stored, exported, normalised and golden by itself; PPO pays their aggregate."""
    folder, summary = train("two", rows(), members=2, aggregate="pessimistic", aggregate_strength=0.5)
    alone, _ = train("one", rows())
    assert apart(weights(folder), weights(alone)) == 0, "the first member is the model it would be alone"
    first, second = weights(folder), weights(folder, "_1")
    assert apart(first, second) > 1e-3
    assert (summary["members"], summary["passes_per_score"], summary["aggregate"]) == (2, 2, "pessimistic")
    logged = read_metrics(folder / "metrics.jsonl")
    assert [row["member"] for row in logged] == [0] * 4 + [1] * 4
    contract = RewardContract.load(folder)
    assert (contract.aggregate, contract.beta, len(contract.mean), len(contract.golden[0])) == (
        "pessimistic",
        0.5,
        2,
        2,
    )

    run = tiny_run(tmp_path / "ppo", folder.parent)
    ppo.train(*tiny_stage("ppo", run, updates=1, score_scale="none", missing_eos_penalty=0))
    saved = load_file(run.folder.path / "ppo/rollouts/00001.safetensors")
    judges = [AutoModelForSequenceClassification.from_pretrained(folder / name).eval() for name in ("model", "model_1")]
    for row, length in enumerate(saved["lengths_B"].tolist()):
        ids = saved["tokens_BT"][row, :length][None]
        raw = [judge(input_ids=ids).logits.item() for judge in judges]
        assert saved["raw_scores_BM"][row].tolist() == pytest.approx(raw, abs=1e-4)
        r = [(x - mean) / std for x, mean, std in zip(raw, contract.mean, contract.std, strict=True)]
        expected = -0.5 * math.log(sum(math.exp(-x / 0.5) for x in r) / 2)
        assert saved["scores_B"][row].item() == pytest.approx(max(-5, min(5, expected)), abs=1e-3)


def test_members_see_the_data_in_orders_of_their_own(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    plain = RewardTraining.micro_batches

    def noted(self: training.RewardTraining, examples: list[EncodedRanking]) -> Any:
        if examples is not self.held_out:
            seen.append(sorted(example.ranking.prompt.id for example in examples))
        return plain(self, examples)

    monkeypatch.setattr(training.RewardTraining, "micro_batches", noted)
    train("run", rows(), members=2)
    assert len(seen) == 6
    first, second = seen[:3], seen[3:]
    assert first != second
    assert sorted(id for step in first for id in step) == sorted(id for step in second for id in step)


def test_the_export_of_an_ensemble_is_its_members(train: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    folder, _ = train("two", rows(), members=2)
    shutil.copy(trained / "recipe.yaml", folder.parent)  # the model card tells of it
    export_role(folder.parent, "reward", tmp_path / "out")
    for member, name in enumerate(("model", "model_1")):
        exported = load_reward_model(tmp_path / "out" / f"member_{member}", torch.float32, CPU)
        assert exported.contract == RewardContract.load(folder / name)
    weights_of = folder / "model_1" / "model.safetensors"
    weights_of.write_bytes(weights_of.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="has not the bytes"):
        export_role(folder.parent, "reward", tmp_path / "again")


@pytest.mark.row(26)
@pytest.mark.parametrize("member", [0, 1])
def test_row_26_every_member_is_checked(member: int, train: Callable[..., Any]) -> None:
    folder, _ = train("two", rows(), members=2)
    (folder / ("head.safetensors" if member == 0 else "head_1.safetensors")).unlink()
    with pytest.raises(UserError, match="is missing, a part of the reward model"):
        load_reward_model(folder, torch.float32, CPU)


def test_a_weight_average(
    train: Callable[..., Any], load: Callable[[Path], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model of rank M·r with the mean of the members' updates and heads; the members started with one head."""
    members, starts = [], []
    plain_save, plain_build = reward.save, reward.RewardTraining

    def build(*arguments: Any) -> Any:
        trainer = plain_build(*arguments)
        starts.append([head.weight.clone() for head in trainer.model.score_heads])
        return trainer

    def save(config: RewardConfig, run: Run, trainer: RewardTraining, folder: Path) -> None:
        names = ("reward", "reward_1", "reward_2")
        members.append([dict(trainer.model.merged_weights(name, None)) for name in names])
        members.append([head.weight.detach().clone() for head in trainer.model.score_heads])
        plain_save(config, run, trainer, folder)

    monkeypatch.setattr(reward, "save", save)
    monkeypatch.setattr(reward, "RewardTraining", build)
    folder, summary = train("run", rows(), members=3, aggregate="weight_averaged")
    assert all(torch.equal(head, starts[0][0]) for head in starts[0])
    assert not list(folder.glob("*_1*"))
    assert (summary["members"], summary["passes_per_score"]) == (3, 1)
    merged, heads = members
    found = dict(Roles(load(folder.parent / "sft/model"), reward=[folder / "adapter"]).merged_weights("reward", None))
    for name, weight in found.items():
        torch.testing.assert_close(weight, torch.stack([one[name] for one in merged]).mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(load_file(folder / "head.safetensors")["weight"], torch.stack(heads).mean(dim=0))
    assert (heads[0] - heads[1]).abs().max() > 1e-4
    contract = load_reward_model(folder, torch.float32, CPU).contract
    assert (contract.aggregate, len(contract.mean)) == ("mean", 1)


# Calibration and what the summary says.


def test_the_temperature_is_of_normalised_validation_margins(train: Callable[..., Any]) -> None:
    """It maximises the likelihood of the validation pairs under Platt's targets; raw scores are as they were."""
    folder, summary = train("run", rows(), epochs=4)
    model = load_reward_model(folder, torch.float32, CPU)
    chat = model.chat
    margins = []
    for row in (row for row in rows() if row["split"] == "validation"):
        prompt = chat.prompt_ids((Message("user", row["prompt"]),))
        replies = [chat.reply_ids(Completion(response["text"])) for response in row["responses"]]
        scores = model.contract.normalised(model.raw(pad_right([prompt] * 3, replies, 3, CPU))).tolist()
        ranks = [response["rank"] for response in row["responses"]]
        margins += [scores[i] - scores[j] for i in range(3) for j in range(3) if ranks[i] < ranks[j]]
    q = (len(margins) + 1) / (len(margins) + 2)

    def loss(temperature: float) -> float:
        return sum(
            q * math.log1p(math.exp(-m / temperature)) + (1 - q) * math.log1p(math.exp(m / temperature))
            for m in margins
        )

    best = summary["temperature"]
    assert loss(best) <= min(loss(best * 1.02), loss(best / 1.02)) + 1e-9
    confidence = model.contract.confidence(torch.tensor(margins[:1])).item()
    assert confidence == pytest.approx(1 / (1 + math.exp(-margins[0] / best)))


def test_davidson_keeps_its_tie_parameter(train: Callable[..., Any]) -> None:
    folder, _ = train("run", rows(), loss="davidson", members=2, epochs=2)
    (first, second) = RewardContract.load(folder).log_nu or ()
    assert first != 0 and second != 0
    assert RewardContract.load(folder / "model_1").log_nu == (second,)
    assert json.loads((train("pairs", rows())[0] / "reward.json").read_text())["log_nu"] is None


def test_a_ranking_of_ties_only_teaches_the_losses_that_can_learn_from_it(train: Callable[..., Any]) -> None:
    tied = rows()
    for response in tied[0]["responses"]:
        response["rank"] = 1
    assert train("drop", tied)[1]["rankings_train"] == 11
    assert train("half", tied, ties="half")[1]["rankings_train"] == 12


def test_the_cost_of_a_member_is_stated(train: Callable[..., Any]) -> None:
    folder, summary = train("run", rows(), members=2)
    files = [*folder.glob("adapter*/*.safetensors"), *folder.glob("adapter*/*.json"), *folder.glob("*.safetensors")]
    assert len(files) == 6
    assert summary["megabytes_per_member"] == pytest.approx(sum(f.stat().st_size for f in files) / 2e6)
    assert summary["seconds_per_member"] > 0
    assert summary["pairs_per_second"] > 0


def test_examples_are_tokens_as_ppo_has_them(trained: Path, chat_of: Callable[..., Any]) -> None:
    """Row 21: prompt ids and reply ids of the one chat format, end of turn included."""
    chat = chat_of(trained / "sft/model")
    (example,) = encode(RewardConfig(), chat, [ranking((1, 2))])
    assert example.prompt == chat.prompt_ids(example.ranking.prompt.messages)
    assert example.replies[0] == [*chat.tokenizer("reply 0", add_special_tokens=False)["input_ids"], chat.eos_id]


def test_lora_settings_reach_every_member(train: Callable[..., Any]) -> None:
    folder, _ = train("run", rows(), members=2, lora=LoraSettings(r=2, alpha=6).model_dump())
    for name in ("adapter", "adapter_1"):
        config = json.loads((folder / name / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (2, 6)
