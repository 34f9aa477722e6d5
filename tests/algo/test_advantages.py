"""GAE against numbers worked by hand and the identities of the paper (arXiv:1506.02438)."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.algo.advantages import gae

NAN = math.nan
# correctness.md row 12.
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


def test_row_12_gae_known_answer() -> None:
    advantages, returns = run([REWARDS], [VALUES], [[1, 1, 1]], 1.0, 0.95)
    close(advantages, [[0.14675, 0.365, 0.7]])
    close(returns, [[0.64675, 0.765, 1.0]])


def test_row_12_gamma_below_one_by_hand() -> None:
    """γ = ½, λ = ½: δ = (−.1+.2−.5, −.2+.15−.4, .7) = (−.4, −.45, .7); Â_1 = −.45+.25·.7 = −.275."""
    advantages, _ = run([REWARDS], [VALUES], [[1, 1, 1]], 0.5, 0.5)
    close(advantages, [[-0.4 + 0.25 * -0.275, -0.275, 0.7]])


def test_row_12_what_lies_outside_the_mask_changes_nothing_even_nan() -> None:
    """The known answer again, behind two prompt columns and before two pads, all of them NaN."""
    wide = [[NAN, NAN, *REWARDS, NAN, NAN]], [[NAN, NAN, *VALUES, NAN, NAN]], [[0, 0, 1, 1, 1, 0, 0]]
    advantages, returns = run(*wide, 1.0, 0.95)
    close(advantages, [[0, 0, 0.14675, 0.365, 0.7, 0, 0]])
    close(returns, [[0, 0, 0.64675, 0.765, 1.0, 0, 0]])


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


@settings(deadline=None, derandomize=True)
@given(rows, st.sampled_from([1.0, 0.9, 0.5]))
def test_row_12_lambda_1_is_reward_to_go_minus_value(row: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [r for r, _ in row], [v for _, v in row]
    advantages, returns = run([rewards], [values], [[1] * len(row)], gamma, 1.0)
    to_go = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(row))]
    torch.testing.assert_close(returns[0], torch.tensor(to_go, dtype=torch.float64), rtol=0, atol=1e-9)
    for t, value in enumerate(values):
        assert advantages[0, t].item() == pytest.approx(to_go[t] - value, abs=1e-9)


@settings(deadline=None, derandomize=True)
@given(rows, st.sampled_from([1.0, 0.9, 0.5]))
def test_row_12_lambda_0_is_the_td_error(row: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [r for r, _ in row], [v for _, v in row]
    advantages, _ = run([rewards], [values], [[1] * len(row)], gamma, 0.0)
    following = [*values[1:], 0.0]
    for t in range(len(row)):
        assert advantages[0, t].item() == pytest.approx(rewards[t] + gamma * following[t] - values[t], abs=1e-9)


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


def test_row_13_truncation_is_termination_no_value_of_the_cut_state_leaks_in() -> None:
    """A reply that the limit cut: Â of its last token is R − V, whatever the critic says about the column after it."""
    for beyond in (0.0, 100.0, NAN):
        advantages, returns = run([[0.0, 2.0, 0.0]], [[0.5, 0.25, beyond]], [[1, 1, 0]], 1.0, 0.95)
        close(advantages, [[0.25 - 0.5 + 0.95 * 1.75, 1.75, 0]])
        close(returns, [[0.25 + 0.95 * 1.75, 2.0, 0]])


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
