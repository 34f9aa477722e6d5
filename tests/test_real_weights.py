"""The pipeline on the real model of the demo, shortened; needs the weights (cached, or reachable with pip) and minutes.

make test-long
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rankings
from plaudit.models.heads import load_head
from plaudit.models.load import load_model, load_tokenizer
from plaudit.models.roles import Roles
from plaudit.models.tokens import pad_right
from plaudit.rewards.contract import RewardContract
from plaudit.run.metrics import read_metrics
from plaudit.stages import pipeline
from plaudit.stages.recipe import load_recipe

pytestmark = pytest.mark.slow

RECIPE = Path(pipeline.__file__).parents[1] / "recipes" / "demo.yaml"
SHORT = (
    "sft.epochs=1",
    "preferences.train_prompts=32",
    "reward.epochs=1",
    "ppo.updates=3",
    "ppo.evaluate_every=3",
    "evaluate.replies=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "run"
    return pipeline.run_pipeline(load_recipe(RECIPE, (*SHORT, f"folder={folder}")))


def test_the_short_run_passes_its_guards_and_learns_the_form(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["sft"]["eval_loss_after"] < summary["sft"]["eval_loss_before"] - 0.5
    assert summary["evaluate"]["eos_sft"] > 0.8
    first = read_metrics(finished / "ppo" / "metrics.jsonl")[0]
    assert first["kl"] == 0.0
    assert first["sampler_gap_mean"] < 0.15


def test_the_exported_policy_generates_with_plain_transformers(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "ppo" / "model")
    model = AutoModelForCausalLM.from_pretrained(finished / "ppo" / "model", dtype=torch.float32)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Write one sentence about autumn."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    assert out[0, -1] == tokenizer.eos_token_id, "a greedy reply ends"
    assert len(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split()) >= 4


def test_the_exported_reward_model_gives_the_pipelines_raw_scores(finished: Path) -> None:
    """bf16: the merged export rounds once more than adapter on base; both must be far closer than a score's spread."""
    chat = ChatFormat(load_tokenizer(str(finished / "sft" / "model")), "You are a helpful assistant.")
    rankings = [r for r in read_rankings(finished / "preferences" / "rankings.jsonl") if r.prompt.split == "test"][:8]
    rows = [(chat.prompt_ids(r.prompt.messages), chat.reply_ids(reply)) for r in rankings for reply in r.replies]
    tokens = pad_right([p for p, _ in rows], [r for _, r in rows], chat.pad_id, torch.device("cpu"))
    base = load_model(str(finished / "sft" / "model"), torch.bfloat16, torch.device("cpu"))
    roles = Roles(base, reward=[finished / "reward" / "adapter"])
    load_head(roles.score_heads[0], finished / "reward")
    with torch.no_grad():
        ours = roles(tokens, "reward", frozenset({"scores"})).scores_BM[:, 0]
        plain = AutoModelForSequenceClassification.from_pretrained(finished / "reward" / "model", dtype=torch.bfloat16)
        theirs = plain(tokens.tokens_BT).logits.squeeze(1).float()
    std = RewardContract.load(finished / "reward").std[0]
    assert np.abs((ours - theirs).numpy()).mean() < 0.1 * std
    assert np.corrcoef(ours.numpy(), theirs.numpy())[0, 1] > 0.99
