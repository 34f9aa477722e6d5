"""Which layers of a model get an adapter, and how PEFT puts it there.

`all-linear` is every plain linear layer that the forward pass calls, but not:

- the LM head;
- a router, which chooses experts: a change of its scores is a jump, and old and new log-probabilities would come from
  other experts;
- experts whose weights lie in one tensor (transformers 5 holds all of them so). PEFT would adapt that tensor by its own
  way, which the merge does not know;
- in a model with such experts, layers that PEFT takes for experts by their names (shared experts and dense MLPs);
- layers whose weights a model uses without calling them, where an adapter has no effect (a state-space layer's), those
  that text never passes (a vision tower), and those that no gradient reaches (an indexer, which chooses what is seen);
- layers that share one weight (Zamba's attention, at several depths): PEFT gives each an adapter of its own, and their
  sum has no place in one weight;
- layers whose saved adapter PEFT would put elsewhere when it reads it.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plaudit import rng
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import hidden_states
from plaudit.models.kernels.probe import DECLINES
from plaudit.models.quantised import QuantisedLinear
from plaudit.models.sources.adapters import PEFT

ALL = "all-linear"
LINEAR = (nn.Linear, Conv1D, QuantisedLinear)
STATE_SPACE = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Types whose fused kernels read `out_proj` themselves; PEFT refuses an adapter there."""


@dataclass(frozen=True)
class Adapted:
    """The layers that get an adapter (full names, or `all-linear` where nothing is left out), and what is left out."""

    targets: str | list[str]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = sorted({name.rpartition(".")[2] for name in self.targets}) if isinstance(self.targets, list) else [ALL]
        return f"{', '.join(kinds)}; without {', '.join(self.left_out)}" if self.left_out else ", ".join(kinds)


def adapted(model: PreTrainedModel, asked: str | list[str]) -> Adapted:
    """What `lora.target_modules` means for a plain model; UserError where it names what is not there."""
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    if isinstance(asked, list):
        return Adapted(_named(asked, linear))
    if asked.lower() != ALL:
        return Adapted(asked)  # a regular expression: PEFT's to read
    head, reached, one = model.get_output_embeddings(), called(model, linear), sharing(linear)
    fused, kind = _fused_experts(model), model.config.get_text_config().model_type
    chosen, reasons = list[str](), dict[str, str]()
    for name, module in linear.items():
        leaf = name.rpartition(".")[2]
        if module is head:
            continue
        if routes(name, model):
            reasons["the router (frozen)"] = name
        elif fused and _mistaken(model, leaf):
            reasons["dense MLPs and shared experts (PEFT takes their names for experts)"] = name
        elif name in one:
            reasons["layers that share one weight"] = name
        elif kind in STATE_SPACE and leaf == "out_proj":
            reasons["out_proj (read by state-space kernels)"] = name
        elif name not in reached:
            reasons["layers that text does not pass through, or no gradient reaches"] = name
        else:
            chosen.append(name)
    if lost := _unread(model, chosen):
        reasons["layers whose adapters PEFT would not read again"] = min(lost)
        chosen = [name for name in chosen if name not in lost]
    if fused:
        reasons.pop("the router (frozen)", None)
        reasons = {"the experts and their router (frozen)": fused, **reasons}
    if not chosen:
        raise UserError(f"lora.target_modules={asked}: {kind} has no plain linear layer that an adapter could stand on")
    return Adapted(chosen if reasons else asked, tuple(reasons))


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """Whether it computes W·x + b and no more: a class of a model's own (Falcon's) is asked."""
    if type(module) in LINEAR:
        return True
    if not isinstance(module, nn.Linear) or module.weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    x_ND = torch.ones(2, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        expected, found = nn.functional.linear(x_ND, module.weight, module.bias), module(x_ND)  # a router gives several
    except DECLINES:
        return False  # it takes its input in groups (DeepSeek V4)
    return isinstance(found, Tensor) and torch.allclose(found, expected, rtol=2e-2, atol=1e-3)


def _named(asked: list[str], linear: dict[str, nn.Module]) -> list[str]:
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            near = difflib.get_close_matches(target, leaves, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"lora.target_modules: this model has no linear layer {target!r}; {hint}it has {', '.join(leaves)}"
            )
    return asked


def _fused_experts(model: PreTrainedModel) -> str:
    """The name of a tensor that holds the weights of several experts, in three dimensions or in two (DBRX's); empty
    where there is none."""
    layers = {name for name, module in model.named_modules() if isinstance(module, LINEAR)}
    for name, parameter in model.named_parameters():
        place, _, _ = name.rpartition(".")
        if "expert" in name and (parameter.dim() == 3 or (parameter.dim() == 2 and place not in layers)):
            return name
    return ""


def _mistaken(model: PreTrainedModel, leaf: str) -> bool:
    """Whether PEFT takes a layer of this name for an expert's, as files of transformers 4 called them."""
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it wants a second name, which it knows
        return True
    return config.target_modules != {leaf}


def _unread(model: PreTrainedModel, names: list[str]) -> set[str]:
    """The layers whose adapters PEFT takes for another layer's when it reads a file of them: it renames what files of
    transformers 4 had, and finds that in names of today."""
    keys = {f"{PEFT}{name}.lora_A.weight": name for name in names}
    saved = dict.fromkeys(keys, torch.zeros(1, 1))
    found = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(target_modules=names), saved)
    return {name for key, name in keys.items() if key not in found}


