"""Exports in the ecosystem's own formats, so that no Plaudit is needed to use what it trained."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from plaudit.data.chat import ChatFormat
from plaudit.models.heads import RewardContract
from plaudit.models.load import load_model, save_model
from plaudit.models.roles import Roles, merge_into, reward_adapter


def export_policy(roles: Roles, chat: ChatFormat, base: str, folder: Path, dtype: torch.dtype) -> None:
    """The policy merged into its base, as a plain causal language model with its tokenizer."""
    model = load_model(base, dtype, torch.device("cpu"))
    merge_into(model, roles.merged_weights("policy"))
    save_model(model, chat.tokenizer, folder)


def export_reward_model(
    roles: Roles,
    chat: ChatFormat,
    base: str,
    contract: RewardContract,
    folder: Path,
    dtype: torch.dtype,
    member: int = 0,
) -> None:
    """A member of the reward model merged into its base, as `AutoModelForSequenceClassification` with one label.

    It gives raw scores: transformers reads them at the rightmost token that is not `pad_token_id` and adds no bias.
    So the pad id is one that cannot end a reply (never the end-of-turn token), and the mean and std that normalise
    the scores are kept in the config as `plaudit_score_mean` and `plaudit_score_std`.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=dtype, attn_implementation="sdpa"
    )
    merge_into(model, roles.merged_weights(reward_adapter(member)))
    with torch.no_grad():
        model.score.weight.copy_(roles.get_parameter(f"score_heads.{member}.weight")[None].to(dtype))
    model.config.pad_token_id = chat.pad_id
    model.config.plaudit_score_mean = contract.mean[member]
    model.config.plaudit_score_std = contract.std[member]
    tokenizer = chat.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chat.pad_id)
    save_model(model, tokenizer, folder)
