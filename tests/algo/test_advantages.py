"""GAE against numbers worked by hand and the identities of the paper; the estimators without a critic by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.algo.advantages import gae, grpo, reinforce_plus_plus, reward_to_go, rloo

NAN = math.nan
# docs/correctness.md, row 12.
REWARDS, VALUES = [-0.1, -0.2, 1.0], [0.5, 0.4, 0.3]


def run(
    rewards: list[list[float]], values: list[list[float]], mask: list[list[int]], gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return gae(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(mask, dtype=torch.bool),
        gamma=gamma,
        lam=lam,
    )


def close(actual: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.row(12)
def test_row_12_gae_known_answer() -> None:
    advantages, returns = run([REWARDS], [VALUES], [[1, 1, 1]], 1.0, 0.95)
    close(advantages, [[0.14675, 0.365, 0.7]])
    close(returns, [[0.64675, 0.765, 1.0]])


@pytest.mark.row(12)
def test_row_12_gamma_below_one_by_hand() -> None:
    """γ = ½, λ = ½: δ = (−.1+.2−.5, −.2+.15−.4, .7) = (−.4, −.45, .7); Â_1 = −.45+.25·.7 = −.275."""
    advantages, _ = run([REWARDS], [VALUES], [[1, 1, 1]], 0.5, 0.5)
    close(advantages, [[-0.4 + 0.25 * -0.275, -0.275, 0.7]])


@pytest.mark.row(12)
def test_row_12_what_lies_outside_the_mask_changes_nothing_even_nan() -> None:
    """The known answer again, behind two prompt columns and before two pads, all of them NaN."""
    wide = [[NAN, NAN, *REWARDS, NAN, NAN]], [[NAN, NAN, *VALUES, NAN, NAN]], [[0, 0, 1, 1, 1, 0, 0]]
    advantages, returns = run(*wide, 1.0, 0.95)
    close(advantages, [[0, 0, 0.14675, 0.365, 0.7, 0, 0]])
    close(returns, [[0, 0, 0.64675, 0.765, 1.0, 0, 0]])


@pytest.mark.row(12)
def test_row_12_a_ragged_batch_is_each_row_alone() -> None:
    """Row 0 has a prompt of two columns and two tokens, row 1 no prompt column and the known answer's three."""
    advantages, returns = run(
        [[9, 9, 2, 4], [*REWARDS, 9]],
        [[9, 9, 1, 3], [*VALUES, 9]],
        [[0, 0, 1, 1], [1, 1, 1, 0]],
        1.0,
        0.95,
    )
    # δ = (2+3−1, 4−3) = (4, 1).
    close(advantages, [[0, 0, 4.95, 1], [0.14675, 0.365, 0.7, 0]])
    close(returns, [[0, 0, 5.95, 4], [0.64675, 0.765, 1.0, 0]])


rows = st.lists(
    st.tuples(st.integers(-50, 50).map(lambda n: n / 8), st.integers(-50, 50).map(lambda n: n / 8)),
    min_size=1,
    max_size=7,
)


@pytest.mark.row(12)
@settings(deadline=None, derandomize=True)
@given(rows, st.sampled_from([1.0, 0.9, 0.5]))
def test_row_12_lambda_1_is_reward_to_go_minus_value(row: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [r for r, _ in row], [v for _, v in row]
    advantages, returns = run([rewards], [values], [[1] * len(row)], gamma, 1.0)
    to_go = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(row))]
    torch.testing.assert_close(returns[0], torch.tensor(to_go, dtype=torch.float64), rtol=0, atol=1e-9)
    for t, value in enumerate(values):
        assert advantages[0, t].item() == pytest.approx(to_go[t] - value, abs=1e-9)


