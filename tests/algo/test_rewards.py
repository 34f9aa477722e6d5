"""A score's way to rewards per token, by hand; the KL estimator's facts by enumeration."""

import json
import math
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import pytest
import torch

from plaudit.algo import rewards
from plaudit.algo.advantages import gae
from plaudit.algo.masked import Moments, moments_of

# docs/correctness.md, row 9: a vocabulary of three, every token enumerated.
PI, REF = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
GRAD_KL = torch.tensor([-0.238236, -0.082466, 0.320702], dtype=torch.float64)


def test_scores_are_normalised_with_the_stored_moments() -> None:
    raw_BM = torch.tensor([[1.0, 1.0], [4.0, 3.0]])
    normalised_BM = rewards.normalise(raw_BM, torch.tensor([2.0, 1.0]), torch.tensor([0.5, 4.0]))
    assert normalised_BM.tolist() == [[-2.0, 0.0], [4.0, 0.5]]


@pytest.mark.row(3)
def test_row_03_a_missing_eos_subtracts_and_does_not_replace() -> None:
    scores = rewards.penalise_missing_eos(torch.tensor([2.0, 2.0, -3.0]), torch.tensor([True, False, False]), 1.5)
    assert scores.tolist() == [2.0, 0.5, -4.5]


@pytest.mark.row(3)
def test_row_03_a_missing_eos_replaces_the_score_or_is_left_alone() -> None:
    """OpenAI's rule: −penalty whatever the score was; and no rule at all."""
    scores, finished = torch.tensor([2.0, 2.0, -3.0]), torch.tensor([True, False, False])
    assert rewards.penalise_missing_eos(scores, finished, 1.5, "replace").tolist() == [2.0, -1.5, -1.5]
    assert rewards.penalise_missing_eos(scores, finished, 1.5, "none").tolist() == [2.0, 2.0, -3.0]
    assert rewards.penalise_missing_eos(scores, finished, 1.5, "subtract").tolist() == [2.0, 0.5, -4.5]


def test_the_length_penalty_by_hand() -> None:
    """Beyond 20 tokens, a tenth a token."""
    found = rewards.length_penalty(torch.tensor([5, 20, 21, 30]), 0.1, free_tokens=20)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.1, 1.0], abs=1e-6)
    assert rewards.length_penalty(torch.tensor([5]), 0.5).tolist() == [2.5]


def test_a_score_against_the_reference_s_is_a_probability() -> None:
    """0, ln 3, −ln 3 ahead: ½, ¾, ¼; far ahead earns next to nothing more, and nothing overflows."""
    ln3 = math.log(3)
    found = rewards.sigmoid_centred(torch.tensor([2.0, ln3, 0.0, 1e4, -1e4]), torch.tensor([2.0, 0.0, ln3, 0.0, 0.0]))
    assert found.tolist() == pytest.approx([0.5, 0.75, 0.25, 1.0, 0.0], abs=1e-6)


def test_several_rewards_are_weighed_and_summed() -> None:
    found = rewards.weighted_scores([torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0])], [1.0, 0.25])
    assert found.tolist() == [3.5, -0.5]


