"""Exports in the ecosystem's own formats, so that no Plaudit is needed to use what it trained."""

import copy
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from plaudit.data.chat import ChatFormat
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, save_model
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding


def export_policy(
    roles: Roles, chat: ChatFormat, base: str, folder: Path, dtype: torch.dtype, rounding: Rounding | None = None
) -> None:
    """The policy merged into its base, as a plain causal language model with its tokenizer; `rounding` as in
    `Roles.merged_weights`."""
    model = load_model(base, dtype, torch.device("cpu"))
    merge_into(model, roles.merged_weights("policy", rounding))
    save_model(model, chat.tokenizer, folder)


def classifier_refused(base: PreTrainedModel) -> str | None:
    """Why transformers has no sequence classifier that could hold a reward model on this base, with or without
    adapters; None where it has."""
    if type(base.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return f"transformers has no sequence classifier for {base.config.model_type!r}"
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(copy.deepcopy(base.config))
    if not hasattr(classifier, "score"):
        return f"the sequence classifier of {base.config.model_type!r} has more than one linear layer as its head"
    known = dict(classifier.named_parameters())
    adapted = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    other = [name for name in adapted if f"{name}.weight" not in known]
    return f"the sequence classifier of {base.config.model_type!r} has no {other[0]}" if other else None
