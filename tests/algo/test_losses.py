"""The objectives: numbers by hand, gradients by hand, invariance to padding and splits.

What they are made of, token by token, is in test_surrogate.py; the proofs that the gradient is the right one are in
test_proofs.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo.losses import PPOTerms, kl_loss, ppo_loss

NAN = math.nan
LN2 = math.log(2)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- ppo_loss on a ragged 2 × 3 batch ---


@dataclass
class Batch:
    """Two replies of three and one token; what stands at the two masked-out columns is `junk`."""

    junk: float = 0.0

    def arguments(self) -> dict[str, Any]:
        j = self.junk
        # Ratios 1, 3/2, 1/2 | 2, against old log-probabilities of −1.
        log_ratios = [[0.0, math.log(1.5), math.log(0.5)], [j, LN2, j]]
        old = [[-1.0, -1.0, -1.0], [j, -1.0, j]]
        return {
            "logprobs_BT": tensor(log_ratios) + tensor(old),
            "old_logprobs_BT": tensor(old),
            "advantages_BT": tensor([[2.0, 1.0, -1.0], [j, -1.0, j]]),
            "values_BT": tensor([[1.0, 2.0, 0.0], [j, 3.0, j]]),
            "returns_BT": tensor([[2.0, 2.0, 1.0], [j, 1.0, j]]),
            "entropy_BT": tensor([[0.5, 1.0, 1.5], [j, 1.0, j]]),
            "mask_BT": torch.tensor([[True, True, True], [False, True, False]]),
            "count": 4.0,
            "clip_range": 0.2,
            "value_coef": 0.1,
            "entropy_coef": 0.01,
        }


# L_CLIP 2 + 1.2 − 0.8 − 2 = 0.4; squared errors 1 + 0 + 1 + 4 = 6; entropies 4; k3: (r − 1) − ln r summed
# = 0 + (½ − ln 3/2) + (−½ + ln 2) + (1 − ln 2) = 1 − ln 3/2; outside the clip: 3 of 4 tokens.
BY_HAND = {
    "l_clip": 0.1,
    "l_vf": 1.5,
    "entropy": 1.0,
    "loss": -(0.1 - 0.1 * 1.5 + 0.01 * 1.0),
    "approx_kl": (1 - math.log(1.5)) / 4,
    "clip_fraction": 0.75,
}


def check_by_hand(terms: PPOTerms) -> None:
    assert {field.name for field in fields(terms)} == set(BY_HAND)
    for name, expected in BY_HAND.items():
        assert getattr(terms, name).item() == pytest.approx(expected, abs=1e-12), name


@pytest.mark.row(16, 17)
def test_row_16_row_17_ppo_loss_by_hand() -> None:
    """Also row 16: the value loss is the plain square, (3 − 1)² = 4, without ½ and without a clip."""
    check_by_hand(ppo_loss(**Batch().arguments()))


@pytest.mark.row(17)
@pytest.mark.parametrize("junk", [0.5, -7.0, NAN, math.inf])
def test_row_17_what_is_masked_out_reaches_neither_loss_nor_metrics(junk: float) -> None:
    check_by_hand(ppo_loss(**Batch(junk).arguments()))


@pytest.mark.row(17)
def test_row_17_wider_padding_changes_nothing() -> None:
    arguments = Batch().arguments()
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = torch.cat([value, torch.zeros(2, 5, dtype=value.dtype)], dim=1)
    check_by_hand(ppo_loss(**arguments))


def gradients(arguments: dict[str, Any]) -> dict[str, Tensor]:
    names = ("logprobs_BT", "values_BT", "entropy_BT")
    leaves = {name: arguments[name].clone().requires_grad_() for name in names}
    ppo_loss(**{**arguments, **leaves}).loss.backward()
    found = {}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        found[name] = leaf.grad
    return found


def test_ppo_gradients_by_hand() -> None:
    """−r·Â/4 inside the clip or on its losing side, 0 outside; 0.1·2(V − return)/4; −0.01/4."""
    found = gradients(Batch().arguments())
    expected = {
        "logprobs_BT": [[-2 / 4, 0, 0], [0, 2 / 4, 0]],
        "values_BT": [[-0.05, 0, -0.05], [0, 0.1, 0]],
        "entropy_BT": [[-0.0025] * 3, [0, -0.0025, 0]],
    }
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], tensor(rows), rtol=0, atol=1e-12)


def test_ppo_gradients_of_real_tokens_do_not_see_what_is_masked_out() -> None:
    """With NaN at masked-out columns the gradient there is NaN (0·NaN in the chain rule), which is why the roles fill
    these columns with zeros; the gradients of real tokens stay right even then."""
    clean, dirty = gradients(Batch().arguments()), gradients(Batch(NAN).arguments())
    mask = Batch().arguments()["mask_BT"]
    for name in clean:
        torch.testing.assert_close(dirty[name][mask], clean[name][mask], rtol=0, atol=0)


def test_ppo_gradients_of_masked_out_columns_are_zero_for_finite_contents() -> None:
    found = gradients(Batch(3.0).arguments())
    for gradient in found.values():
        assert not gradient[~Batch().arguments()["mask_BT"]].any()


def test_at_ratio_1_the_gradient_is_the_plain_policy_gradient_and_nothing_is_clipped() -> None:
    arguments = Batch().arguments() | {"value_coef": 0.0, "entropy_coef": 0.0}
    arguments["old_logprobs_BT"] = arguments["logprobs_BT"].clone()
    terms = ppo_loss(**arguments)
    assert terms.approx_kl.item() == 0
    assert terms.clip_fraction.item() == 0
    expected = tensor([[-2 / 4, -1 / 4, 1 / 4], [0, 1 / 4, 0]])
    torch.testing.assert_close(gradients(arguments)["logprobs_BT"], expected, rtol=0, atol=1e-12)


@pytest.mark.row(28)
def test_the_coefficients_weigh_their_own_terms() -> None:
    """No dead knob (row 28): each coefficient, and the clip range, changes the loss by the amount worked by hand."""
    plain = Batch().arguments()
    for changed, expected in (
        ({"value_coef": 0.0, "entropy_coef": 0.0}, -0.1),
        ({"value_coef": 1.0, "entropy_coef": 0.0}, 1.4),
        ({"value_coef": 0.0, "entropy_coef": 1.0}, -1.1),
        # ε = ½: 2 + 1.5 − 0.5 − 2 = 1.
        ({"value_coef": 0.0, "entropy_coef": 0.0, "clip_range": 0.5}, -0.25),
        # Upper bound 1.4: 2 + 1.4 − 0.8 − 2 = 0.6.
        ({"value_coef": 0.0, "entropy_coef": 0.0, "clip_range_high": 0.4}, -0.15),
        # c = 1.5 stops the last token at −1.5: 2 + 1.2 − 0.8 − 1.5 = 0.9.
        ({"value_coef": 0.0, "entropy_coef": 0.0, "dual_clip": 1.5}, -0.225),
        # Weights 2, 1, 1 | ½: 4 + 1.2 − 0.8 − 1 = 3.4.
        ({"value_coef": 0.0, "entropy_coef": 0.0, "weights_BT": tensor([[2, 1, 1], [9, 0.5, 9]])}, -0.85),
        # V_old = 0, ε_v = 1: held at (1, 1, 0 | 1) of (1, 2, 0 | 3): 1 + max(0, 1) + 1 + max(4, 0) = 7.
        (
            {"value_coef": 1.0, "entropy_coef": 0.0, "old_values_BT": tensor([[0.0] * 3] * 2), "value_clip": 1.0},
            -0.1 + 7 / 4,
        ),
        # No critic: its coefficient weighs nothing.
        ({"value_coef": 9.0, "entropy_coef": 0.0, "values_BT": None, "returns_BT": None}, -0.1),
    ):
        assert ppo_loss(**(plain | changed)).loss.item() == pytest.approx(expected, abs=1e-12)


def test_the_clip_fraction_counts_by_the_bounds_in_force() -> None:
    """Ratios 1, 3/2, 1/2 | 2: above 1.6 or below 0.4 is one token of four; above 1.6 or below 0.8 are two."""
    arguments = Batch().arguments()
    for low, high, expected in ((0.6, 0.6, 0.25), (0.2, 0.6, 0.5), (0.6, 0.2, 0.5), (0.2, None, 0.75)):
        terms = ppo_loss(**(arguments | {"clip_range": low, "clip_range_high": high}))
        assert terms.clip_fraction.item() == expected


def test_values_without_returns_are_refused() -> None:
    with pytest.raises(AssertionError):
        ppo_loss(**(Batch().arguments() | {"returns_BT": None}))


def test_the_importance_weight_carries_no_gradient_and_leaves_the_critic_alone() -> None:
    weights = tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 1.0]])
    plain, weighed = gradients(Batch().arguments()), gradients(Batch().arguments() | {"weights_BT": weights})
    torch.testing.assert_close(weighed["logprobs_BT"], plain["logprobs_BT"] * weights, rtol=0, atol=1e-12)
    for name in ("values_BT", "entropy_BT"):
        assert torch.equal(weighed[name], plain[name])


def test_only_the_loss_carries_a_gradient() -> None:
    arguments = Batch().arguments()
    arguments["logprobs_BT"].requires_grad_()
    terms = ppo_loss(**arguments)
    assert {field.name for field in fields(terms) if getattr(terms, field.name).requires_grad} == {"loss"}


def test_ppo_shapes_must_agree() -> None:
    arguments = Batch().arguments() | {"values_BT": torch.zeros(2, 1, dtype=torch.float64)}
    with pytest.raises(AssertionError):
        ppo_loss(**arguments)


# --- denominators ---

TOKEN_LOSSES = tensor([[1.0, 1.0, *[NAN] * 6], [2.0] * 8])
TOKEN_MASK = ~TOKEN_LOSSES.isnan()


def l_clip(losses_BT: Tensor, mask_BT: Tensor, count: float, weights_BT: Tensor | None = None) -> float:
    """L_CLIP of these numbers as advantages at ratio 1: their mean under `count`."""
    zeros = torch.zeros_like(losses_BT)
    terms = ppo_loss(
        logprobs_BT=zeros,
        old_logprobs_BT=zeros,
        advantages_BT=losses_BT,
        values_BT=None,
        returns_BT=None,
        entropy_BT=zeros,
        mask_BT=mask_BT,
        count=count,
        clip_range=0.2,
        value_coef=0.0,
        entropy_coef=0.0,
        weights_BT=weights_BT,
    )
    return terms.l_clip.item()


@pytest.mark.row(14, 15)
def test_row_14_row_15_the_mean_is_over_all_tokens_of_the_step() -> None:
    """{1, 1} and {2 × 8}: token mean 18/10 = 1.8; not the mean of means 1.5, nor the sequence sum 9."""
    assert l_clip(TOKEN_LOSSES, TOKEN_MASK, 10) == pytest.approx(1.8, abs=1e-12)


@pytest.mark.row(15)
@pytest.mark.parametrize(
    ("mean", "count", "per_reply", "expected"),
    [
        ("over the tokens of the step (ours)", 10, False, 18 / 10),
        ("over the replies of each reply's sum", 2, False, 18 / 2),
        ("over the replies of each reply's own mean", 2, True, (1 + 2) / 2),
        ("over replies times a constant length of 10", 20, False, 18 / 20),
    ],
)
def test_row_15_four_means_of_one_ragged_batch(mean: str, count: float, per_reply: bool, expected: float) -> None:
    """{1, 1} and {2 × 8} as advantages at ratio 1: what `count` and `weights_BT` make of them."""
    lengths = TOKEN_MASK.sum(dim=1, keepdim=True).expand(TOKEN_MASK.shape).double()
    found = l_clip(TOKEN_LOSSES, TOKEN_MASK, count, 1 / lengths if per_reply else None)
    assert found == pytest.approx(expected, abs=1e-12), mean


@pytest.mark.row(14)
def test_row_14_micro_batches_add_up_to_the_global_mean_only_under_the_step_s_count() -> None:
    parts = [(TOKEN_LOSSES[i : i + 1], TOKEN_MASK[i : i + 1]) for i in range(2)]
    assert sum(l_clip(x, m, 10) for x, m in parts) == pytest.approx(1.8, abs=1e-12)
    own_counts = [l_clip(x, m, m.sum().item()) for x, m in parts]
    assert sum(own_counts) / 2 == pytest.approx(1.5, abs=1e-12)


def toy_batch(rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ragged replies of 1 .. rows tokens; a shared weight vector makes log-probs, values and entropies."""
    generator = torch.Generator().manual_seed(1)
    width, features = rows, 4
    x = torch.randn(rows, width, features, generator=generator, dtype=torch.float64)
    lengths = torch.arange(1, rows + 1)
    mask = torch.arange(width) < lengths[:, None]
    old, advantages, returns = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    return x, mask, {"old_logprobs_BT": old - 2, "advantages_BT": advantages, "returns_BT": returns}


