"""Gradient checkpointing: a layer keeps its input alone, and is computed again in the backward pass (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).

transformers does it in train mode only, which would switch dropout on, and a layer that is computed again would take
the adapter that is active by then: with a critic of its own that is another one than the policy's pass had.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from plaudit.errors import UserError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of `model` that can be computed again; UserError where it has none."""
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise UserError(
            f"gradient_checkpointing=true: {type(model).__name__} has no layers that transformers can compute again; "
            "set it to false and lower the micro-batch"
        )
    return found


def recompute_activations(model: nn.Module) -> None:
    """Compute the layers of `model`, adapters included, again in the backward pass. The gradient is the same."""
    for layer in layers_of(model):
        layer.forward = _recomputed(layer)


def _recomputed(layer: nn.Module) -> Callable[..., Any]:
    own, adapted = layer.forward, [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        active = [(module, module._disable_adapters, module._active_adapter) for module in adapted]

        def pass_as_now(*args: Any, **kwargs: Any) -> Any:
            for module, disabled, names in active:
                module._disable_adapters, module._active_adapter = disabled, names
            return own(*args, **kwargs)

        # Dropout is off everywhere, so there is no state of a generator to keep.
        return checkpoint(pass_as_now, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward
