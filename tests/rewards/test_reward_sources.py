"""What PPO is paid by: sources, their normalisation, their sum, and what is refused before and during a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from conftest import LITTLE, TINY, RewardServer, make_tokenizer, tiny_stage
from plaudit.algo.rewards import weighted_scores
from plaudit.data.chat import ChatFormat
from plaudit.data.hashes import sha256
from plaudit.errors import RunStopped, UserError
from plaudit.models.tokens import pad_right
from plaudit.rewards import sources as sources_module
from plaudit.rewards.config import RewardSource, names_of, uses_trained
from plaudit.rewards.sources import RewardSources, score_items
from plaudit.run.metrics import read_metrics
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.recipe import load_recipe
from plaudit.train.run import Run

TINY_MODEL = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Plaudit = Callable[..., SimpleNamespace]

REWARDS = """\
def length(items):
    return {item["id"]: len(item["completion"]) for item in items}

def backwards(items):
    return [{"id": item["id"], "score": len(item["completion"])} for item in reversed(items)]

def letters(items):
    return {item["id"]: item["completion"].count("e") for item in items}

def alike(items):
    return {item["id"]: 7 for item in items}

CALLS = []

def fails_later(items):
    CALLS.append(len(items))
    if len(CALLS) > 3:
        raise ConnectionError("the judge went home")
    return length(items)
"""


@pytest.fixture
def rewards_file(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return f"{tmp_path / 'rewards.py'}"


# --- one source ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of trained, function, endpoint, model; this one has none"),
        ({"trained": True, "model": "m"}, "this one has trained, model"),
        ({"function": "a:b", "endpoint": "http://h/"}, "this one has function, endpoint"),
        ({"trained": True, "weight": 0}, "weight=0 would leave the source without effect"),
        ({"function": "a:b", "mean": 1.0}, "mean and std are given together"),
        ({"function": "a:b", "mean": 0.0, "std": 0.0}, "greater than 0"),
        ({"trained": True, "mean": 0.0, "std": 1.0}, "mean, std would do nothing for this trained source"),
        ({"function": "a:b", "timeout": 3.0}, "timeout would do nothing for this function source"),
        ({"model": "m", "auth_env": "X", "retries": 1}, "retries, auth_env would do nothing for this model source"),
        ({"endpoint": "localhost:80"}, "String should match pattern"),
        ({"endpoint": "ftp://host/x"}, "String should match pattern"),
        ({"endpoint": "http://me:secret@host/x"}, "a recipe holds no secret"),
    ],
)
def test_a_source_is_one_thing_and_has_no_dead_setting(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardSource(**values)


def test_the_run_s_own_reward_model_pays_when_nothing_else_is_said() -> None:
    function, trained = RewardSource(function="a:b"), RewardSource(trained=True)
    assert uses_trained([]) and uses_trained([function, trained]) and not uses_trained([function])


def test_sources_are_named_by_kind() -> None:
    sources = [RewardSource(function="a:b"), RewardSource(trained=True), RewardSource(function="a:c")]
    assert names_of(sources) == ["function", "trained", "function_2"]


def test_a_recipe_finds_functions_and_models_beside_itself(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Its resolved copy in the run folder must find them too."""
    home = tmp_path / "home"
    (home / "judge").mkdir(parents=True)
    (home / "rewards.py").write_text(REWARDS)
    told = [{"function": f} for f in ("rewards:length", "rewards.py:length", "json:dumps")]
    told += [{"model": m} for m in ("judge", "OWNER/NAME")]
    recipe = load_recipe(write_recipe(home, ppo={**TINY["ppo"], "rewards": told}))
    found = [source.function or source.model for source in recipe.ppo.rewards]
    beside = home.resolve()
    assert found == [f"{beside}/rewards.py:length"] * 2 + ["json:dumps", f"{beside}/judge", "OWNER/NAME"]


def test_a_wrong_source_is_shown_with_its_place(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, ppo={**TINY["ppo"], "rewards": [{"functoin": "a:b"}, {"function": "a:b", "weight": 0}]}
    )
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert "unknown key 'ppo.rewards.0.functoin'; did you mean 'ppo.rewards.0.function'?" in str(caught.value)
    assert "ppo.rewards.1: weight=0 would leave the source without effect" in str(caught.value)