def split_gradient(micro: int, loss: Callable[[Tensor, Tensor, dict[str, Tensor], float], Tensor]) -> Tensor:
    x, mask, given = toy_batch(8)
    weight = tensor([0.3, -0.2, 0.5, 0.1]).requires_grad_()
    count = float(mask.sum())
    assert count == 36
    for start in range(0, 8, micro):
        rows = slice(start, start + micro)
        part = {name: value[rows] for name, value in given.items()}
        loss(x[rows] @ weight, mask[rows], part, count).backward()
    assert weight.grad is not None
    return weight.grad


def ppo_part(out: Tensor, mask: Tensor, part: dict[str, Tensor], count: float) -> Tensor:
    return ppo_loss(
        logprobs_BT=0.3 * out + part["old_logprobs_BT"],
        values_BT=out.sin(),
        entropy_BT=out.cos(),
        mask_BT=mask,
        count=count,
        clip_range=0.2,
        value_coef=0.1,
        entropy_coef=0.01,
        **part,
    ).loss


def every_option(out: Tensor, mask: Tensor, part: dict[str, Tensor], count: float) -> Tensor:
    """PPO with all that can be switched on, plus the KL as a loss."""
    logprobs, weights = 0.3 * out + part["old_logprobs_BT"], part["returns_BT"].cos() + 1.5
    terms = ppo_loss(
        logprobs_BT=logprobs,
        values_BT=out.sin(),
        entropy_BT=out.cos(),
        mask_BT=mask,
        count=count,
        clip_range=0.2,
        value_coef=0.1,
        entropy_coef=0.01,
        clip_range_high=0.3,
        dual_clip=1.2,
        old_values_BT=part["returns_BT"] / 2,
        value_clip=0.2,
        weights_BT=weights,
        **part,
    )
    return terms.loss + 0.2 * kl_loss(
        logprobs_BT=logprobs,
        old_logprobs_BT=part["old_logprobs_BT"],
        ref_logprobs_BT=part["old_logprobs_BT"] - 0.3,
        mask_BT=mask,
        count=count,
        weights_BT=weights,
    )


@pytest.mark.row(14)
@pytest.mark.parametrize("loss", [ppo_part, every_option])
@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_row_14_the_gradient_is_equal_for_any_micro_batch_split_of_ragged_replies(
    micro: int, loss: Callable[[Tensor, Tensor, dict[str, Tensor], float], Tensor]
) -> None:
    torch.testing.assert_close(split_gradient(micro, loss), split_gradient(8, loss), rtol=1e-12, atol=1e-14)


@pytest.mark.row(15)
def test_row_15_duplicating_the_batch_changes_nothing() -> None:
    arguments = Batch().arguments()
    doubled = {
        name: torch.cat([value, value]) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    check_by_hand(ppo_loss(**(doubled | {"count": 8.0})))
