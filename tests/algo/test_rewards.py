"""A score's way to rewards per token, by hand; the KL estimator's facts by enumeration."""

import math

import pytest
import torch

from plaudit.algo import rewards
from plaudit.algo.advantages import gae

# correctness.md row 9: a vocabulary of three, every token enumerated.
PI, REF = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
GRAD_KL = torch.tensor([-0.238236, -0.082466, 0.320702], dtype=torch.float64)


def test_scores_are_normalised_with_the_stored_moments() -> None:
    raw_BM = torch.tensor([[1.0, 1.0], [4.0, 3.0]])
    normalised_BM = rewards.normalise(raw_BM, torch.tensor([2.0, 1.0]), torch.tensor([0.5, 4.0]))
    assert normalised_BM.tolist() == [[-2.0, 0.0], [4.0, 0.5]]


def test_row3_a_missing_eos_subtracts_and_does_not_replace() -> None:
    scores = rewards.penalise_missing_eos(torch.tensor([2.0, 2.0, -3.0]), torch.tensor([True, False, False]), 1.5)
    assert scores.tolist() == [2.0, 0.5, -4.5]


def test_scores_are_clipped_on_both_sides() -> None:
    assert rewards.clip_scores(torch.tensor([-9.0, -5.0, 0.5, 7.0]), 5.0).tolist() == [-5.0, -5.0, 0.5, 5.0]


def test_row10_whitened_scores_by_hand() -> None:
    """0, 4: mean 2, std 2."""
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 4.0]), floor=0.0)
    assert scores.tolist() == [-1.0, 1.0]
    assert std.item() == 2.0


def test_row11_the_floor_keeps_alike_replies_from_having_their_noise_blown_up() -> None:
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 0.5]), floor=1.0)
    assert std.item() == 1.0
    assert scores.tolist() == [-0.25, 0.25]


def test_row11_scores_that_are_all_equal_whiten_to_0() -> None:
    """The first update has no floor yet: 32 replies with one score carry no signal, so none may be made of rounding."""
    scores, _ = rewards.whiten_scores(torch.full((32,), 0.7), floor=0.0)
    assert scores.abs().max().item() < 1e-3


def test_row11_whitening_multiplies_the_kl_coefficient_by_the_std() -> None:
    """With σ = 2 and β = 0.1 the rewards, back in score units, carry a KL penalty of β·σ = 0.2 a nat."""
    kl, mask = torch.tensor([[0.5], [1.0]]), torch.ones(2, 1, dtype=torch.bool)
    scores, std = rewards.whiten_scores(torch.tensor([0.0, 4.0]), floor=0.0)
    token_rewards = rewards.token_rewards(scores, kl, mask, kl_coef=0.1)
    in_score_units = token_rewards[:, 0] * std
    expected = torch.tensor([-2.0 - 0.2 * 0.5, 2.0 - 0.2 * 1.0])
    torch.testing.assert_close(in_score_units, expected, rtol=0, atol=1e-6)


def test_row3_the_score_sits_on_the_last_reply_token_and_nowhere_else() -> None:
    nan = math.nan
    out = rewards.token_rewards(
        torch.tensor([10.0, -20.0]),
        torch.tensor([[nan, 1.0, -2.0, nan], [4.0, nan, nan, nan]]),
        torch.tensor([[False, True, True, False], [True, False, False, False]]),
        kl_coef=0.5,
    )
    assert out.tolist() == [[0.0, -0.5, 11.0, 0.0], [-22.0, 0.0, 0.0, 0.0]]


def test_row3_return_at_the_first_token_is_score_minus_beta_times_the_summed_kl() -> None:
    """Three tokens, γ = λ = 1, any critic: 2 − 0.1·(0.3 − 0.1 + 0.5) = 1.93."""
    mask = torch.tensor([[False, True, True, True, False]])
    kl = torch.tensor([[7.0, 0.3, -0.1, 0.5, 7.0]], dtype=torch.float64)
    token_rewards = rewards.token_rewards(torch.tensor([2.0]), kl, mask, kl_coef=0.1)
    values = torch.tensor([[5.0, -1.0, 0.4, 3.0, 5.0]], dtype=torch.float64)
    _, returns = gae(token_rewards, values, mask, gamma=1.0, lam=1.0)
    assert returns[0, 1].item() == pytest.approx(1.93, abs=1e-12)


def test_row13_a_longer_limit_after_eos_changes_nothing() -> None:
    score, kl = torch.tensor([2.0]), torch.tensor([[0.3, 0.5]])
    short = rewards.token_rewards(score, kl, torch.tensor([[True, True]]), 0.1)
    longer_kl = torch.cat([kl, torch.full((1, 6), math.nan)], dim=1)
    longer = rewards.token_rewards(score, longer_kl, torch.tensor([[True, True] + [False] * 6]), 0.1)
    assert longer[:, :2].tolist() == short.tolist()
    assert longer[:, 2:].tolist() == [[0.0] * 6]


def test_row3_a_reply_without_a_token_is_refused() -> None:
    with pytest.raises(AssertionError):
        rewards.token_rewards(
            torch.tensor([1.0, 1.0]), torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), 0.1
        )


def test_token_rewards_leave_the_kl_they_were_given_alone() -> None:
    kl = torch.tensor([[1.0, 2.0]])
    rewards.token_rewards(torch.tensor([5.0]), kl, torch.tensor([[True, True]]), 0.1)
    assert kl.tolist() == [[1.0, 2.0]]


def test_row9_the_expectation_of_k1_is_the_kl() -> None:
    expected = (PI * rewards.kl_estimate(PI.log(), REF.log())).sum().item()
    assert expected == pytest.approx(0.274887, abs=5e-7)


def test_row6_the_expectation_of_k1_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 2, 5, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(dim=-1)
    expected = (logprobs[:, 0].exp() * rewards.kl_estimate(logprobs[:, 0], logprobs[:, 1])).sum(dim=-1)
    assert expected.min().item() > 0


def test_row9_k1_as_a_loss_has_no_gradient_in_expectation() -> None:
    logits = PI.log().clone().requires_grad_()
    (PI * rewards.kl_estimate(logits.log_softmax(dim=-1), REF.log())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-12


def test_row9_k1_as_a_reward_gives_the_gradient_of_the_kl() -> None:
    """Score function: Σ π(a)·k1(a)·∇log π(a) = ∇KL."""
    logits = PI.log().clone().requires_grad_()
    logprobs = logits.log_softmax(dim=-1)
    k1 = rewards.kl_estimate(logprobs, REF.log()).detach()
    (PI * k1 * logprobs).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, GRAD_KL, rtol=0, atol=1e-6)
