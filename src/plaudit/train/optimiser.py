"""AdamW with float32 masters: adapters compute in the base's format, and learn in float32.

bf16 holds about three digits, so an update of a thousandth of a weight would be rounded away. The optimiser keeps a
float32 copy of every parameter, moves that, and rounds it into the model after each step. A parameter that is float32
already is its own master, and nothing is copied.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.guard.invariants import check_finite
from plaudit.models.rounding import Rounding
from plaudit.train.config import Schedule


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over float32 masters of `groups`; no decay unless one asks.

    Each group is {"params": [...], "lr": ...}, with "weight_decay" where it has one. Call `gather` after the last
    backward, then `step`. Masters are rounded to the nearest, or by `rounding`; its draws stay the same from step to
    step, so a weight goes where its master goes.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rounding: Rounding | None = None,
    ):
        self._rounding = rounding
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        mastered = [{**group, "params": [self._master(p) for p in group["params"]]} for group in groups]
        super().__init__(mastered, betas=betas, eps=eps, weight_decay=0.0)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        master = parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_()
        self._pairs.append((parameter, master))
        return master

    def gather(self, max_norm: float) -> float:
        """Take over the model's gradients in float32, scale them down to `max_norm`; returns the norm before that."""
        for parameter, master in self._pairs:
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        return torch.nn.utils.clip_grad_norm_([master for _, master in self._pairs], max_norm).item()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One AdamW step of the masters, then the model's parameters are set to them and all gradients cleared."""
        super().step(closure)
        with torch.no_grad():
            for number, (parameter, master) in enumerate(self._pairs):
                if master is not parameter and self._rounding is not None:
                    parameter.copy_(self._rounding(str(number), master.clone(), parameter.dtype))
                elif master is not parameter:
                    parameter.copy_(master)
                parameter.grad = master.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Masters that are copies, and moments, by name; not copied. With the parameters themselves and the schedule's
        step that is the optimiser's whole state."""
        found: dict[str, Tensor] = {}
        for number, (parameter, master) in enumerate(self._pairs):
            found |= {f"{number}.master": master.detach()} if master is not parameter else {}
            found |= {f"{number}.{name}": moment for name, moment in self.state.get(master, {}).items()}
        return found

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, of an optimiser of the same groups whose parameters are loaded already."""
        for number, (parameter, master) in enumerate(self._pairs):
            own = {n.removeprefix(f"{number}."): t for n, t in tensors.items() if n.startswith(f"{number}.")}
            if master is not parameter:
                master.copy_(own.pop("master"))
            # AdamW counts its steps in a tensor on the CPU, wherever the moments are.
            moments = {n: t.clone() if n == "step" else t.to(master.device, copy=True) for n, t in own.items()}
            if moments:  # a parameter without a gradient so far has none
                self.state[master] = moments


def optimiser_step(
    optimiser: MasterAdamW, schedule: torch.optim.lr_scheduler.LRScheduler, max_grad_norm: float, where: str
) -> float:
    """Clip, step, advance the schedule and clear the gradients; returns the norm before clipping.

    A non-finite gradient stops the run before the step.
    """
    norm = optimiser.gather(max_grad_norm)
    check_finite("the gradient norm", norm, where)
    optimiser.step()
    schedule.step()
    return norm


def schedule_of(
    optimiser: torch.optim.Optimizer, steps: int, warmup: int, shape: Schedule, starts: Sequence[int] = ()
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over `warmup` steps, then a half cosine or a line down to a tenth of the peak, or the peak.

    `starts[i]` is the step at which group i begins, 0 where nothing is said: it waits at its first rate until then.
    """

    def factor(start: int, at: int) -> float:
        step = max(0, at - start)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - start - warmup))
        left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[shape]
        return 0.1 + 0.9 * left

    begins = [*starts, *[0] * (len(optimiser.param_groups) - len(starts))]
    return torch.optim.lr_scheduler.LambdaLR(optimiser, [partial(factor, start) for start in begins])


def move_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Put a fresh schedule where it stands after `step` steps; its rates are functions of the step alone."""
    schedule.last_epoch = step
    rates = [peak * factor(step) for peak, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
