"""Merged weights into a plain model."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel


def merge_into(model: PreTrainedModel, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy named weights into a plain model (the engine's copy, or one about to be exported)."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights:
            parameters[name].copy_(weight)