@pytest.mark.parametrize(("count", "weights"), [(2, [1.0]), (1, [1.0, 2.0]), (0, [])])
def test_rewards_without_a_weight_are_refused(count: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{count} rewards and {len(weights)} weights"):
        rewards.weighted_scores([torch.zeros(2)] * count, weights)


# --- the running scale ---


def test_the_running_scale_by_hand() -> None:
    """Batches (0, 4) and (2, 2, 8, 8): all six have mean 4 and variance (16+0+4+4+16+16)/6 = 28/3."""
    state = Moments()
    scaled, std = [], []
    for batch in (torch.tensor([0.0, 4.0]), torch.tensor([2.0, 2.0, 8.0, 8.0])):
        state = state + moments_of(batch, torch.ones(len(batch), dtype=torch.bool))
        out, used = rewards.scale_scores(batch, state)
        scaled.append(out.tolist())
        std.append(used)
    assert std == pytest.approx([2.0, math.sqrt(28 / 3)], abs=1e-12)
    assert scaled[0] == [0.0, 2.0]  # divided, not shifted
    assert scaled[1] == pytest.approx([2 / std[1], 2 / std[1], 8 / std[1], 8 / std[1]], abs=1e-6)


def test_a_running_spread_of_nothing_counts_as_1() -> None:
    assert rewards.scale_scores(torch.tensor([1.0, 3.0]), Moments(2, 2, 2))[1] == 1.0


@pytest.mark.row(11)
def test_row_11_a_running_scale_multiplies_the_kl_coefficient_by_its_std() -> None:
    kl, mask = torch.tensor([[0.5], [1.0]]), torch.ones(2, 1, dtype=torch.bool)
    scores, std = rewards.scale_scores(torch.tensor([0.0, 4.0]), Moments(2, 4, 16))
    in_score_units = rewards.token_rewards(scores, kl, mask, kl_coef=0.1)[:, 0] * std
    torch.testing.assert_close(in_score_units, torch.tensor([0.0 - 0.2 * 0.5, 4.0 - 0.2 * 1.0]), rtol=0, atol=1e-6)


# --- the KL coefficient ---


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.101),  # a tenth too high: 0.1·(1 + 0.1·100/1000)
        (9.0, 0.102),  # half too high, taken as a fifth
        (600.0, 0.102),
        (5.4, 0.099),
        (0.0, 0.098),
        (-3.0, 0.098),  # an estimate below 0
    ],
)
def test_the_adaptive_kl_coefficient_by_hand(kl: float, coef: float) -> None:
    controller = rewards.KLController(0.1, target=6.0, horizon=1000.0)
    assert rewards.adapt_kl(controller, kl, replies=100).coef == pytest.approx(coef, abs=1e-12)


def test_a_longer_horizon_is_slower_and_more_replies_are_faster() -> None:
    """A fifth too high: 0.1·(1 + 0.2·64/6400) = 0.1002; 320 replies: 0.101."""
    controller = rewards.KLController(0.1, target=6.0, horizon=6400.0)
    assert rewards.adapt_kl(controller, 9.0, replies=64).coef == pytest.approx(0.1002, abs=1e-12)
    assert rewards.adapt_kl(controller, 9.0, replies=320).coef == pytest.approx(0.101, abs=1e-12)


def test_a_fixed_kl_coefficient_stays() -> None:
    assert rewards.adapt_kl(rewards.KLController(0.05), 1e6, 64) == rewards.KLController(0.05)


def test_the_adaptive_coefficient_finds_the_one_that_holds_the_target() -> None:
    """A policy whose KL is 1/β nats: the target of 5 is held by β = 0.2, from either side."""
    for start in (0.02, 2.0):
        controller = rewards.KLController(start, target=5.0, horizon=400.0)
        for _ in range(400):
            controller = rewards.adapt_kl(controller, 1 / controller.coef, replies=64)
        assert controller.coef == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    "wrong", [{"coef": -0.1}, {"target": 0.0}, {"target": -1.0}, {"horizon": 0.0}], ids=lambda wrong: next(iter(wrong))
)
def test_a_controller_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(f"{name}={value}" for name, value in wrong.items())):
        rewards.KLController(**{"coef": 0.1, "target": 6.0, **wrong})


def test_more_replies_than_the_horizon_are_refused() -> None:
    with pytest.raises(ValueError, match=r"horizon=50\.0 is less than the 64 replies"):
        rewards.adapt_kl(rewards.KLController(0.1, target=6.0, horizon=50.0), 7.0, 64)


