"""The three stages that train, on the tiny model: what they learn, what they must not touch, and what stops them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from conftest import TINY, tiny_stage, write_lines
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rankings
from plaudit.data.hashes import sha256
from plaudit.errors import RunStopped, UserError
from plaudit.models.kernels.probe import libraries_only
from plaudit.models.roles import PACKED_BELOW, RoleOutput, plain_logprobs
from plaudit.models.tokens import Tokens, pack_tokens
from plaudit.rewards.contract import RewardContract
from plaudit.rollout.batch import minibatches
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.trainer import Trainer
from plaudit.stages.reward import loop as reward
from plaudit.stages.reward.loop import NORMALISE_ON
from plaudit.stages.sft import loop as sft
from plaudit.train.run import Run

Load = Callable[[Path], PreTrainedModel]
LOGPROBS = frozenset({"logprobs"})


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two adapters."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


# SFT.


def run_sft(run: Run, **changes: Any) -> tuple[Path, dict[str, Any]]:
    summary = sft.train(*tiny_stage("sft", run, **changes))
    return run.folder.path / "sft", summary


def test_sft_lowers_the_held_out_loss(tmp_path: Path, tiny_run: Callable[..., Run], load: Load) -> None:
    run = tiny_run(tmp_path)
    before = {path.name: sha256(path) for path in Path(run.model).iterdir()}
    folder, summary = run_sft(run)
    assert summary["eval_loss_after"] < 0.5 * summary["eval_loss_before"]
    assert summary["demonstrations_train"] == 24
    assert summary["demonstrations_held_out"] == 12
    # Only the adapter is learnt, and the model it started from is as it was.
    assert summary["trainable_parameters"] == sum(tensor.numel() for tensor in adapter(folder).values())
    assert {path.name: sha256(path) for path in Path(run.model).iterdir()} == before
    # The SFT model is the base plus the saved adapter, merged in float32.
    peft = PeftModel.from_pretrained(load(Path(run.model)), str(folder / "adapter")).merge_and_unload()
    merged = dict(load(folder / "model").named_parameters())
    for name, tensor in peft.named_parameters():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_sft_loss_by_hand(tmp_path: Path, tiny_run: Callable[..., Run], load: Load) -> None:
    """Row 15: the loss is the mean over all completion tokens of the step, end of turn included, prompts not."""
    run = tiny_run(tmp_path)
    folder, _ = run_sft(run, epochs=1, batch_size=24)
    chat, model = run.chat(run.model), load(Path(run.model))
    logprobs = []
    for item in run.demonstrations:
        if item.prompt.split == "train":
            prompt = chat.prompt_ids(item.prompt.messages)
            reply = [*chat.tokenizer(item.completion, add_special_tokens=False)["input_ids"], chat.eos_id]
            ids = torch.tensor([[*prompt, *reply]])
            with torch.no_grad():
                q_TV = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            logprobs += [q_TV[len(prompt) - 1 + i, token].item() for i, token in enumerate(reply)]
    rows = read_metrics(folder / "metrics.jsonl")
    assert rows[1]["loss"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)
    assert rows[0]["eval_loss"] == pytest.approx(json.loads((folder / "summary.json").read_text())["eval_loss_before"])


@pytest.mark.row(14)
def test_row_14_sft_does_not_depend_on_the_micro_batches(tmp_path: Path, tiny_run: Callable[..., Run]) -> None:
    """Row 14: micro-batches of 1, 2, 4 or 8 ragged demonstrations give one gradient."""
    adapters, losses = [], []
    for micro in (1, 2, 4, 8):
        folder, _ = run_sft(tiny_run(tmp_path / str(micro)), epochs=1, micro_batch_size=micro, learning_rate=1e-3)
        adapters.append(adapter(folder))
        losses.append([row["loss"] for row in read_metrics(folder / "metrics.jsonl")[1:]])
    for other, loss in zip(adapters[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-6)
        assert apart(other, adapters[0]) < 1e-5


def test_sft_refuses_a_long_demonstration_by_name(tmp_path: Path, tiny_run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"demonstration '[a-z]+-\d+' has \d+ tokens, more than sft.max_length=8"):
        run_sft(tiny_run(tmp_path), max_length=8)


# The reward model.


def separable(good: str = "It is great.", bad: str = "No.") -> list[dict[str, Any]]:
    """Rankings of three replies where the same one is always best; split train and test."""
    return [
        {
            "id": f"{split}-{i}",
            "split": split,
            "prompt": f"Question {i}?",
            "responses": [{"text": bad, "rank": 3}, {"text": good, "rank": 1}, {"text": f"Well, {i}.", "rank": 2}],
        }
        for split, count in (("train", 12), ("test", 4))
        for i in range(count)
    ]


def reward_run(
    tiny_run: Callable[..., Run], trained: Path, home: Path, rankings: list[dict[str, Any]], **changes: Any
) -> tuple[Path, dict[str, Any]]:
    run = tiny_run(home, trained)
    write_lines(run.folder.path / "preferences" / "rankings.jsonl", rankings)
    summary = reward.train(*tiny_stage("reward", run, **changes))
    return run.folder.path / "reward", summary


def test_the_reward_model_learns_a_separable_preference(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    folder, summary = reward_run(tiny_run, trained, tmp_path, separable(), epochs=10)
    assert summary["accuracy"] == 1.0
    assert (summary["pairs_train"], summary["pairs_test"]) == (36, 12)
    rows = read_metrics(folder / "metrics.jsonl")
    assert rows[-1]["accuracy"] == rows[-1]["eval_accuracy"] == 1.0
    assert rows[-1]["loss"] < 0.2 < rows[1]["loss"]
    assert rows[-1]["eval_loss"] < 0.2 < rows[0]["eval_loss"]
    assert sha256(trained / "sft/model/model.safetensors") == sha256(folder.parent / "sft/model/model.safetensors")


@pytest.mark.row(25)
def test_row_25_swapping_the_columns_gives_the_complement(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    """Row 25: the held-out ranks turned round give 1 − accuracy, so nothing leaks from a pair's order."""
    rankings = read_rankings(trained / "preferences" / "rankings.jsonl")
    rows = [ranking.as_json() for ranking in rankings]
    turned = json.loads(json.dumps(rows))
    for row in turned:
        for response in row["responses"]:
            if row["split"] != "train":
                response["rank"] = 4 - response["rank"]
    plain = reward_run(tiny_run, trained, tmp_path / "plain", rows)[1]
    swapped = reward_run(tiny_run, trained, tmp_path / "swapped", turned)[1]
    assert swapped["accuracy"] == pytest.approx(1 - plain["accuracy"])
    assert swapped["length_baseline_accuracy"] == pytest.approx(1 - plain["length_baseline_accuracy"])