# --- scores ---


def test_a_sum_of_normalised_scores_by_hand() -> None:
    scores = [torch.tensor([1.0, 0.5]), torch.tensor([-2.0, 4.0])]
    assert weighted_scores(scores, [2.0, -0.5]).tolist() == [3.0, -1.0]
    one = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_scores([one], [1.0]), one), "one source of weight 1 is not touched"


@pytest.fixture
def batch(tiny_run: Callable[..., Run], trained: Path, tmp_path: Path) -> tuple[Run, ChatFormat, Any, Any, list[str]]:
    """Four replies to three prompts, the last prompt twice."""
    run = tiny_run(tmp_path / "batch", trained)
    chat = run.chat(run.sft_model)
    prompts = [*run.split("train")[:3], run.split("train")[2]]
    texts = ["It is good.", "e", "", "better, eh?"]
    replies = [[*chat.spelling.ids(text), chat.eos_id] for text in texts]
    tokens = pad_right([chat.prompt_ids(p.messages) for p in prompts], replies, chat.pad_id, torch.device("cpu"))
    return run, chat, prompts, tokens, texts


def test_texts_are_those_of_the_replies_and_ids_are_unique(batch: Any) -> None:
    _, chat, prompts, tokens, texts = batch
    items = score_items(chat, prompts, tokens)
    assert [item.completion.text for item in items] == texts
    assert [item.prompt for item in items] == prompts
    assert len({item.id for item in items}) == 4


@pytest.mark.parametrize("function", ["length", "backwards"])
def test_two_sources_are_normalised_and_weighed_by_hand(function: str, batch: Any, rewards_file: str) -> None:
    """Whatever the order a function answers in."""
    run, chat, prompts, tokens, texts = batch
    sources = [
        RewardSource(function=f"{rewards_file}:{function}", mean=10.0, std=4.0, weight=2.0),
        RewardSource(function=f"{rewards_file}:letters", mean=1.0, std=0.5, weight=-1.0),
    ]
    scores = RewardSources(sources, run.machine).score(chat, prompts, tokens, "here", trained_BM=None, contract=None)
    lengths, letters = [len(text) for text in texts], [text.count("e") for text in texts]
    assert scores.raw_scores_BM.tolist() == [[float(a), float(b)] for a, b in zip(lengths, letters, strict=True)]
    wanted = [2 * (a - 10) / 4 - (b - 1) / 0.5 for a, b in zip(lengths, letters, strict=True)]
    assert scores.normalised_B.tolist() == pytest.approx(wanted)
    assert scores.metrics == pytest.approx(
        {
            "score_function": sum((a - 10) / 4 for a in lengths) / 4,
            "score_function_2": sum((b - 1) / 0.5 for b in letters) / 4,
        }
    )


def test_moments_are_measured_on_sft_replies_and_kept(
    batch: Any, rewards_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "NORMALISE_ON", 3)
    run, chat, prompts, tokens, texts = batch
    sources = [
        RewardSource(function=f"{rewards_file}:length"),
        RewardSource(function=f"{rewards_file}:letters", mean=0.0, std=1.0),
        RewardSource(trained=True),
    ]
    rewards = RewardSources(sources, run.machine)
    few = rewards.measured_on(prompts)
    assert few == list(prompts[:3])
    rewards.measure(chat, few, tokens.rows([0, 1, 2]))
    assert rewards.measured_on(prompts) == []
    rewards.save(tmp_path)
    lengths = [len(text) for text in texts[:3]]
    wanted = {"function": (np.mean(lengths), np.std(lengths)), "function_2": (0.0, 1.0)}
    assert rewards.moments == {name: pytest.approx(pair) for name, pair in wanted.items()}
    again = RewardSources(sources, run.machine)
    again.load(tmp_path)
    assert again.moments == rewards.moments
    with pytest.raises(UserError, match=r"rewards\.json: PPO was paid by .*; run PPO again with --from ppo"):
        RewardSources(sources[:2], run.machine).load(tmp_path)


