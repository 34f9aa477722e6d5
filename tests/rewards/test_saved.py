"""The saved reward model: it scores everywhere as it did when it was trained, or it is refused with the reason.

Rows 21 and 26: the rule of the texts is stored and checked, and no head, template or weight is lost unnoticed.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import CPU, tiny_stage
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rankings
from plaudit.errors import UserError
from plaudit.models.tokens import Tokens, pad_right
from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import (
    FLOAT32_BOUND,
    PROBES,
    RewardModel,
    file_hashes,
    load_reward_model,
    template_hash,
)
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.stages.reward import loop as reward
from plaudit.train.run import Run


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> RewardModel:
    return load_reward_model(folder, dtype, CPU)


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Path:
    """A copy of the reward folder of a run, the SFT model beside it."""
    for stage in ("sft", "reward"):
        shutil.copytree(trained / stage, tmp_path / "run" / stage)
    return tmp_path / "run" / "reward"


def texts(trained: Path, chat: ChatFormat) -> Tokens:
    """Every reply of the test prompts in ids, as the run's own format has them."""
    rankings = [r for r in read_rankings(trained / "preferences/rankings.jsonl") if r.prompt.split == "test"]
    rows = [(chat.prompt_ids(r.prompt.messages), chat.reply_ids(reply)) for r in rankings for reply in r.replies]
    return pad_right([p for p, _ in rows], [r for _, r in rows], chat.pad_id, CPU)


@torch.no_grad()
def by_transformers(folder: Path, tokens: Tokens) -> Tensor:
    """Raw scores by plain transformers, a right-padded batch under the tokenizer's own pad token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [row[:length] for row, length in zip(tokens.tokens_BT.tolist(), tokens.lengths_B.tolist(), strict=True)]
    return model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt")).logits[:, 0].float()


def test_save_load_merge_export_load(trained: Path) -> None:
    """Adapters loaded, the merged export loaded by Plaudit, and by plain transformers: equal scores, float32 1e-5."""
    adapters, merged = loaded(trained / "reward"), loaded(trained / "reward" / "model")
    tokens = texts(trained, adapters.chat)
    assert torch.equal(texts(trained, merged.chat).tokens_BT, tokens.tokens_BT)
    expected = adapters.raw(tokens)[:, 0].detach()
    assert expected.std() > 0.01
    torch.testing.assert_close(merged.raw(tokens)[:, 0].detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_transformers(trained / "reward/model", tokens), expected, rtol=1e-5, atol=1e-5)
    contract = adapters.contract
    torch.testing.assert_close(contract.normalised(expected[:, None]), (expected - contract.mean[0]) / contract.std[0])
    assert merged.contract.temperature == pytest.approx(contract.temperature, rel=1e-4)


def test_save_load_merge_export_load_in_bfloat16(tmp_path: Path, tiny_run: Callable[..., Run], trained: Path) -> None:
    """bf16: loading gives the very scores; the merge rounds once more, and what that costs is in the summary."""
    run = tiny_run(tmp_path, trained, "bfloat16")
    summary = reward.train(*tiny_stage("reward", run))
    folder = run.folder.path / "reward"
    adapters = loaded(folder, torch.bfloat16)
    tokens = texts(trained, adapters.chat)
    expected = adapters.raw(tokens)[:, 0].detach()
    merged = loaded(folder / "model", torch.bfloat16).raw(tokens)[:, 0].detach()
    torch.testing.assert_close(by_transformers(folder / "model", tokens), merged, rtol=1e-2, atol=1e-2)
    std = adapters.contract.std[0]
    assert summary["export_gap"] < 1
    assert (merged - expected).abs().mean() / std < 0.5


def test_the_contract_of_a_run(trained: Path, chat_of: Callable[..., ChatFormat]) -> None:
    contract = RewardContract.load(trained / "reward")
    chat = chat_of(trained / "sft" / "model")
    assert (contract.eos_id, contract.pad_id, contract.system) == (chat.eos_id, chat.pad_id, None)
    assert contract.template == chat.tokenizer.chat_template
    assert contract.template_sha256 == template_hash(chat)
    assert contract.rankings_sha256 == file_hashes(trained / "preferences", ["rankings.jsonl"])["rankings.jsonl"]
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= contract.base.keys()
    assert contract.files.keys() == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "head.safetensors",
    }
    # The golden scores are those of the probes, one by one, by plain transformers.
    model = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    assert len(contract.golden) == len(PROBES) >= 4
    for (messages, reply), golden in zip(PROBES, contract.golden, strict=True):
        ids = torch.tensor([[*chat.prompt_ids(messages), *chat.reply_ids(reply)]])
        with torch.no_grad():
            assert golden == pytest.approx([model(input_ids=ids).logits.item()], abs=1e-4)


def test_the_probes_are_of_every_kind() -> None:
    """Not ASCII, several turns, cut by the length limit, empty."""
    assert any(not reply.text.isascii() for _, reply in PROBES)
    assert any(len(messages) > 1 for messages, _ in PROBES)
    assert any(not reply.finished for _, reply in PROBES)
    assert any(reply.text == "" for _, reply in PROBES)


WEIGHTS = (
    "reward/adapter/adapter_model.safetensors",
    "reward/head.safetensors",
    "sft/model/model.safetensors",
    "reward/adapter/adapter_config.json",
    "sft/model/config.json",
    "sft/model/tokenizer.json",
)


@pytest.mark.row(26)
@pytest.mark.parametrize("name", WEIGHTS)
def test_row_26_one_byte_of_a_file_is_refused(name: str, saved: Path) -> None:
    path = saved.parent / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name}.*(has not the bytes|damaged)"):
        loaded(saved)


@pytest.mark.row(26)
@pytest.mark.parametrize("name", WEIGHTS)
def test_row_26_a_lost_file_is_refused(name: str, saved: Path) -> None:
    (saved.parent / name).unlink()
    with pytest.raises(UserError, match=rf"{Path(name).name}.* is missing|no model is here|no tokenizer"):
        loaded(saved)


@pytest.mark.row(21)
def test_row_21_another_template_is_refused(saved: Path) -> None:
    """Deleted, a default one would take its place; changed, texts would become other tokens."""
    template = saved.parent / "sft/model/chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("You are tiny.", "You are huge."))
    with pytest.raises(UserError, match=r"chat_template\.jinja.* has not the bytes"):
        loaded(saved)
    resigned(saved)
    with pytest.raises(UserError, match="was trained with template_sha256="):
        loaded(saved)
    template.unlink()
    with pytest.raises(UserError, match="was trained with template_sha256="):
        loaded(saved)


@pytest.mark.row(26)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_row_26_a_byte_of_the_export_is_refused(name: str, saved: Path) -> None:
    path = saved / "model" / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError):
        loaded(saved / "model")


@pytest.mark.row(26)
def test_row_26_the_contract_itself(saved: Path) -> None:
    path = saved / "reward.json"
    text = path.read_text()
    path.write_text(text.replace('"mean"', '"mein"', 1))
    with pytest.raises(UserError, match="not of this version"):
        loaded(saved)
    values = json.loads(text)
    path.write_text(json.dumps({**values, "mean": [values["mean"][0] + 0.5]}))
    with pytest.raises(UserError, match="not those that were saved"):
        loaded(saved)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="not JSON"):
        loaded(saved)
    path.unlink()
    with pytest.raises(UserError, match="normalisation is unknown"):
        loaded(saved)


def resigned(folder: Path) -> None:
    """Checksums that agree with the files again: only the golden scores can tell."""
    contract = RewardContract.load(folder)
    names = list(contract.files)
    replace(contract, files=file_hashes(folder, names), base={}).save(folder)


@pytest.mark.row(26)
@pytest.mark.parametrize(("scale", "refused"), [(0.0, False), (1.0, True)])
def test_row_26_the_golden_scores_stand_by_themselves(scale: float, refused: bool, saved: Path) -> None:
    """A head that moves a probe's score by a little more than 1e-4, under checksums that agree."""
    tensors = load_file(saved / "head.safetensors")
    model, (messages, reply) = loaded(saved), PROBES[0]
    chat = model.chat
    tokens = pad_right([chat.prompt_ids(messages)], [chat.reply_ids(reply)], chat.pad_id, CPU)
    per_unit = model.raw(tokens).item()
    # Scaling the head scales every score: by this factor the first probe moves by twice the bound.
    save_file({"weight": tensors["weight"] * (1 + scale * 2 * FLOAT32_BOUND / per_unit)}, saved / "head.safetensors")
    resigned(saved)
    if refused:
        with pytest.raises(UserError, match=r"when it was saved.*allowed: 1.0e-04.*not the model that was trained"):
            loaded(saved)
    else:
        loaded(saved)


