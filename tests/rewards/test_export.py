"""Exported models work without Plaudit: plain transformers gives the numbers that the roles give."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from conftest import ARCHITECTURES, CPU, EOS, PAD
from plaudit.data.chat import ChatFormat
from plaudit.models.export import export_policy
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Completion, Message
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.export import export_classifier, sign_classifier
from plaudit.rewards.saved import golden_scores

Load = Callable[[Path], PreTrainedModel]
TEXTS = (
    ("Hello.", "It is great."),
    ("What is the price of snow?", "I can't say, but I hope that you have a lovely day in it."),
    ("Tea?", ""),
    ("Tell me about the sea.", "Wide"),
)


def sequences(chat: ChatFormat) -> Tokens:
    """Ragged replies; each ends in the end-of-turn token but the last, which the length limit cut."""
    prompts = [chat.prompt_ids((Message("user", text),)) for text, _ in TEXTS]
    replies = [chat.reply_ids(Completion(reply, reply != "Wide")) for _, reply in TEXTS]
    return pad_right(prompts, replies, chat.pad_id, CPU)


@pytest.mark.parametrize("pad", [PAD, EOS, None], ids=["own pad", "pad is eos", "no pad"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reward_model_scores_in_plain_transformers(
    architecture: str,
    pad: str | None,
    tiny_model: Callable[..., Path],
    load: Load,
    chat_of: Callable[..., ChatFormat],
    stirred: Callable[..., Roles],
    tmp_path: Path,
) -> None:
    """A right-padded batch of replies of several lengths: the score is read at the last real token, EOS included."""
    base = tiny_model(architecture, pad=pad)
    chat, roles = chat_of(base), stirred(load(base), trained="reward")
    tokens = sequences(chat)
    assert tokens.tokens_BT[0, tokens.lengths_B[0] - 1] == chat.eos_id
    expected_B = roles(tokens, "reward", frozenset({"scores"})).scores_BM[:, 0].detach()
    assert expected_B.std() > 0.1

    contract = RewardContract((0.25,), (3.0,), chat.eos_id, None, "hash", golden=golden_scores(roles, chat))
    export_classifier(roles, chat, str(base), tmp_path / "reward", torch.float32, Rounding(0, "test"))
    assert sign_classifier(tmp_path / "reward", chat, contract, torch.float32) < 1e-5

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert set(load_file(tmp_path / "reward" / "model.safetensors")) >= {"score.weight"}, (
        "where vLLM looks for the head"
    )
    assert not [path for path in (tmp_path / "reward").glob("*.safetensors") if path.name != "model.safetensors"]
    assert (model.config.plaudit_score_mean, model.config.plaudit_score_std) == (0.25, 3.0)
    assert model.config.pad_token_id == tokenizer.pad_token_id == chat.pad_id != chat.eos_id
    assert tokenizer.eos_token_id == chat.eos_id
    rows = [row[:length] for row, length in zip(tokens.tokens_BT.tolist(), tokens.lengths_B.tolist(), strict=True)]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert torch.equal(batch["input_ids"], tokens.tokens_BT)
    with torch.no_grad():
        with_mask = model(**batch).logits
        assert with_mask.shape == (4, 1)
        torch.testing.assert_close(with_mask[:, 0], expected_B, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, with_mask, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["own pad", "pad is eos"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_is_a_plain_causal_language_model(
    architecture: str,
    pad: str,
    tiny_model: Callable[..., Path],
    load: Load,
    chat_of: Callable[..., ChatFormat],
    stirred: Callable[..., Roles],
    tmp_path: Path,
) -> None:
    base = tiny_model(architecture, pad=pad)
    chat, roles = chat_of(base), stirred(load(base), trained="policy")
    tokens = sequences(chat)
    expected_BT = roles(tokens, "policy", frozenset({"logprobs"})).logprobs_BT.detach()
    export_policy(roles, chat, str(base), tmp_path / "policy", torch.float32, Rounding(0, "test"))

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.chat_template == chat.tokenizer.chat_template
    with torch.no_grad():
        q_BTV = torch.log_softmax(model(input_ids=tokens.tokens_BT).logits, dim=-1)
        found_BT = q_BTV.gather(2, tokens.tokens_BT.roll(-1, dims=1)[..., None]).squeeze(2)
        torch.testing.assert_close(found_BT[tokens.mask_BT], expected_BT[tokens.mask_BT], rtol=1e-5, atol=1e-5)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Tea?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert prompt["input_ids"][0].tolist() == chat.prompt_ids((Message("user", "Tea?"),))
        out = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]


def test_the_export_is_not_the_base(
    tiny_model: Callable[..., Path],
    load: Load,
    chat_of: Callable[..., ChatFormat],
    stirred: Callable[..., Roles],
    tmp_path: Path,
) -> None:
    base = tiny_model()
    export_policy(
        stirred(load(base), trained="policy"),
        chat_of(base),
        str(base),
        tmp_path / "policy",
        torch.float32,
        Rounding(0, "test"),
    )
    before, after = dict(load(base).named_parameters()), dict(load(tmp_path / "policy").named_parameters())
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("embed" in name or "norm" in name for name in changed)