def test_a_source_that_scores_all_alike_is_refused(batch: Any, rewards_file: str, tmp_path: Path) -> None:
    run, chat, prompts, tokens, _ = batch
    rewards = RewardSources([RewardSource(function=f"{rewards_file}:alike")], run.machine)
    with pytest.raises(UserError, match=r"rewards\.py:alike: it gives all 4 replies of the SFT model the score 7"):
        rewards.measure(chat, prompts, tokens)


@pytest.fixture
def judge(tiny_model: TINY_MODEL, tmp_path: Path) -> Path:
    """A reward model of another family with another tokenizer (no pad token of its own, another vocabulary)."""
    folder = tmp_path / "judge"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model("qwen2", seed=3), num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    make_tokenizer(pad=None).save_pretrained(folder)
    return folder


def test_a_model_of_another_family_scores_by_text(batch: Any, judge: Path) -> None:
    run, chat, prompts, tokens, texts = batch
    rewards = RewardSources([RewardSource(model=str(judge), mean=0.0, std=1.0)], run.machine)
    scores = rewards.score(chat, prompts, tokens, "here", trained_BM=None, contract=None)
    model = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    tokenizer = make_tokenizer(pad=None)
    for prompt, text, score in zip(prompts, texts, scores.normalised_B.tolist(), strict=True):
        turns = [*[m.as_json() for m in prompt.messages], {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            assert score == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-4)
    assert scores.metrics["text_changed_model"] == 0


# --- PPO ---


@pytest.fixture
def run_ppo(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> Callable[..., Path]:
    """run_ppo("name", rewards=[...]) -> the ppo folder of a new run on the trained SFT and reward models."""

    def call(name: str = "run", **changes: Any) -> Path:
        run = tiny_run(tmp_path / name, trained)
        ppo.train(*tiny_stage("ppo", run, **changes))
        return run.folder.path / "ppo"

    return call


def test_naming_the_own_reward_model_changes_nothing(run_ppo: Callable[..., Path], trained: Path) -> None:
    """Bit for bit: the sum of one source of weight 1."""
    folder = run_ppo(rewards=[{"trained": True}])
    for name in ("adapter/adapter_model.safetensors", "rollouts/00002.safetensors", "model/model.safetensors"):
        assert sha256(folder / name) == sha256(trained / "ppo" / name), name
    rows, usual = (read_metrics(home / "metrics.jsonl") for home in (folder, trained / "ppo"))
    assert [{k: v for k, v in row.items() if k != "score_trained"} for row in rows] == usual
    assert json.loads((folder / "rewards.json").read_text()) == {
        "sources": [{"name": "trained", "trained": True, "weight": 1.0}]
    }


@pytest.mark.row(28)
def test_row_28_rewards_change_the_policy(run_ppo: Callable[..., Path], rewards_file: str, trained: Path) -> None:
    """The weight, the stated moments and the source itself: none is a dead knob."""
    source = {"function": f"{rewards_file}:length", "mean": 15.0, "std": 10.0}
    changes = ({}, {"weight": -1.0}, {"mean": 25.0}, {"std": 20.0}, {"function": f"{rewards_file}:letters"})
    folders = [trained / "ppo"]
    for number, change in enumerate(changes):
        both = [{"trained": True}, {**source, **change}]
        folders.append(run_ppo(str(number), rewards=both, score_scale="none", score_clip=50.0))
    # The policy after one update, by its second rollout: the kept one may be the SFT model, whatever paid.
    second = [load_file(folder / "rollouts/00002.safetensors")["old_logprobs_BT"] for folder in folders]
    assert len({tuple(logprobs_BT.flatten().tolist()) for logprobs_BT in second}) == 6


def test_a_rollout_of_two_sources_by_hand(run_ppo: Callable[..., Path], rewards_file: str, trained: Path) -> None:
    """From the saved ids to the whitened score: raw, normalised by stored and stated moments, weighed, EOS, clipped."""
    told = [{"trained": True, "weight": 0.5}, {"function": f"{rewards_file}:length", "mean": 10.0, "std": 5.0}]
    folder = run_ppo(rewards=told, updates=1)
    contract = json.loads((trained / "reward/reward.json").read_text())
    judge = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    tokenizer = make_tokenizer()
    saved, config, paid = load_file(folder / "rollouts/00001.safetensors"), PPOConfig(**TINY["ppo"]), []
    for row in range(config.batch_size):
        start, end = int(saved["prompt_lengths_B"][row]), int(saved["lengths_B"][row])
        with torch.no_grad():
            raw = judge(input_ids=saved["tokens_BT"][row, :end][None]).logits.item()
        text = tokenizer.decode(saved["tokens_BT"][row, start:end], skip_special_tokens=True)
        length = len(text if saved["finished_B"][row] else text.rstrip("\ufffd"))  # half a character at the limit
        assert saved["raw_scores_BM"][row].tolist() == pytest.approx([raw, length], abs=1e-4)
        score = 0.5 * (raw - contract["mean"][0]) / contract["std"][0] + (length - 10) / 5
        score -= 0 if saved["finished_B"][row] else config.missing_eos_penalty
        paid.append(max(-config.score_clip, min(config.score_clip, score)))
    wanted = (np.array(paid) - np.mean(paid)) / np.std(paid)
    assert saved["scores_B"].tolist() == pytest.approx(wanted.tolist(), abs=1e-3)


def test_ppo_needs_no_reward_model_for_a_function(
    rewards_file: str, tmp_path: Path, tiny_run: Callable[..., Run], trained: Path
) -> None:
    run = tiny_run(tmp_path / "run", trained)
    shutil.rmtree(run.folder.path / "reward")
    shutil.rmtree(run.folder.path / "preferences")
    ppo.train(*tiny_stage("ppo", run, rewards=[{"function": f"{rewards_file}:length"}]))
    rows = read_metrics(run.folder.path / "ppo/metrics.jsonl")
    assert all(np.isfinite(row["score_function"]) for row in rows)
    saved = json.loads((run.folder.path / "ppo/rewards.json").read_text())["sources"][0]
    assert saved["std"] > 0
    # What is logged is the normalised raw score that was saved.
    raw = load_file(run.folder.path / "ppo/rollouts/00001.safetensors")["raw_scores_BM"][:, 0]
    assert rows[0]["score_function"] == pytest.approx(((raw - saved["mean"]) / saved["std"]).mean().item(), abs=1e-4)


def test_ppo_learns_from_a_function(run_ppo: Callable[..., Path], tmp_path: Path) -> None:
    """Paid by the share of the letter e, the policy comes to write more of it than it did."""
    (tmp_path / "e.py").write_text(
        "def share(items):\n"
        "    return {i['id']: i['completion'].count('e') / max(1, len(i['completion'])) for i in items}\n"
    )
    folder = run_ppo(
        rewards=[{"function": f"{tmp_path / 'e.py'}:share"}],
        updates=15,
        batch_size=24,
        minibatch_size=12,
        micro_batch_size=12,
        missing_eos_penalty=0.0,
        kl_coef=0.01,
        evaluate_every=15,
        kl_budget=100,
    )
    before, after = (row["score_function"] for row in read_metrics(folder / "evaluations.jsonl"))
    assert after > before + 0.5


def test_a_reward_that_fails_stops_the_run(run_ppo: Callable[..., Path], rewards_file: str) -> None:
    """Moments, first look, first update, then the judge goes home: no score of 0 takes its place."""
    with pytest.raises(RunStopped, match=r"rewards\.py:fails_later raised ConnectionError: the judge went home"):
        run_ppo(rewards=[{"function": f"{rewards_file}:fails_later"}], updates=3)


# --- the whole pipeline ---


def without_reward_model(write_recipe: WriteRecipe, home: Path, *sources: dict[str, Any]) -> Path:
    return write_recipe(home, **{**LITTLE, "ppo": {**LITTLE["ppo"], "rewards": list(sources)}})


def test_a_run_paid_by_an_endpoint_needs_no_preferences(
    write_recipe: WriteRecipe, tmp_path: Path, plaudit: Plaudit, reward_server: RewardServer, undrawn: None
) -> None:
    """sft, ppo, evaluate, report; the proxy of evaluation is the endpoint's score by the moments PPO used."""
    recipe = without_reward_model(write_recipe, tmp_path, {"endpoint": reward_server.url})
    done = plaudit("run", recipe)
    assert done.code == 0, done.err
    assert "Skipping preferences and reward: ppo.rewards has no `trained: true`" in done.out
    folder = tmp_path / "run"
    assert not (folder / "reward").exists() and not (folder / "preferences").exists()
    assert list(json.loads((folder / "manifest.json").read_text())["stages"]) == ["sft", "ppo", "evaluate", "report"]
    saved = json.loads((folder / "ppo/rewards.json").read_text())["sources"][0]
    rows = read_metrics(folder / "evaluate/replies.jsonl")
    for row in rows:
        for model in ("sft", "ppo"):
            wanted = (len(row[model]["text"]) - saved["mean"]) / saved["std"]
            assert row[model]["proxy"] == pytest.approx(wanted, abs=1e-4)
            assert row[model]["gold"] is None
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluate"]["proxy_sft"] == pytest.approx(np.mean([row["sft"]["proxy"] for row in rows]))
    assert "reward" not in summary and "preferences" not in summary
    page = (folder / "report.html").read_text()
    assert reward_server.url in page
    again = plaudit("run", recipe, "--resume")
    assert (again.code, "Resuming at report: sft, ppo, evaluate had ended" in again.out) == (0, True)


def test_a_stage_nothing_uses_is_refused_and_from_goes_past_it(
    write_recipe: WriteRecipe, tmp_path: Path, plaudit: Plaudit, rewards_file: str, undrawn: None
) -> None:
    source = {"function": f"{rewards_file}:length"}
    recipe = without_reward_model(write_recipe, tmp_path, source)
    assert plaudit("sft", recipe).code == 0
    refused = plaudit("reward", recipe)
    assert (refused.code, "stage reward: this recipe has no use for it" in refused.err) == (2, True)
    assert plaudit("run", recipe, "--from", "reward").code == 0
    assert (tmp_path / "run/report.html").is_file()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "module": ({"function": "no_such_thing:score"}, "ppo.rewards[0]: reward function 'no_such_thing:score'"),
    "name": ({"function": "rewards:lenght"}, "has no 'lenght'; it has"),
    "probe": ({"function": "rewards:broken"}, "broken: answered NoneType"),
    "endpoint": ({"endpoint": "http://127.0.0.1:9/score", "retries": 0}, "ConnectError"),
    "secret": ({"endpoint": "http://127.0.0.1:9/", "auth_env": "NOT_SET_HERE"}, "NOT_SET_HERE is not set"),
    "model": ({"model": "nowhere"}, "nowhere: neither a folder"),
    "head": ({"model": "headless"}, "tensor 'score.weight' is missing"),
}


@pytest.mark.parametrize(("source", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_reward_is_found_before_any_stage(
    source: dict[str, Any], message: str, write_recipe: WriteRecipe, tmp_path: Path, plaudit: Plaudit, judge: Path
) -> None:
    home = tmp_path / "desk"
    recipe = without_reward_model(write_recipe, home, source)
    (home / "rewards.py").write_text(REWARDS + "\ndef broken(items): ...\n")
    judge.rename(home / "headless")
    tensors = load_file(home / "headless/model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, home / "headless/model.safetensors", metadata={"format": "pt"})
    done = plaudit("run", recipe)
    assert (done.code, message in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not (home / "run").exists()


def test_stages_that_need_no_reward_do_not_ask_for_it(
    write_recipe: WriteRecipe, tmp_path: Path, plaudit: Plaudit
) -> None:
    recipe = without_reward_model(write_recipe, tmp_path, {"endpoint": "http://127.0.0.1:9/score", "retries": 0})
    assert plaudit("sft", recipe).code == 0
    assert plaudit("ppo", recipe).code == 2
