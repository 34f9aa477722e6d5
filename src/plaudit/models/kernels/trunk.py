"""The trunk of a model: the part whose output its LM head reads.

transformers names a part (`base_model_prefix`), but OPT's head reads the decoder inside that part, and Llama 4's text
model has no part of that name. So it is looked up where the logits are traced (logits.py) and kept with the model.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

_TRUNK = "_plaudit_trunk"


def trunk_of(model: PreTrainedModel) -> Any:
    """What `find_trunk` found; of a model that was not asked, the part that transformers names."""
    return model.get_submodule(trunk_name(model))


def trunk_name(model: PreTrainedModel) -> str:
    """Where `trunk_of` stands in the model."""
    name: str = getattr(model, _TRUNK, model.base_model_prefix)
    return name


def state_size(model: PreTrainedModel) -> int:
    """D of its hidden states: what the LM head, or a classifier's, reads, which OPT-350m projects to another size than
    its layers'."""
    head = model.get_output_embeddings() or getattr(model, "score", None)
    size: int = model.config.get_text_config().hidden_size if head is None else head.weight.shape[1]
    return size


def find_trunk(model: PreTrainedModel, run: Any) -> None:
    """Call `run`, which must pass through `model`, and remember the part that ended last of those that give hidden
    states; AttributeError where there is none."""
    last: list[str] = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if getattr(output, "last_hidden_state", None) is not None:
                last.append(name)

        return hook

    parts = [(name, part) for name, part in model.named_modules() if name and isinstance(part, PreTrainedModel)]
    handles = [part.register_forward_hook(remember(name)) for name, part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not last:
        raise AttributeError("no part of it gives hidden states")
    setattr(model, _TRUNK, last[-1])