def routes(name: str, model: PreTrainedModel) -> bool:
    """Whether a linear layer is the router of experts, or in it: its name, beside experts."""
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part in ("gate", "router", "shared_expert_gate", "wg")]
    if not places:
        return False
    beside = model.get_submodule(".".join(parts[: places[0]]))
    return any("expert" in child for child, _ in beside.named_children())


def sharing(linear: Mapping[str, nn.Module]) -> set[str]:
    """The layers whose weight is another one's too."""
    weights = {
        name: id(weight) for name, layer in linear.items() if (weight := getattr(layer, "weight", None)) is not None
    }
    several = {weight for weight, count in Counter(weights.values()).items() if count > 1}
    return {name for name, weight in weights.items() if weight in several}


def called(model: PreTrainedModel, linear: Mapping[str, nn.Module]) -> set[str]:
    """The linear layers that a pass over a few tokens calls and a gradient comes back to; an expert that no token chose
    counts with its siblings."""
    seen = set[str]()

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: seen.add(sort_of(name)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in linear.items()]
    # Nothing of the model learns, so the gradient is that of what the tokens become.
    handles.append(model.get_input_embeddings().register_forward_hook(lambda *args: args[2].requires_grad_().clone()))
    try:
        with torch.enable_grad():
            hidden_states(model, torch.tensor([[5, 17, 9, 30, 11, 8, 2, 21]], device=model.device)).sum().backward()
    except DECLINES as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"model: it gives no gradient ({reason}); this architecture is not supported") from error
    finally:
        for handle in handles:
            handle.remove()
    return {name for name in linear if sort_of(name) in seen}


def sort_of(name: str) -> str:
    """A name without its numbers: what layers and experts that stand side by side have in common."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def config_of(model: PreTrainedModel, lora: LoraSettings) -> LoraConfig:
    """PEFT's settings of a fresh adapter on a plain model."""
    targets = adapted(model, lora.target_modules).targets
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")


def add_adapter(model: PreTrainedModel | PeftModel, name: str, config: LoraConfig, seed: int) -> PeftModel:
    """A fresh adapter `name` on a plain model, or beside the adapters that are there."""
    asked = config.target_modules
    with torch.random.fork_rng(devices=[]):
        # PEFT draws A from torch's global generator; fork it so that nothing else depends on how much it drew.
        torch.manual_seed(int(rng.generator(seed, f"init/{name}").integers(2**31)))
        if isinstance(model, PeftModel):
            model.add_adapter(name, config, autocast_adapter_dtype=False)
            return model
        try:
            peft = PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=False)
        except (ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"lora.target_modules={asked!r}: PEFT refuses it for this model: {reason}") from error
    fused = [place for place, module in peft.named_modules() if isinstance(module, LoraLayer) and _is_fused(module)]
    if fused:
        raise UserError(
            f"lora.target_modules={asked!r}: {fused[0]} is no plain linear layer (experts in one tensor, an "
            "embedding); name layers of the attention, or set all-linear, which leaves it out"
        )
    return peft


def _is_fused(layer: LoraLayer) -> bool:
    weight = getattr(layer.get_base_layer(), "weight", None)
    return not isinstance(weight, Tensor) or weight.dim() != 2 or not layer.lora_A


def load_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """The adapter in a folder as `name`; what learns is set later, for all."""
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), name, autocast_adapter_dtype=False)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name, autocast_adapter_dtype=False)


def put_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Give the adapter `name`, which is there, the weights of the one in a folder, which is of the same shape."""
    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=name)
    other = [*found.unexpected_keys, *(key for key in found.missing_keys if f".{name}." in key)]
    assert not other, other