@pytest.mark.row(26)
def test_row_26_a_head_that_is_no_number_is_refused(saved: Path) -> None:
    tensors = load_file(saved / "head.safetensors")
    save_file({"weight": torch.full_like(tensors["weight"], torch.nan)}, saved / "head.safetensors")
    resigned(saved)
    with pytest.raises(UserError, match="not the model that was trained"):
        loaded(saved)


@pytest.mark.row(26)
def test_row_26_the_adapter_of_another_seed_is_refused(saved: Path) -> None:
    path = saved / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    resigned(saved)
    with pytest.raises(UserError, match="not the model that was trained"):
        loaded(saved)


def test_a_place_without_a_model(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.json is missing"):
        loaded(tmp_path)
    shutil.rmtree(saved.parent / "sft")
    with pytest.raises(UserError, match="no model is here"):
        loaded(saved)


ITEMS = [
    ScoreItem(f"p{i}#0", Prompt(f"p{i}", (Message("user", f"Question {i}?"),), "domain", "train"), Completion("x" * i))
    for i in range(5)
]


@pytest.mark.parametrize("folder", ["reward", "reward/model"], ids=["adapter", "merged"])
def test_a_saved_reward_model_scores_texts_as_transformers_does(folder: str, trained: Path) -> None:
    """Prompt, reply, end-of-turn token; normalised by its own mean and std; a cut reply has no end."""
    path = trained / folder
    scorer = load_reward_model(path, torch.float32, CPU, 2)
    model = AutoModelForSequenceClassification.from_pretrained(trained / "reward/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "reward/model")
    items, wanted = [*ITEMS, replace(ITEMS[3], id="cut", completion=Completion("xxx", finished=False))], {}
    for item in items:
        turns = [message.as_json() for message in item.prompt.messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text + item.completion.text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if item.completion.finished else []
        with torch.no_grad():
            raw = model(torch.tensor([ids])).logits.item()
        wanted[item.id] = (raw - model.config.plaudit_score_mean) / model.config.plaudit_score_std
    assert scorer.score(items) == pytest.approx(wanted, abs=1e-3)
    assert wanted["cut"] != pytest.approx(wanted["p3#0"], abs=1e-3)


def test_a_saved_reward_model_that_was_damaged_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "reward/model", tmp_path / "model")
    with (tmp_path / "model/model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors.*has not the bytes that it was saved with"):
        load_reward_model(tmp_path / "model", torch.float32, CPU, 2)
