"""What a model makes of its LM head's output: most give it as it is, some scale it, some cap it.

    logits = c·tanh(s·z/c),    z = W·h + b      (without a cap: s·z)

Log-probabilities are computed from hidden states and the head (logprobs.py), so s and c have to be known. No list of
configuration keys can be complete, so the model is asked: its trunk's output is blown up until the logits span what a
trained model's do, and the model's own logits are held against those of its head.

A head has more rows than the tokenizer has tokens where it was padded to a round size. Such an id spells nothing, so
the policy is the softmax over the others: `know` leaves those rows out wherever replies are sampled or judged.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plaudit.errors import UserError
from plaudit.models.kernels.probe import DECLINES, damaged
from plaudit.models.kernels.trunk import find_trunk, trunk_of

SPAN = 80.0
"""Largest |z| of the probe. Caps are 15 to 50: beyond them a capped logit is another number altogether, while a small
one differs by (z/c)²/3 only, which a scale can imitate."""
SAMPLE = 4096
"""Logits of the probe that a cap is sought with; the answer is then held against all of them."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""‖predicted − logits‖ / ‖logits‖ that rounding may leave."""
EXACT = 1e-6
"""An error of that size needs no better explanation."""
NEVER = -1e9
"""Logit of an id that spells nothing: its probability is exactly 0, and p·log p is 0, which −∞ would make no number."""


@dataclass(frozen=True)
class LogitShape:
    """z -> c·tanh(s·z/c), elementwise; s alone where there is no cap c. The `holes` among the ids are never drawn."""

    scale: float = 1.0
    cap: float | None = None
    holes: tuple[int, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """Logits of float32 z."""
        if self.scale != 1.0:
            z = z * self.scale
        if self.cap is not None:
            z = torch.tanh(z / self.cap) * self.cap
        return z if not self.holes else z.index_fill(-1, torch.tensor(self.holes, device=z.device), NEVER)

    def slope(self, logits: Tensor) -> Tensor | float:
        """∂logits/∂z where the logits are these."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap) ** 2)


PLAIN = LogitShape()
_SHAPE = "_plaudit_logit_shape"
_SIZE = "_plaudit_vocabulary"


def shape_of(model: PreTrainedModel) -> LogitShape:
    """What `learn_shape` and `know` found of a model."""
    shape: LogitShape = getattr(model, _SHAPE, PLAIN)
    return shape


def size_of(model: PreTrainedModel) -> int | None:
    """Rows of the LM head that stand for tokens, the first ones; None where all do, or nobody has said."""
    size: int | None = getattr(model, _SIZE, None)
    return size


def shaped(model: PreTrainedModel, z: Tensor) -> Tensor:
    """The policy's logits where the model's head gave z; float32 where something is done to them."""
    shape = shape_of(model)
    z = z[..., : size_of(model)]
    return z if shape is PLAIN else shape(z.float())


def know(model: PreTrainedModel, ids: Collection[int]) -> None:
    """Keep with the model which `ids` its tokenizer knows: no other one is sampled, and none has a share of the law."""
    rows: int = model.get_output_embeddings().get_parameter("weight").shape[0]
    known = {token for token in ids if token < rows}
    size = max(known) + 1
    if holes := tuple(sorted(set(range(size)) - known)):
        setattr(model, _SHAPE, replace(shape_of(model), holes=holes))
    if size < rows:
        setattr(model, _SIZE, size)


@torch.no_grad()
def learn_shape(model: PreTrainedModel, source: str) -> None:
    """Find out what the model does to its head's output and keep it with the model; UserError where it is neither a
    scale nor a cap, or where there is no head."""
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise UserError(f"model: {source}: there is no LM head, so it gives no probability of a next token")
    ids = torch.arange(3, 27, device=model.device)[None] % head.weight.shape[0]
    states: list[Tensor] = []
    factor = 1.0

    def blow_up(module: Any, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * factor
        states.append(output.last_hidden_state)
        return output

    handles = []
    try:
        find_trunk(model, lambda: model(input_ids=ids, use_cache=False))
        handles.append(trunk_of(model).register_forward_hook(blow_up))
        z = head(_logits_and_states(model, ids, states)[1])
        factor = SPAN / max(z.float().abs().max().item(), 1e-6)
        logits, hidden = _logits_and_states(model, ids, states)
    except DECLINES as error:
        fix = "this architecture is not supported" if model.dtype == torch.float32 else "try dtype: float32"
        raise UserError(
            f"model: {source}: its logits cannot be traced to its LM head ({type(error).__name__}: {error}); {fix}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not torch.isfinite(logits).all():
        name = damaged(model)
        why = f"{name} holds a NaN or an infinity; copy the weights again" if name else "try dtype: float32"
        raise UserError(f"model: {source}: its logits are no numbers in {model.dtype}: {why}")
    z, logits = head(hidden).double().flatten(), logits.double().flatten()
    # The largest of them tells most of a cap, so it is always among those that the search sees.
    seen = torch.cat((logits.abs().argmax()[None], torch.arange(0, len(z), len(z) // SAMPLE + 1, device=z.device)))
    shape = _fitted(z[seen], logits[seen], _numbers(model.config.to_dict()))
    if shape is None or _error(shape, z, logits) > TOLERANCE[model.dtype]:
        raise UserError(
            f"model: {source}: its logits are not those of its LM head, scaled or capped, so probabilities would be "
            "wrong; this architecture is not supported"
        )
    setattr(model, _SHAPE, PLAIN if shape == PLAIN else shape)


def _logits_and_states(model: PreTrainedModel, ids: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
    states.clear()
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits, states[-1]


def _error(shape: LogitShape, z: Tensor, logits: Tensor) -> float:
    return ((shape(z) - logits).norm() / logits.norm()).item()


def _fitted(z: Tensor, logits: Tensor, known: list[float]) -> LogitShape | None:
    """The best scale and cap; where numbers of the configuration fit as well, it is those: they are exact."""
    largest = logits.abs().max().item()
    if not largest > 0:
        return None
    plain = LogitShape(_snapped(_scale(z, logits, None), known))
    if _error(plain, z, logits) <= EXACT:
        return plain
    grid = (largest * torch.logspace(0.0001, 1.5, 200, dtype=torch.float64)).tolist()
    caps = [None, *(number for number in known if number > largest * (1 - 1e-3)), *grid]
    shapes = [LogitShape(_snapped(_scale(z, logits, cap), known), cap) for cap in caps]
    # The simplest of those that are about as good as the best one: none, a number of the configuration, any other.
    errors = [_error(shape, z, logits) for shape in shapes]
    enough = max(1.5 * min(errors), EXACT)
    return next(shape for shape, error in zip(shapes, errors, strict=True) if error <= enough)


def _scale(z: Tensor, logits: Tensor, cap: float | None) -> float:
    """Least squares of what the cap was put on; saturated logits, where rounding is blown up, count for little."""
    if cap is None:
        return ((z @ logits) / (z @ z)).item()
    share = (logits / cap).clamp(-1 + 1e-9, 1 - 1e-9)
    before, weight = cap * torch.atanh(share), (1 - share**2) ** 2
    return ((weight * z * before).sum() / (weight * z * z).sum()).item()


def _snapped(scale: float, known: list[float]) -> float:
    exact = [1.0, *known, *(1 / number for number in known)]
    nearest = min(exact, key=lambda number: abs(number - scale))
    return nearest if abs(nearest - scale) < 2e-3 * abs(scale) else scale


def _numbers(values: Any) -> list[float]:
    """Every positive number of a configuration, sections of it included."""

    def walk(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            yield float(value)

    return sorted(set(walk(values)))
