"""Exports in the ecosystem's own formats, so that no Plaudit is needed to use what it trained."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)

from plaudit.data.baked import with_system
from plaudit.data.chat import ChatFormat
from plaudit.models.full import FullPolicy, FullRoles
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, save_model
from plaudit.models.quantised import QuantisedLinear
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding


def export_policy(
    roles: Roles | FullRoles | FullPolicy,
    chat: ChatFormat,
    base: str,
    folder: Path,
    dtype: torch.dtype,
    rounding: Rounding,
    temperature: float = 1.0,
) -> None:
    """The policy as a plain causal language model with its tokenizer; see `merged_in_place`. Whoever generates by its
    own settings samples at `temperature`, as PPO did."""
    model = merged_in_place(roles, base, dtype, rounding)
    _sample_as_trained(model, chat, temperature)
    save_model(model, exported_tokenizer(chat), folder)


@torch.no_grad()
def merged_in_place(
    roles: Roles | FullRoles | FullPolicy, source: str, dtype: torch.dtype, rounding: Rounding
) -> PreTrainedModel:
    """The policy as a plain model, `rounding` as in `Roles.merged_weights`. Its weights are those that `roles` stand
    on, which are spent: no second model is there. Of a quantised base it is one on the CPU, read from `source`."""
    model, weights = roles.bases[0], roles.merged_weights("policy", rounding)
    if any(isinstance(module, QuantisedLinear) for module in model.modules()):
        model = load_model(source, dtype, torch.device("cpu"))
        merge_into(model, weights)
        return model
    if not isinstance(roles, Roles):
        for name, weight in weights:
            model.get_parameter(name).data = weight
        return model
    for name, weight in weights:
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, LoraLayer)
        layer.get_base_layer().weight.copy_(weight)
    plain: PreTrainedModel = roles.peft.unload()
    return plain


def exported_tokenizer(chat: ChatFormat) -> Any:
    """A copy of the tokenizer that pads, and whose template opens conversations, as the run did. It does not pad where
    the run did so with a part of ordinary tokens: named as a special token it would be found in texts."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    if chat.pad_id in chat.control:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chat.pad_id)
    elif tokenizer.pad_token_id != chat.pad_id:
        tokenizer.pad_token = None
    tokenizer.chat_template = with_system(tokenizer.chat_template, chat.system)
    return tokenizer


def _sample_as_trained(model: PreTrainedModel, chat: ChatFormat, temperature: float) -> None:
    """The law of the training as the model's own generation settings: what the base's say of top-k, top-p or
    penalties, and what libraries do where nothing is said, is another law. Of the base's a limit of length stays."""
    ends = [chat.eos_id, *sorted(chat.ends - {chat.eos_id})]
    settings = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": chat.pad_id,
        "bos_token_id": chat.tokenizer.bos_token_id,
    }
    limit = None if model.generation_config is None else model.generation_config.max_new_tokens
    model.generation_config = GenerationConfig(**settings, **({} if limit is None else {"max_new_tokens": limit}))
    model.config.get_text_config().eos_token_id = settings["eos_token_id"]


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
