"""The reward model in the ecosystem's own format, so that no Plaudit is needed to score with it."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from plaudit.data.chat import ChatFormat
from plaudit.data.files import write_json
from plaudit.models.export import exported_tokenizer
from plaudit.models.full import FullReward
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import save_model
from plaudit.models.roles import Roles, reward_adapter
from plaudit.models.rounding import Rounding
from plaudit.rewards.contract import RewardContract
from plaudit.rewards.saved import file_hashes, golden_scores, load_merged, weights_and_rules


def export_classifier(
    model: Roles | FullReward,
    chat: ChatFormat,
    base: str,
    folder: Path,
    dtype: torch.dtype,
    member: int = 0,
    rounding: Rounding | None = None,
) -> None:
    """A member of the reward model, merged, as `AutoModelForSequenceClassification` with one label.

    It gives raw scores: transformers reads them at the rightmost token that is not `pad_token_id` and adds no bias.
    So the pad id is one that cannot end a reply (never the end-of-turn token). `rounding` as in `Roles.merged_weights`.
    """
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
    merge_into(classifier, model.merged_weights(reward_adapter(member), rounding))
    with torch.no_grad():
        classifier.score.weight.copy_(model.get_parameter(f"score_heads.{member}.weight")[None].to(dtype))
    classifier.config.pad_token_id = chat.pad_id
    # A server that knows this key (vLLM) then gives the score as it is, and not its sigmoid.
    classifier.config.problem_type = "regression"
    tokenizer = exported_tokenizer(chat)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chat.pad_id)
    save_model(classifier, tokenizer, folder)


def sign_classifier(folder: Path, chat: ChatFormat, contract: RewardContract, dtype: torch.dtype) -> float:
    """Put the rules of the scores beside an exported classifier; `contract` is that of one member.

    The mean and std that normalise its raw scores go into its config as `plaudit_score_mean` and
    `plaudit_score_std`, and a contract of its own (file hashes, golden scores) into `reward.json`, so that Plaudit
    loads it as it loads its own folders. Returns the largest distance of its golden scores from the contract's, in
    standard deviations: what merging and rounding cost.
    """
    assert len(contract.mean) == 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"plaudit_score_mean": contract.mean[0], "plaudit_score_std": contract.std[0]}
    write_json(folder / "config.json", config)
    golden = golden_scores(load_merged(folder, dtype, torch.device("cpu")), chat)
    files = file_hashes(folder, weights_and_rules(folder))
    own = replace(contract, model=".", golden=golden, dtype=str(dtype).removeprefix("torch."), files=files, base={})
    own.save(folder)
    return max(abs(a[0] - b[0]) for a, b in zip(golden, contract.golden, strict=True)) / contract.std[0]