@pytest.mark.row(12)
@settings(deadline=None, derandomize=True)
@given(rows, st.sampled_from([1.0, 0.9, 0.5]))
def test_row_12_lambda_0_is_the_td_error(row: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [r for r, _ in row], [v for _, v in row]
    advantages, _ = run([rewards], [values], [[1] * len(row)], gamma, 0.0)
    following = [*values[1:], 0.0]
    for t in range(len(row)):
        assert advantages[0, t].item() == pytest.approx(rewards[t] + gamma * following[t] - values[t], abs=1e-9)


@pytest.mark.row(12)
@settings(deadline=None, derandomize=True)
@given(rows, st.integers(0, 3), st.integers(0, 3))
def test_row_12_padding_on_either_side_changes_nothing(row: list[tuple[float, float]], left: int, right: int) -> None:
    rewards, values, ones = [r for r, _ in row], [v for _, v in row], [1] * len(row)
    plain, plain_returns = run([rewards], [values], [ones], 0.9, 0.95)
    pad = ([NAN] * left, [NAN] * right)
    padded, padded_returns = run(
        [[*pad[0], *rewards, *pad[1]]],
        [[*pad[0], *values, *pad[1]]],
        [[*[0] * left, *ones, *[0] * right]],
        0.9,
        0.95,
    )
    assert padded[:, left : left + len(row)].tolist() == plain.tolist()
    assert padded_returns[:, left : left + len(row)].tolist() == plain_returns.tolist()


@pytest.mark.row(13)
def test_row_13_truncation_is_termination_no_value_of_the_cut_state_leaks_in() -> None:
    """A reply that the limit cut: Â of its last token is R − V, whatever the critic says about the column after it."""
    for beyond in (0.0, 100.0, NAN):
        advantages, returns = run([[0.0, 2.0, 0.0]], [[0.5, 0.25, beyond]], [[1, 1, 0]], 1.0, 0.95)
        close(advantages, [[0.25 - 0.5 + 0.95 * 1.75, 1.75, 0]])
        close(returns, [[0.25 + 0.95 * 1.75, 2.0, 0]])


def bootstrapped(gamma: float, lam: float, beyond: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A reply cut after two tokens (behind a prompt column, before a pad), and one that ended after one."""
    return gae(
        torch.tensor([[9.0, 0.0, 2.0, 9.0], [9.0, 3.0, NAN, 9.0]], dtype=torch.float64),
        torch.tensor([[9.0, 0.5, 0.25, 9.0], [9.0, 1.0, NAN, 9.0]], dtype=torch.float64),
        torch.tensor([[False, True, True, False], [False, True, False, False]]),
        gamma=gamma,
        lam=lam,
        bootstrap_B=torch.tensor(beyond, dtype=torch.float64),
    )


@pytest.mark.row(13)
def test_row_13_with_bootstrap_the_cut_state_is_worth_its_value() -> None:
    """V(s_T) = 4, γ = 1, λ = .95: δ = (−.25, 2 + 4 − .25 = 5.75), Â = (−.25 + .95·5.75, 5.75); row 1 ended: 3 − 1."""
    advantages, returns = bootstrapped(1.0, 0.95, [4.0, 0.0])
    close(advantages, [[0, 5.2125, 5.75, 0], [0, 2, 0, 0]])
    close(returns, [[0, 5.7125, 6, 0], [0, 3, 0, 0]])


@pytest.mark.row(13)
def test_row_13_the_bootstrapped_value_is_discounted_once_a_token() -> None:
    """γ = ½, λ = 1: returns are 2 + ½·4 = 4 and ½·4 = 2."""
    _, returns = bootstrapped(0.5, 1.0, [4.0, 0.0])
    close(returns, [[0, 2, 4, 0], [0, 3, 0, 0]])


@pytest.mark.row(13)
def test_row_13_a_bootstrap_of_0_is_termination() -> None:
    advantages, _ = bootstrapped(1.0, 0.95, [0.0, 0.0])
    close(advantages, [[0, 0.25 - 0.5 + 0.95 * 1.75, 1.75, 0], [0, 2, 0, 0]])


@pytest.mark.row(13)
def test_row_13_a_reply_that_was_cut_by_an_honest_critic_is_as_good_as_going_on() -> None:
    """Three tokens; cut after two with V(s_2) = what the third would have brought: the first two see no difference."""
    whole, _ = run([[1.0, -1.0, 5.0]], [[0.5, 2.0, 5.0]], [[1, 1, 1]], 1.0, 0.95)
    cut, _ = gae(
        torch.tensor([[1.0, -1.0]], dtype=torch.float64),
        torch.tensor([[0.5, 2.0]], dtype=torch.float64),
        torch.ones(1, 2, dtype=torch.bool),
        gamma=1.0,
        lam=0.95,
        bootstrap_B=torch.tensor([5.0], dtype=torch.float64),
    )
    torch.testing.assert_close(cut, whole[:, :2], rtol=0, atol=1e-12)


def test_the_inputs_are_left_as_they_were() -> None:
    rewards, values = torch.tensor([[1.0, NAN]]), torch.tensor([[2.0, NAN]])
    gae(rewards, values, torch.tensor([[True, False]]), gamma=1.0, lam=1.0)
    assert rewards[0, 0].item() == 1
    assert rewards[0, 1].isnan()
    assert values[0, 0].item() == 2
    assert values[0, 1].isnan()


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError):
        gae(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)


# --- without a critic ---


def ragged(returns: list[float], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Replies of 1, 2, 3, 1, ... tokens with these returns; KL-like rewards before the last token sum to 0 or −1."""
    rewards = torch.full((len(returns), 4), NAN, dtype=dtype)
    mask = torch.zeros(len(returns), 4, dtype=torch.bool)
    for row, value in enumerate(returns):
        length = row % 3 + 1
        own = [-0.5] * (length - 1)
        rewards[row, 1 : 1 + length] = torch.tensor([*own, value - sum(own)], dtype=dtype)
        mask[row, 1 : 1 + length] = True
    return rewards, mask


def every_token_has(advantages: torch.Tensor, mask: torch.Tensor, expected: list[float]) -> None:
    wide = torch.tensor(expected, dtype=advantages.dtype)[:, None].expand(mask.shape)
    torch.testing.assert_close(advantages, torch.where(mask, wide, torch.zeros_like(wide)), rtol=0, atol=1e-12)


def test_rloo_by_hand() -> None:
    """(1, 2, 6): 1 − 4, 2 − 3.5, 6 − 1.5; the second prompt (0, 0, 3): 0 − 1.5 twice, 3 − 0."""
    rewards, mask = ragged([1, 2, 6, 0, 0, 3])
    advantages, returns = rloo(rewards, mask, group_size=3)
    assert returns is None
    every_token_has(advantages, mask, [-3, -1.5, 4.5, -1.5, -1.5, 3])


def test_grpo_by_hand() -> None:
    """(0, 0, 4, 4): mean 2, std 2. (1, 1, 1, 5): mean 2, std √3."""
    rewards, mask = ragged([0, 0, 4, 4, 1, 1, 1, 5])
    advantages, returns = grpo(rewards, mask, group_size=4)
    assert returns is None
    every_token_has(advantages, mask, [-1, -1, 1, 1, *[-1 / math.sqrt(3)] * 3, math.sqrt(3)])
    advantages, _ = grpo(rewards, mask, group_size=4, scale_std=False)
    every_token_has(advantages, mask, [-2, -2, 2, 2, -1, -1, -1, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_of_equal_returns_says_nothing(dtype: torch.dtype) -> None:
    """Seven times 0.7, also when the sum of a reply's rewards is off by its rounding."""
    rewards, mask = ragged([0.7] * 7, dtype)
    for advantages, _ in (
        rloo(rewards, mask, group_size=7),
        grpo(rewards, mask, group_size=7),
        grpo(rewards, mask, group_size=7, scale_std=False),
    ):
        assert advantages.abs().max().item() < 1e-6


def test_groups_do_not_see_one_another() -> None:
    rewards, mask = ragged([1, 2, 6, 0, 0, 3])
    for estimator in (rloo, grpo):
        both, _ = estimator(rewards, mask, group_size=3)
        alone, _ = estimator(rewards[3:], mask[3:], group_size=3)
        assert torch.equal(both[3:], alone)


@pytest.mark.parametrize("group_size", [1, 0, 4])
def test_groups_that_are_none_are_refused(group_size: int) -> None:
    rewards, mask = ragged([1, 2, 6, 0, 0, 3])
    for estimator in (rloo, grpo):
        with pytest.raises(ValueError, match=f"groups of {group_size} replies"):
            estimator(rewards, mask, group_size=group_size)


def test_rewards_to_go_by_hand() -> None:
    """(1, −2, 4) behind a prompt column: 3, 2, 4; with γ = ½: 1 − 1 + 1, −2 + 2, 4."""
    rewards = torch.tensor([[NAN, 1.0, -2.0, 4.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, False]])
    advantages, returns = reward_to_go(rewards, mask)
    assert returns is None
    close(advantages, [[0, 3, 2, 4, 0]])
    close(reward_to_go(rewards, mask, gamma=0.5)[0], [[0, 1, 0, 4, 0]])


def test_reinforce_plus_plus_by_hand() -> None:
    """(0, 1) and (3): to go 1, 1, 3, mean 5/3, std √8/3: −1/√2, −1/√2, √2."""
    rewards = torch.tensor([[0.0, 1.0], [3.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    advantages, returns = reinforce_plus_plus(rewards, mask)
    assert returns is None
    close(advantages, [[-1 / math.sqrt(2), -1 / math.sqrt(2)], [math.sqrt(2), 0]])


def test_what_lies_outside_the_mask_reaches_no_estimator() -> None:
    """The helper fills it with NaN; here it is 1e9, and nothing changes."""
    rewards, mask = ragged([1, 2, 6, 0, 0, 3])
    loud = torch.where(mask, rewards, torch.full_like(rewards, 1e9))
    for estimate in (
        lambda x: rloo(x, mask, group_size=3),
        lambda x: grpo(x, mask, group_size=3),
        lambda x: reinforce_plus_plus(x, mask),
    ):
        assert torch.equal(estimate(rewards)[0], estimate(loud)[0])
