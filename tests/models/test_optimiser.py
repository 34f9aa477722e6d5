"""The optimiser: AdamW itself in float32, and float32 masters of what the model holds in bf16."""

import pytest
import torch
from torch import nn

from plaudit.models.rounding import Rounding
from plaudit.train.optimiser import MasterAdamW


def steps(optimiser: MasterAdamW, parameter: nn.Parameter, gradients: list[float]) -> None:
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimiser.gather(1e9)
        optimiser.step()


def test_in_float32_it_is_adamw() -> None:
    ours, theirs = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = MasterAdamW([{"params": [ours], "lr": 0.1}], betas=(0.9, 0.95), eps=1e-5)
    plain = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
    steps(optimiser, ours, [0.3, -0.1, 0.7])
    for gradient in (0.3, -0.1, 0.7):
        theirs.grad = torch.full_like(theirs, gradient)
        plain.step()
    assert torch.equal(ours, theirs)


def test_the_first_step_by_hand() -> None:
    """Adam's first step is lr·g/(|g| + ε) = lr in the gradient's direction."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    steps(MasterAdamW([{"params": [parameter], "lr": 0.25}]), parameter, [4.0])
    assert parameter.item() == pytest.approx(0.75, abs=1e-6)


def test_updates_that_bf16_would_round_away_add_up() -> None:
    """bf16 steps near 1 are 2^-8 below and 2^-7 above: 0.001 a step is lost without a master; ten of them are 0.99."""
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    lost = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    steps(MasterAdamW([{"params": [parameter], "lr": 0.001}]), parameter, [1.0] * 10)
    plain = torch.optim.AdamW([lost], lr=0.001, weight_decay=0.0)
    for _ in range(10):
        lost.grad = torch.ones_like(lost)
        plain.step()
    assert lost.item() == 1.0, "the premise: bf16 alone does not move"
    assert parameter.dtype == torch.bfloat16
    assert parameter.item() == pytest.approx(0.99, abs=2**-9)


def test_masters_that_are_rounded_at_random_move_the_weights_on_average_and_never_back() -> None:
    """A step of 0.001 below 1 is a quarter of bf16's there: one weight in four takes it, and keeps it."""
    parameter = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    optimiser = MasterAdamW([{"params": [parameter], "lr": 0.001}], rounding=Rounding(0, "test"))
    steps(optimiser, parameter, [1.0])
    first = parameter.detach().clone()
    assert first.unique().tolist() == [1 - 2**-8, 1.0]
    assert first.float().mean().item() == pytest.approx(0.999, abs=2e-4)
    steps(optimiser, parameter, [1.0])
    assert bool((parameter <= first).all())
    assert parameter.float().mean().item() == pytest.approx(0.998, abs=2e-4)


def test_the_norm_is_that_of_all_gradients_before_they_are_scaled_down() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimiser = MasterAdamW([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.1}])
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.bfloat16)
    assert optimiser.gather(1.0) == pytest.approx(5.0)
    assert first.grad.item() == pytest.approx(0.6, abs=1e-5)
    optimiser.step()
    assert first.grad is None
    assert second.grad is None


def test_a_schedule_moves_each_group_by_its_own_rate() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimiser = MasterAdamW([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5)
    for parameter in (first, second):
        parameter.grad = torch.ones_like(parameter)
    optimiser.gather(1e9)
    optimiser.step()
    schedule.step()
    assert first.item() == pytest.approx(-0.05, abs=1e-6)
    assert second.item() == pytest.approx(-0.2, abs=1e-6)