@pytest.mark.row(27)
def test_row_27_states_written_as_json_go_on_as_if_never_stopped() -> None:
    """Bit for bit: the coefficient and the running moments after ten updates, unbroken and saved after every one."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(5, generator=generator) * 3 + 1 for _ in range(10)]
    ones = torch.ones(5, dtype=torch.bool)

    def step(state: tuple[Any, Any], batch: torch.Tensor) -> tuple[Any, Any]:
        controller, scale = state
        return rewards.adapt_kl(controller, batch.sum().item(), 32), scale + moments_of(batch, ones)

    def stopped(state: tuple[Any, Any], batch: torch.Tensor) -> tuple[Any, Any]:
        saved = json.dumps([asdict(part) for part in state])
        controller, scale = json.loads(saved)
        return step((rewards.KLController(**controller), Moments(**scale)), batch)

    start = rewards.KLController(0.1, 6.0, 1000.0), Moments()
    unbroken = list(accumulate(batches, step, initial=start))
    assert list(accumulate(batches, stopped, initial=start)) == unbroken
    assert unbroken[-1][0].coef not in (0.1, unbroken[1][0].coef)


def test_scores_are_clipped_on_both_sides() -> None:
    assert rewards.clip_scores(torch.tensor([-9.0, -5.0, 0.5, 7.0]), 5.0).tolist() == [-5.0, -5.0, 0.5, 5.0]


@pytest.mark.row(10)
def test_row_10_whitened_scores_by_hand() -> None:
    """0, 4: mean 2, std 2."""
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 4.0]), floor=0.0)
    assert scores.tolist() == [-1.0, 1.0]
    assert std.item() == 2.0


@pytest.mark.row(11)
def test_row_11_the_floor_keeps_alike_replies_from_having_their_noise_blown_up() -> None:
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 0.5]), floor=1.0)
    assert std.item() == 1.0
    assert scores.tolist() == [-0.25, 0.25]


@pytest.mark.row(11)
def test_row_11_scores_that_are_all_equal_whiten_to_0() -> None:
    """The first update has no floor yet: 32 replies with one score carry no signal, so none may be made of rounding."""
    scores, _ = rewards.whiten_scores(torch.full((32,), 0.7), floor=0.0)
    assert scores.abs().max().item() < 1e-3


@pytest.mark.row(11)
def test_row_11_whitening_multiplies_the_kl_coefficient_by_the_std() -> None:
    """With σ = 2 and β = 0.1 the rewards, back in score units, carry a KL penalty of β·σ = 0.2 a nat."""
    kl, mask = torch.tensor([[0.5], [1.0]]), torch.ones(2, 1, dtype=torch.bool)
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 4.0]), floor=0.0)
    token_rewards = rewards.token_rewards(scores, kl, mask, kl_coef=0.1)
    in_score_units = token_rewards[:, 0] * std
    expected = torch.tensor([-2.0 - 0.2 * 0.5, 2.0 - 0.2 * 1.0])
    torch.testing.assert_close(in_score_units, expected, rtol=0, atol=1e-6)


@pytest.mark.row(3)
def test_row_03_the_score_sits_on_the_last_reply_token_and_nowhere_else() -> None:
    nan = math.nan
    out = rewards.token_rewards(
        torch.tensor([10.0, -20.0]),
        torch.tensor([[nan, 1.0, -2.0, nan], [4.0, nan, nan, nan]]),
        torch.tensor([[False, True, True, False], [True, False, False, False]]),
        kl_coef=0.5,
    )
    assert out.tolist() == [[0.0, -0.5, 11.0, 0.0], [-22.0, 0.0, 0.0, 0.0]]


@pytest.mark.row(3)
def test_row_03_return_at_the_first_token_is_score_minus_beta_times_the_summed_kl() -> None:
    """Three tokens, γ = λ = 1, any critic: 2 − 0.1·(0.3 − 0.1 + 0.5) = 1.93."""
    mask = torch.tensor([[False, True, True, True, False]])
    kl = torch.tensor([[7.0, 0.3, -0.1, 0.5, 7.0]], dtype=torch.float64)
    token_rewards = rewards.token_rewards(torch.tensor([2.0]), kl, mask, kl_coef=0.1)
    values = torch.tensor([[5.0, -1.0, 0.4, 3.0, 5.0]], dtype=torch.float64)
    _, returns = gae(token_rewards, values, mask, gamma=1.0, lam=1.0)
    assert returns[0, 1].item() == pytest.approx(1.93, abs=1e-12)


@pytest.mark.row(13)
def test_row_13_a_longer_limit_after_eos_changes_nothing() -> None:
    score, kl = torch.tensor([2.0]), torch.tensor([[0.3, 0.5]])
    short = rewards.token_rewards(score, kl, torch.tensor([[True, True]]), 0.1)
    longer_kl = torch.cat([kl, torch.full((1, 6), math.nan)], dim=1)
    longer = rewards.token_rewards(score, longer_kl, torch.tensor([[True, True] + [False] * 6]), 0.1)
    assert longer[:, :2].tolist() == short.tolist()
    assert longer[:, 2:].tolist() == [[0.0] * 6]


@pytest.mark.row(3)
def test_row_03_a_reply_without_a_token_is_refused() -> None:
    with pytest.raises(AssertionError):
        rewards.token_rewards(
            torch.tensor([1.0, 1.0]), torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), 0.1
        )


def test_token_rewards_leave_the_kl_they_were_given_alone() -> None:
    kl = torch.tensor([[1.0, 2.0]])
    rewards.token_rewards(torch.tensor([5.0]), kl, torch.tensor([[True, True]]), 0.1)
    assert kl.tolist() == [[1.0, 2.0]]


@pytest.mark.row(9)
def test_row_09_the_expectation_of_k1_is_the_kl() -> None:
    expected = (PI * rewards.kl_estimate(PI.log(), REF.log())).sum().item()
    assert expected == pytest.approx(0.274887, abs=5e-7)


@pytest.mark.row(6)
def test_row_06_the_expectation_of_k1_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 2, 5, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(dim=-1)
    expected = (logprobs[:, 0].exp() * rewards.kl_estimate(logprobs[:, 0], logprobs[:, 1])).sum(dim=-1)
    assert expected.min().item() > 0


@pytest.mark.row(9)
def test_row_09_k1_as_a_loss_has_no_gradient_in_expectation() -> None:
    logits = PI.log().clone().requires_grad_()
    (PI * rewards.kl_estimate(logits.log_softmax(dim=-1), REF.log())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-12


@pytest.mark.row(9)
def test_row_09_k1_as_a_reward_gives_the_gradient_of_the_kl() -> None:
    """Score function: Σ π(a)·k1(a)·∇log π(a) = ∇KL."""
    logits = PI.log().clone().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    k1 = rewards.kl_estimate(logprobs, REF.log()).detach()
    (PI * k1 * logprobs).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, GRAD_KL, rtol=0, atol=1e-6)


# --- k1, k2, k3 ---


def estimates(name: Any) -> torch.Tensor:
    return rewards.kl_estimate(PI.log(), REF.log(), name)


@pytest.mark.row(9)
def test_row_09_the_three_estimates_by_hand() -> None:
    """Of the first token: log .4, ½·log² .4, 2.5 − 1 + log .4."""
    assert estimates("k1")[0].item() == pytest.approx(math.log(0.4), abs=1e-12)
    assert estimates("k2")[0].item() == pytest.approx(math.log(0.4) ** 2 / 2, abs=1e-12)
    assert estimates("k3")[0].item() == pytest.approx(1.5 + math.log(0.4), abs=1e-12)


@pytest.mark.row(9)
@pytest.mark.parametrize(("name", "expected"), [("k1", 0.274887), ("k2", 0.293856), ("k3", 0.274887)])
def test_row_09_expectations_of_the_estimates(name: str, expected: float) -> None:
    assert (PI * estimates(name)).sum().item() == pytest.approx(expected, abs=5e-7)


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k1", [0.0, 0.0, 0.0]),
        ("k2", [-0.238236, -0.082466, 0.320702]),
        ("k3", [-0.3, 0.0, 0.3]),
    ],
)
def test_row_09_kl_estimators_as_losses(name: Any, expected: list[float]) -> None:
    """On-policy expectations of their gradients by the logits: only k2's is ∇KL."""
    logits = PI.log().clone().requires_grad_()
    (PI * rewards.kl_estimate(logits.log_softmax(dim=-1), REF.log(), name)).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert bool((logits.grad - GRAD_KL).abs().max() < 1e-6) == (name == "k2")


@pytest.mark.row(9)
def test_row_09_the_gradient_of_the_kl_itself() -> None:
    """Guards the number the others are compared with: Σ π·(log π − log ref), differentiated."""
    logits = PI.log().clone().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    (logprobs.exp() * (logprobs - REF.log())).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, GRAD_KL, rtol=0, atol=1e-6)


@pytest.mark.row(6)
@pytest.mark.parametrize("name", ["k2", "k3"])
def test_row_06_k2_and_k3_are_never_negative(name: Any) -> None:
    gap = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert rewards.kl_estimate(gap, torch.zeros_like(gap), name).min().item() >= 0
    assert rewards.kl_estimate(gap, gap, name).abs().max().item() == 0


def test_k3_of_nearly_equal_policies_keeps_its_digits() -> None:
    """½Δ² for a small Δ: 5e-9 for 1e-4 in float32, where exp(−Δ) − 1 + Δ would be rounding."""
    found = rewards.kl_estimate(torch.tensor([1e-4]), torch.zeros(1), "k3").item()
    assert found == pytest.approx(5e-9, abs=1e-11)