@pytest.mark.row(24)
def test_row_24_reward_loss_by_hand(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> None:
    """Row 24: every ranking counts once; its pairs share the weight; ties give no pair."""
    rankings = [ranking for ranking in separable() if ranking["split"] == "train"][:3]
    rankings[1]["responses"][2]["rank"] = 1  # a tie at the top: two strict pairs
    rankings[2]["responses"] = rankings[2]["responses"][:2]  # one pair
    tests = [ranking for ranking in separable() if ranking["split"] == "test"]
    # A learning rate next to nothing keeps the model at its start, so the exported one scores as the first step saw it.
    folder, _ = reward_run(
        tiny_run, trained, tmp_path, [*rankings, *tests], epochs=1, learning_rate=1e-30, rankings_per_step=4
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    run = tiny_run(tmp_path / "again", trained)
    chat = run.chat(run.sft_model)

    def score(ranking: dict[str, Any], number: int) -> float:
        messages = [{"role": "user", "content": ranking["prompt"]}]
        prompt = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        reply = chat.tokenizer(ranking["responses"][number]["text"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return model(input_ids=torch.tensor([[*prompt, *reply, chat.eos_id]])).logits.item()

    pairs = [[(1, 2), (1, 0), (2, 0)], [(1, 0), (2, 0)], [(1, 0)]]
    losses = [
        sum(math.log1p(math.exp(score(r, l) - score(r, w))) for w, l in chosen) / len(chosen)
        for r, chosen in zip(rankings, pairs, strict=True)
    ]
    assert read_metrics(folder / "metrics.jsonl")[1]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.row(14)
def test_row_14_reward_does_not_depend_on_the_micro_batches(
    tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    found = []
    for micro in (1, 2, 4):
        folder, summary = reward_run(
            tiny_run,
            trained,
            tmp_path / str(micro),
            separable(),
            epochs=1,
            rankings_per_micro_batch=micro,
            learning_rate=1e-3,
        )
        found.append((adapter(folder), load_file(folder / "head.safetensors"), summary["score_mean"]))
    for weights, head, mean in found[1:]:
        assert apart(weights, found[0][0]) < 1e-5
        assert apart(head, found[0][1]) < 1e-5
        assert mean == pytest.approx(found[0][2], rel=1e-4, abs=1e-5)


def test_the_stored_moments_normalise_the_training_replies(trained: Path, chat_of: Callable[..., ChatFormat]) -> None:
    """Row 21: mean and std are those of the exported model's raw scores over the first replies to training prompts."""
    contract = json.loads((trained / "reward" / "reward.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(trained / "reward" / "model").eval()
    rankings = [r for r in read_rankings(trained / "preferences/rankings.jsonl") if r.prompt.split == "train"]
    replies = [(r.prompt, reply) for r in rankings if r.pairs() for reply in r.replies]
    chat, scores = chat_of(trained / "sft" / "model"), []
    for prompt, reply in replies[:NORMALISE_ON]:
        ids = [*chat.prompt_ids(prompt.messages), *chat.reply_ids(reply)]
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([ids])).logits.item())
    assert contract["mean"] == pytest.approx([np.mean(scores)], abs=1e-4)
    assert contract["std"] == pytest.approx([np.std(scores)], rel=1e-4)
    assert [model.config.plaudit_score_mean, model.config.plaudit_score_std] == contract["mean"] + contract["std"]


def test_the_reward_model_needs_held_out_pairs(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> None:
    rankings = [ranking for ranking in separable() if ranking["split"] == "train"]
    with pytest.raises(UserError, match="12 training and 0 held-out rankings"):
        reward_run(tiny_run, trained, tmp_path, rankings)


# PPO.


@pytest.fixture
def run_ppo(tmp_path: Path, tiny_run: Callable[..., Run], before_ppo: Callable[[str], Path]) -> Callable[..., Path]:
    """run_ppo("name", gamma=0.9) -> the ppo folder of a new run on the trained SFT and reward models."""

    def call(name: str = "run", dtype: str = "float32", **changes: Any) -> Path:
        run = tiny_run(tmp_path / name, before_ppo(dtype), dtype)
        ppo.train(*tiny_stage("ppo", run, **{"micro_batch_size": 2, **changes}))
        return run.folder.path / "ppo"

    return call


def plant(change: Callable[[Trainer], object], patch: pytest.MonkeyPatch) -> None:
    """Do `change` to the trainer before PPO's loop starts."""
    build = ppo.Trainer

    def changed(*arguments: Any) -> Trainer:
        trainer = build(*arguments)
        change(trainer)
        return trainer

    patch.setattr(ppo, "Trainer", changed)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Trainer], object]], None]:
    """planted(change): `plant` for the length of a test."""
    return lambda change: plant(change, monkeypatch)


def rewarded(score: Callable[[Tokens], Tensor]) -> Callable[[Trainer], None]:
    """What plants a rule in place of the reward model; its scores are taken as they are."""

    def scorer(tokens: Tokens, role: str, need: frozenset[str]) -> RoleOutput:
        return RoleOutput(scores_BM=score(tokens)[:, None])

    def change(trainer: Trainer) -> None:
        plain_scores(trainer)
        trainer.scorer = scorer  # type: ignore[assignment]

    return change


def even(tokens: Tokens) -> Tensor:
    """[B] the share of a reply's tokens that have an even id."""
    actions_BT = tokens.tokens_BT.roll(-1, dims=1)
    return ((actions_BT % 2 == 0) & tokens.mask_BT).sum(dim=1) / tokens.reply_lengths_B


def plain_scores(trainer: Trainer) -> None:
    """Raw scores are taken as they are."""
    trainer.contract = replace(trainer.contract, mean=(0.0,), std=(1.0,))


@pytest.mark.row(3, 11, 22)
def test_a_rollout_record_from_scratch(trained: Path, load: Load) -> None:
    """Rows 3, 11, 12 and 22: every tensor of a saved batch recomputed from its sampled ids, in plain loops."""
    config = PPOConfig(**TINY["ppo"])
    contract = json.loads((trained / "reward" / "reward.json").read_text())
    judge = AutoModelForSequenceClassification.from_pretrained(trained / "reward" / "model").eval()
    for update in (1, 2):
        saved = load_file(trained / "ppo" / "rollouts" / f"{update:05d}.safetensors")
        tokens = Tokens(saved["tokens_BT"], saved["prompt_lengths_B"], saved["lengths_B"])
        ref_BT = plain_logprobs(load(trained / "sft" / "model"), tokens, 1.0)
        torch.testing.assert_close(saved["ref_logprobs_BT"], ref_BT, rtol=0, atol=1e-5)
        torch.testing.assert_close(saved["sampler_logprobs_BT"], saved["old_logprobs_BT"], rtol=0, atol=1e-4)
        torch.testing.assert_close(saved["kl_BT"], saved["old_logprobs_BT"] - ref_BT, rtol=0, atol=1e-5)
        assert saved["old_entropy_BT"][tokens.mask_BT].min() > 0

        scores, rows = [], range(config.batch_size)
        for row, length in zip(rows, saved["lengths_B"].tolist(), strict=True):
            ids = saved["tokens_BT"][row, :length]
            with torch.no_grad():
                raw = judge(input_ids=ids[None]).logits.item()
            assert saved["raw_scores_BM"][row].item() == pytest.approx(raw, abs=1e-4)
            assert bool(saved["finished_B"][row]) == (ids[-1].item() == contract["eos_id"])
            score = (raw - contract["mean"][0]) / contract["std"][0]
            score -= 0 if saved["finished_B"][row] else config.missing_eos_penalty
            scores.append(max(-config.score_clip, min(config.score_clip, score)))
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        if update == 1:
            assert read_metrics(trained / "ppo/metrics.jsonl")[0]["effective_kl_coef"] == pytest.approx(
                config.kl_coef * std, rel=1e-3
            )
            assert saved["scores_B"].tolist() == pytest.approx([(s - mean) / std for s in scores], abs=1e-3)

        advantages = []
        for row in rows:
            start, end = int(saved["prompt_lengths_B"][row]) - 1, int(saved["lengths_B"][row]) - 1
            kl, values = saved["kl_BT"][row, start:end].tolist(), saved["values_BT"][row, start:end].tolist()
            rewards = [-config.kl_coef * k for k in kl]
            rewards[-1] += saved["scores_B"][row].item()
            assert saved["rewards_BT"][row, start:end].tolist() == pytest.approx(rewards, abs=1e-5)
            deltas = [
                r + config.gamma * (values[t + 1] if t + 1 < len(values) else 0) - values[t]
                for t, r in enumerate(rewards)
            ]
            factor = config.gamma * config.lam
            own = [sum(factor**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
            returns = [a + v for a, v in zip(own, values, strict=True)]
            assert saved["returns_BT"][row, start:end].tolist() == pytest.approx(returns, abs=1e-4)
            advantages += own
        mean = sum(advantages) / len(advantages)
        std = math.sqrt(sum((a - mean) ** 2 for a in advantages) / len(advantages))
        assert saved["advantages_BT"][saved["mask_BT"]].tolist() == pytest.approx(
            [(a - mean) / std for a in advantages], abs=1e-3
        )
        for name in ("old_logprobs_BT", "ref_logprobs_BT", "values_BT", "rewards_BT", "advantages_BT", "returns_BT"):
            assert not saved[name][~saved["mask_BT"]].any(), name


@pytest.mark.row(7, 29)
def test_row_7_the_first_step_of_an_update_is_at_ratio_one(run_ppo: Callable[..., Path]) -> None:
    """Rows 7 and 29: with one step an update nothing leaves ratio 1; a second epoch is against the old log-probs."""
    once = read_metrics(run_ppo("once", updates=3, epochs=1, minibatch_size=4, micro_batch_size=2) / "metrics.jsonl")
    assert once[0]["kl"] == 0
    for row in once:
        assert row["clip_fraction"] == 0
        assert row["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert once[-1]["kl"] != 0, "the policy did not move"
    twice = read_metrics(run_ppo("twice", epochs=2, minibatch_size=4, micro_batch_size=2) / "metrics.jsonl")
    assert twice[0]["approx_kl"] > 1e-4


def test_ppo_in_bfloat16_holds_the_same_numbers(run_ppo: Callable[..., Path]) -> None:
    """The ratio is exactly 1 and the fresh KL exactly 0 in bf16 too, or the run would stop."""
    rows = read_metrics(run_ppo(dtype="bfloat16", epochs=1, minibatch_size=4, micro_batch_size=2) / "metrics.jsonl")
    assert rows[0]["kl"] == 0
    assert [row["approx_kl"] for row in rows] == [0, 0]


SHARING = {"replies_per_prompt": 4, "batch_size": 8, "minibatch_size": 8, "micro_batch_size": 4}


def packs(folder: Path) -> bool:
    """Whether every micro-batch of the first rollout saves enough for its rows to be packed."""
    saved = load_file(folder / "rollouts/00001.safetensors")
    tokens = Tokens(saved["tokens_BT"], saved["prompt_lengths_B"], saved["lengths_B"])
    lengths, order = tokens.lengths_B.tolist(), range(SHARING["batch_size"])
    (parts,) = minibatches(lengths, tokens.prompts, order, SHARING["minibatch_size"], rows=SHARING["micro_batch_size"])
    micro = [tokens.rows(rows) for rows in parts]
    return all(pack_tokens(m)[0].tokens_BT.numel() < PACKED_BELOW * m.tokens_BT.numel() for m in micro)


def test_replies_that_share_their_prompts_work_train_the_same_policy(
    run_ppo: Callable[..., Path], planted: Callable[[Callable[[Trainer], object]], None]
) -> None:
    """Packed behind one prompt in every pass, and padded row by row: one rollout, one update, to rounding."""
    shares = []
    planted(lambda trainer: shares.append(trainer.roles.packs))
    packed = run_ppo("packed", **SHARING)
    planted(lambda trainer: setattr(trainer.roles, "packs", False))
    padded = run_ppo("padded", **SHARING)
    assert shares == [not libraries_only()] * 2  # of the second run, before it was switched off
    assert packs(packed)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for one, other in zip(read_metrics(packed / name), read_metrics(padded / name), strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-4), name
    for file in ("00001", "00002"):
        one, other = (load_file(folder / "rollouts" / f"{file}.safetensors") for folder in (packed, padded))
        assert torch.equal(one["tokens_BT"], other["tokens_BT"])
        for name in ("old_logprobs_BT", "ref_logprobs_BT", "raw_scores_BM", "advantages_BT"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4, msg=f"{file} {name}")


def test_in_bfloat16_packed_rows_are_at_ratio_one(run_ppo: Callable[..., Path]) -> None:
    folder = run_ppo(dtype="bfloat16", epochs=1, **SHARING)
    rows = read_metrics(folder / "metrics.jsonl")
    assert packs(folder)
    assert rows[0]["kl"] == 0
    assert [row["approx_kl"] for row in rows] == [0, 0]


@pytest.mark.row(19)
def test_ppo_touches_neither_the_sft_nor_the_reward_model(run_ppo: Callable[..., Path], trained: Path) -> None:
    """Rows 18 and 19, on disk."""
    home = run_ppo().parent
    for stage in ("sft", "reward"):
        for path in (trained / stage).rglob("*"):
            assert path.is_dir() or sha256(path) == sha256(home / path.relative_to(trained)), path


@pytest.mark.proof("b")
def test_no_reward_no_movement(
    run_ppo: Callable[..., Path], planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole-loop proof (b): r ≡ 0, whitening off: every advantage is 0, so not one weight of the policy moves."""
    planted(rewarded(lambda tokens: torch.zeros(len(tokens.lengths_B))))
    folder = run_ppo(updates=3, score_scale="none", whiten_advantages=False, missing_eos_penalty=0.0)
    assert not any(tensor.any() for name, tensor in adapter(folder).items() if "lora_B" in name)
    assert [row["kl"] for row in read_metrics(folder / "evaluations.jsonl")] == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [0.1, -3.3, -1.152360200881958])
def test_a_constant_reward_is_no_reward(
    value: float, run_ppo: Callable[..., Path], planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 10 and 11: equal scores whiten to 0, not to their rounding blown up, and the policy stays where it was."""
    planted(rewarded(lambda tokens: torch.full((len(tokens.lengths_B),), value)))
    sizes = {"batch_size": 6, "minibatch_size": 3, "micro_batch_size": 3}
    folder = run_ppo(updates=2, **sizes, whiten_advantages=False, missing_eos_penalty=0.0, max_new_tokens=4)
    for update in (1, 2):
        assert not load_file(folder / "rollouts" / f"{update:05d}.safetensors")["scores_B"].any()
    assert [row["kl"] for row in read_metrics(folder / "evaluations.jsonl")] == [0, 0, 0]


LEARNING: dict[str, Any] = {
    "updates": 10,
    "batch_size": 24,
    "minibatch_size": 12,
    "micro_batch_size": 12,
    "missing_eos_penalty": 0.0,
    "kl_coef": 0.01,
    "evaluate_every": 2,
    "watch": {"enabled": False},
}


@pytest.fixture(scope="module")
def learnt(tiny_run: Callable[..., Run], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PPO folder of a run that was paid by the share of its tokens with an even id. Read only."""
    run = tiny_run(tmp_path_factory.mktemp("learnt"), trained)
    with pytest.MonkeyPatch.context() as patch:
        plant(rewarded(even), patch)
        ppo.train(*tiny_stage("ppo", run, **LEARNING, kl_budget=1000))
    return run.folder.path / "ppo"


def test_ppo_learns_what_is_rewarded(learnt: Path) -> None:
    """The policy comes to use the tokens it is paid for."""
    looks = [row["score"] for row in read_metrics(learnt / "evaluations.jsonl")]
    assert looks[0] < 0.8
    assert looks[-1] > looks[0] + 0.15
    rows = read_metrics(learnt / "metrics.jsonl")
    assert rows[-1]["score"] > rows[0]["score"] + 0.15


def test_the_kl_penalty_holds_the_policy_back(
    run_ppo: Callable[..., Path], planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(rewarded(lambda tokens: (tokens.tokens_BT % 2 == 0).float().mean(dim=1)))
    settings = {"updates": 8, "batch_size": 16, "minibatch_size": 8, "micro_batch_size": 8, "evaluate_every": 8}

    def late_kl(beta: float) -> float:
        """Over the last four updates' 64 replies: the KL of one batch of short replies is mostly noise."""
        rows = read_metrics(run_ppo(f"beta-{beta}", kl_coef=beta, **settings) / "metrics.jsonl")
        return float(np.mean([row["kl"] for row in rows[-4:]]))

    free, held = late_kl(0.0), late_kl(4.0)
    assert 0 < held < 0.5 * free


# What stops a run.


def drop_lora(trainer: Trainer) -> None:
    for layer in trainer.roles._lora_layers:
        layer.lora_dropout["policy"] = torch.nn.Dropout(0.5)


def train_mode(trainer: Trainer) -> None:
    for module in trainer.roles.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    trainer.roles.train()


@torch.no_grad()
def move_policy(trainer: Trainer) -> None:
    for parameter in trainer.roles.trainable().values():
        parameter.add_(0.1)


def nan_values(trainer: Trainer) -> None:
    trainer.roles.value_head.bias.data.fill_(math.nan)


def nan_scores(trainer: Trainer) -> None:
    trainer.roles.score_heads[0].weight.data.fill_(math.nan)


DISAGREE = "sampler and trainer disagree"
MISTAKES: dict[str, tuple[Callable[[Trainer], object], str]] = {
    "reference": (move_policy, "the reference is not the model the policy started from"),
    "lora dropout": (drop_lora, f"{DISAGREE}|off by|dropout on"),
    "train mode": (train_mode, "dropout on"),
    "sampler temperature": (lambda trainer: setattr(trainer.engine, "temperature", 0.5), DISAGREE),
    "trainer temperature": (lambda trainer: setattr(trainer.roles, "temperature", 0.5), DISAGREE),
    "stale sampler": (lambda trainer: setattr(trainer.engine, "load_weights", lambda weights: None), DISAGREE),
    "nan score": (nan_scores, "score is nan"),
    "nan value": (nan_values, "the loss is nan"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_planted_mistake_stops_the_run(
    mistake: Callable[[Trainer], object], message: str, run_ppo: Callable[..., Path], planted: Callable[..., None]
) -> None:
    """Rows 5, 7, 8, 18 and 20: caught by the run itself, at the first update where the mistake shows."""
    planted(mistake)
    with pytest.raises(RunStopped, match=message):
        run_ppo(evaluate_every=5)


@pytest.mark.row(7)
def test_a_ratio_that_is_not_one_stops_the_run(run_ppo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 7: old log-probs that the trainer does not reproduce."""
    plain = ppo.update

    def moved(trainer: Trainer, batch: Any, *rest: Any) -> Any:
        old_logprobs_BT = torch.where(batch.mask_BT, batch.old_logprobs_BT + 1e-4, 0.0)
        return plain(trainer, replace(batch, old_logprobs_BT=old_logprobs_BT), *rest)

    monkeypatch.setattr(ppo, "update", moved)
    with pytest.raises(RunStopped, match="before the first step of the update the probability ratio is off by"):
        run_ppo()


@pytest.mark.row(21)
@pytest.mark.parametrize(("key", "value"), [("eos_id", 5), ("system", "Be rude."), ("template_sha256", "0")])
def test_row_21_a_reward_model_of_other_rules_is_refused(
    key: str, value: object, tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    run = tiny_run(tmp_path, trained)
    folder = run.folder.path / "reward"
    replace(RewardContract.load(folder), **{key: value}).save(folder)
    with pytest.raises(UserError, match=f"was trained with {key}="):
        ppo.train(*tiny_stage("ppo", run))


@pytest.mark.row(26)
def test_row_26_a_lost_head_is_refused(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> None:
    run = tiny_run(tmp_path, trained)
    (run.folder.path / "reward" / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors is missing"):
        ppo.train(*tiny_stage("ppo", run))


# Batches, the policy that is kept, and options.


@pytest.mark.row(14)
@pytest.mark.parametrize("minibatch", [8, 4], ids=["one step an epoch", "two steps an epoch"])
def test_row_14_ppo_does_not_depend_on_the_micro_batches(minibatch: int, run_ppo: Callable[..., Path]) -> None:
    """Row 14: "Changes memory, not the result": replies are ragged, and the adapter is one for every split."""
    found = []
    for micro in (1, 2, 4):
        folder = run_ppo(
            f"micro-{micro}",
            batch_size=8,
            minibatch_size=minibatch,
            micro_batch_size=micro,
            learning_rate=1e-3,
            evaluate_every=2,
            updates=2,
        )
        lengths = load_file(folder / "rollouts" / "00001.safetensors")["lengths_B"]
        assert len(set(lengths.tolist())) > 1
        found.append((load_file(folder / "rollouts" / "00002.safetensors"), adapter(folder)))
    for batch, weights in found[1:]:
        for name in ("old_logprobs_BT", "values_BT", "advantages_BT"):
            torch.testing.assert_close(batch[name], found[0][0][name], rtol=0, atol=1e-4)
        assert apart(weights, found[0][1]) < 1e-5


def test_the_kept_policy_is_the_best_within_the_budget(
    learnt: Path, run_ppo: Callable[..., Path], planted: Callable[..., None]
) -> None:
    rows = read_metrics(learnt / "evaluations.jsonl")
    kept = json.loads((learnt / "summary.json").read_text())["kept_update"]
    assert [row["update"] for row in rows] == [0, 2, 4, 6, 8, 10]
    assert max(rows, key=lambda row: row["score"])["update"] == kept
    # A budget that only two of the trained policies keep: the better of them, or the SFT model, is saved.
    assert kept > 0
    budget = sorted(row["kl"] for row in rows)[2]
    planted(rewarded(even))
    tight = run_ppo("tight", **LEARNING, kl_budget=budget)
    assert read_metrics(tight / "evaluations.jsonl") == rows
    summary = json.loads((tight / "summary.json").read_text())
    allowed = [row for row in rows if row["kl"] <= budget]
    assert summary["kept_update"] == max(allowed, key=lambda row: row["score"])["update"]
    assert summary["kl"] <= budget


def test_without_a_better_policy_the_sft_model_is_kept(
    run_ppo: Callable[..., Path],
    planted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    trained: Path,
    load: Load,
) -> None:
    """Every policy scores alike, so the first is kept although the weights moved: it is the SFT model, bit for bit."""
    planted(rewarded(lambda tokens: torch.zeros(len(tokens.lengths_B))))
    folder = run_ppo(missing_eos_penalty=0.0, entropy_coef=1.0)
    assert read_metrics(folder / "evaluations.jsonl")[-1]["kl"] != 0
    assert json.loads((folder / "summary.json").read_text())["kept_update"] == 0
    assert not any(tensor.any() for name, tensor in adapter(folder).items() if "lora_B" in name)
    policy = dict(load(folder / "model").named_parameters())
    for name, tensor in load(trained / "sft" / "model").named_parameters():
        assert torch.equal(tensor, policy[name]), name


def test_the_saved_policy_is_the_one_that_was_judged(run_ppo: Callable[..., Path], trained: Path, load: Load) -> None:
    """The adapter, the merged model and the evaluation's numbers belong to one update."""
    folder = run_ppo(updates=3)
    peft = PeftModel.from_pretrained(load(trained / "sft" / "model"), str(folder / "adapter")).merge_and_unload()
    merged = dict(load(folder / "model").named_parameters())
    for name, tensor in peft.named_parameters():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)
    assert (folder / "value_head" / "head.safetensors").is_file()
