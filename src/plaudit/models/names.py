"""The names of a checkpoint's tensors beside those of the model of its config.json: none made up, none dropped."""

from collections.abc import Iterable, Iterator

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
    # Nor may a part of a layer go: the norms of Qwen 3's queries where config.json says that it is a Llama.
    numbered = {place for place, _ in model.named_modules() if any(part.isdigit() for part in place.split("."))}
    if other := [name for name in left if name.endswith(".weight") and not numbered.isdisjoint(_around(name))]:
        raise UserError(
            f"model: {source}: the weights hold {other[0]}, and the model of config.json has no such part of that "
            "layer; give the config.json that belongs to them"
        )


def _around(name: str) -> Iterator[str]:
    """The modules that a tensor of this name would be in."""
    while name := name.rpartition(".")[0]:
        yield name


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
