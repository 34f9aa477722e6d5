"""The names of a checkpoint's tensors beside those of the model of its config.json: none made up, none dropped."""

from collections.abc import Iterable

from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.adapted import sort_of


def check_names(source: str, model: PreTrainedModel, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """UserError where transformers made up a weight that the files lack, or dropped one that belongs to a layer there
    is: what it loads would be another model."""
    lost, left = sorted(missing), sorted(unexpected)
    if lost:
        raise UserError(
            f"model: {source}: the weights lack {', '.join(lost[:3])}; transformers would make them up; "
            f"{_way(lost, left)}"
        )
    places = {sort_of(name) for name in model.state_dict()}
    if deeper := [name for name in left if sort_of(name) in places]:
        raise UserError(
            f"model: {source}: the weights hold {deeper[0]}, and the model of config.json has fewer layers; "
            "give the config.json that belongs to them"
        )
    # A layer is what has a weight: the masks that GPT-2's files hold as attn.bias belong to none.
    layers = {sort_of(name.removesuffix(".weight")) for name in model.state_dict() if name.endswith(".weight")}
    if dropped := [name for name in left if name.endswith(".bias") and sort_of(name.removesuffix(".bias")) in layers]:
        raise UserError(
            f"model: {source}: the weights hold {dropped[0]}, and in the model of config.json that layer has no bias; "
            "give the config.json that belongs to them"
        )


def _way(lost: list[str], left: list[str]) -> str:
    """What to do about weights that are not there."""
    wrapped = [(name, other.removesuffix(name)) for name in lost for other in left if other.endswith(f".{name}")]
    if wrapped:
        return (
            f"their names begin with {wrapped[0][1]!r}, which a wrapper puts there (torch.compile, DDP, PEFT): save "
            "the model inside it again"
        )
    if lost == ["lm_head.weight"]:
        return (
            "if it is the embedding's, set tie_word_embeddings to true in config.json, else copy the whole checkpoint"
        )
    return "copy the whole checkpoint again"
