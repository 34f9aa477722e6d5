"""The objectives: numbers by hand, gradients by hand, invariance to padding and splits, and the exact policy gradient.

The last part enumerates small languages: an expectation is an exact sum there, so PPO's gradient is compared with the
true one and not with a sample of it.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algo.advantages import gae
from plaudit.algo.losses import PPOTerms, clipped_surrogate, language_model_loss, ppo_loss
from plaudit.algo.rewards import kl_estimate, token_rewards

NAN = math.nan
LN2 = math.log(2)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- the clipped surrogate ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # gain above 1 + ε is cut off
        (0.5, 2.0, 1.0, 2.0),  # a loss is not: the policy may come back
        (1.0, -2.0, -2.0, -2.0),
        (0.9, -2.0, -1.8, -2.0),
        (0.5, -2.0, -1.6, 0.0),  # gain below 1 − ε is cut off
        (1.5, -2.0, -3.0, -2.0),  # a loss is not
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_and_its_gradient_by_hand(
    ratio: float, advantage: float, expected: float, gradient: float
) -> None:
    r = tensor([[ratio]]).requires_grad_()
    objective = clipped_surrogate(r, tensor([[advantage]]), 0.2)
    objective.sum().backward()
    assert r.grad is not None
    assert objective.item() == pytest.approx(expected, abs=1e-12)
    assert r.grad.item() == pytest.approx(gradient, abs=1e-12)


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


def test_row16_row17_ppo_loss_by_hand() -> None:
    """Also row 16: the value loss is the plain square, (3 − 1)² = 4, without ½ and without a clip."""
    check_by_hand(ppo_loss(**Batch().arguments()))


@pytest.mark.parametrize("junk", [0.5, -7.0, NAN, math.inf])
def test_row17_what_is_masked_out_reaches_neither_loss_nor_metrics(junk: float) -> None:
    check_by_hand(ppo_loss(**Batch(junk).arguments()))


def test_row17_wider_padding_changes_nothing() -> None:
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


def test_the_coefficients_weigh_their_own_terms() -> None:
    """No dead knob (row 28): each coefficient, and the clip range, changes the loss by the amount worked by hand."""
    plain = Batch().arguments()
    for changed, expected in (
        ({"value_coef": 0.0, "entropy_coef": 0.0}, -0.1),
        ({"value_coef": 1.0, "entropy_coef": 0.0}, 1.4),
        ({"value_coef": 0.0, "entropy_coef": 1.0}, -1.1),
        # ε = ½: 2 + 1.5 − 0.5 − 2 = 1.
        ({"value_coef": 0.0, "entropy_coef": 0.0, "clip_range": 0.5}, -0.25),
    ):
        assert ppo_loss(**(plain | changed)).loss.item() == pytest.approx(expected, abs=1e-12)


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


def test_row14_row15_the_mean_is_over_all_tokens_of_the_step() -> None:
    """{1, 1} and {2 × 8}: token mean 18/10 = 1.8; not the mean of means 1.5, nor the sequence sum 9."""
    assert language_model_loss(-TOKEN_LOSSES, TOKEN_MASK, 10).item() == pytest.approx(1.8, abs=1e-12)


def test_row14_micro_batches_add_up_to_the_global_mean_only_under_the_step_s_count() -> None:
    parts = [(-TOKEN_LOSSES[i : i + 1], TOKEN_MASK[i : i + 1]) for i in range(2)]
    assert sum(language_model_loss(x, m, 10).item() for x, m in parts) == pytest.approx(1.8, abs=1e-12)
    own_counts = [language_model_loss(x, m, m.sum().item()).item() for x, m in parts]
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


def lm_part(out: Tensor, mask: Tensor, part: dict[str, Tensor], count: float) -> Tensor:
    return language_model_loss(out, mask, count)


@pytest.mark.parametrize("loss", [ppo_part, lm_part])
@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_row14_the_gradient_is_equal_for_any_micro_batch_split_of_ragged_replies(
    micro: int, loss: Callable[[Tensor, Tensor, dict[str, Tensor], float], Tensor]
) -> None:
    torch.testing.assert_close(split_gradient(micro, loss), split_gradient(8, loss), rtol=1e-12, atol=1e-14)


def test_row15_duplicating_the_batch_changes_nothing() -> None:
    arguments = Batch().arguments()
    doubled = {
        name: torch.cat([value, value]) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    check_by_hand(ppo_loss(**(doubled | {"count": 8.0})))


def test_language_model_gradient_is_one_over_the_count_at_counted_tokens() -> None:
    logprobs = (-TOKEN_LOSSES).requires_grad_()
    language_model_loss(logprobs, TOKEN_MASK, 10).backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.where(TOKEN_MASK, tensor(-0.1), tensor(0.0)), rtol=0, atol=1e-15)


# --- whole-loop proofs on enumerable languages ---

EOS = 0


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def replies(vocabulary: int, length: int) -> list[list[int]]:
    """Every reply: it ends at token 0 or at the limit."""
    found = []
    for n in range(1, length + 1):
        for start in itertools.product(range(1, vocabulary), repeat=n - 1):
            found += [[*start, last] for last in (range(vocabulary) if n == length else [EOS])]
    return found


@dataclass
class Language:
    """A policy with one logit vector a state (a state is the tokens so far), all its replies, and a reward for each."""

    vocabulary: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.replies = replies(self.vocabulary, self.length)
        prefixes = {tuple(reply[:t]) for reply in self.replies for t in range(len(reply))}
        self.state = {prefix: i for i, prefix in enumerate(sorted(prefixes))}
        draw = (len(self.state), self.vocabulary)
        self.ref_logits = torch.randn(draw, generator=generator, dtype=torch.float64)
        self.logits = self.ref_logits + 0.5 * torch.randn(draw, generator=generator, dtype=torch.float64)
        self.rewards = torch.randn(len(self.replies), generator=generator, dtype=torch.float64)
        self.critic = torch.randn(len(self.state), generator=generator, dtype=torch.float64)
        shape = (len(self.replies), self.length)
        self.states_BT = torch.zeros(shape, dtype=torch.long)
        # Picks every token's log-probability out of the flattened table; a product, since its gradient is faster.
        self.pick = torch.zeros(*shape, self.logits.numel(), dtype=torch.float64)
        self.mask_BT = torch.zeros(shape, dtype=torch.bool)
        for row, reply in enumerate(self.replies):
            for t, token in enumerate(reply):
                self.states_BT[row, t] = self.state[tuple(reply[:t])]
                self.pick[row, t, self.states_BT[row, t] * self.vocabulary + token] = 1
                self.mask_BT[row, t] = True

    def logprobs(self, logits: Tensor) -> Tensor:
        return self.pick @ logits.log_softmax(dim=-1).flatten()

    def objective(self, logits: Tensor, beta: float) -> Tensor:
        """E[r] − β·KL(π‖ref) over whole replies, an exact sum that shares no code with the library."""
        total = torch.zeros((), dtype=torch.float64)
        table, reference = logits.log_softmax(dim=-1), self.ref_logits.log_softmax(dim=-1)
        for row, reply in enumerate(self.replies):
            places = [(self.state[tuple(reply[:t])], token) for t, token in enumerate(reply)]
            logprob = torch.stack([table[place] for place in places]).sum()
            ref = torch.stack([reference[place] for place in places]).sum()
            total = total + logprob.exp() * (self.rewards[row] - beta * (logprob - ref))
        return total

    def ppo(self, logits: Tensor, old_logits: Tensor, beta: float, clip_range: float = 0.2) -> Tensor:
        """PPO's loss with every reply in the batch, each weighted by its probability under the old policy.

        A positive factor on the advantage is a factor on the clipped surrogate, so the weights go there and the
        count is 1: the batch mean is then the exact expectation. λ = 1, no whitening, no entropy, no value loss.
        """
        old = self.logprobs(old_logits)
        kl = kl_estimate(old, self.logprobs(self.ref_logits))
        rewards = token_rewards(self.rewards, kl, self.mask_BT, beta)
        advantages, returns = gae(rewards, self.critic[self.states_BT], self.mask_BT, gamma=1.0, lam=1.0)
        weight_B1 = old.sum(dim=1).exp()[:, None]
        zeros = torch.zeros_like(old)
        return ppo_loss(
            logprobs_BT=self.logprobs(logits),
            old_logprobs_BT=old,
            advantages_BT=weight_B1 * advantages,
            values_BT=zeros,
            returns_BT=returns,
            entropy_BT=zeros,
            mask_BT=self.mask_BT,
            count=1.0,
            clip_range=clip_range,
            value_coef=0.0,
            entropy_coef=0.0,
        ).loss


@pytest.mark.parametrize(("vocabulary", "length"), [(3, 1), (4, 1), (5, 1), (3, 2), (4, 3)])
def test_the_enumerated_replies_are_all_of_them(vocabulary: int, length: int) -> None:
    language = Language(vocabulary, length, seed=0)
    assert language.logprobs(language.logits).sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("vocabulary", "length"), [(3, 1), (4, 1), (5, 1), (3, 2), (4, 3)])
def test_proof_c_the_first_ppo_gradient_is_the_exact_policy_gradient(vocabulary: int, length: int, beta: float) -> None:
    """Whatever the critic says: with λ = 1 it is a baseline, and a baseline changes no expectation."""
    language = Language(vocabulary, length, seed=vocabulary + 10 * length)
    exact, found = language.logits.clone().requires_grad_(), language.logits.clone().requires_grad_()
    (-language.objective(exact, beta)).backward()
    language.ppo(found, language.logits, beta).backward()
    assert exact.grad is not None
    assert found.grad is not None
    assert exact.grad.norm().item() > 0.05
    assert torch.cosine_similarity(found.grad.flatten(), exact.grad.flatten(), dim=0).item() > 0.9999
    torch.testing.assert_close(found.grad, exact.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("length", [1, 2])
def test_proof_a_ppo_reaches_the_optimum_of_the_kl_regularised_objective(length: int, beta: float) -> None:
    """π* ∝ π_ref·exp(r/β) over whole replies; 2 epochs an update, so the ratio leaves 1 and the clip works."""
    language = Language(3, length, seed=5)
    logits = language.ref_logits.clone()
    for _ in range(100):
        old = logits.clone()
        for _ in range(2):
            logits = logits.detach().requires_grad_()
            language.ppo(logits, old, beta).backward()
            assert logits.grad is not None
            logits = (logits - 0.3 / beta * logits.grad).detach()
    star = (language.logprobs(language.ref_logits).sum(dim=1) + language.rewards / beta).log_softmax(dim=0)
    policy = language.logprobs(logits).sum(dim=1)
    before = language.logprobs(language.ref_logits).sum(dim=1)
    distance = (policy.exp() * (policy - star)).sum().item()
    assert (before.exp() * (before - star)).sum().item() > 2 * distance
    assert distance < 0.01


def test_proof_b_without_a_reward_the_reference_does_not_move() -> None:
    language = Language(4, 2, seed=3)
    language.rewards.zero_()
    language.critic.zero_()
    logits = language.ref_logits.clone().requires_grad_()
    language.ppo(logits, language.ref_logits, beta=0.5).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-12


def test_row9_the_kl_as_a_reward_gives_ppo_the_gradient_of_the_kl() -> None:
    """π = (.2, .3, .5), ref = (.5, .3, .2), r ≡ 0, β = 1: the loss's gradient is ∇KL, from correctness.md."""
    language = Language(3, 1, seed=0)
    language.logits, language.ref_logits = tensor([[0.2, 0.3, 0.5]]).log(), tensor([[0.5, 0.3, 0.2]]).log()
    language.rewards.zero_()
    logits = language.logits.clone().requires_grad_()
    language.ppo(logits, language.logits, beta=1.0).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, tensor([[-0.238236, -0.082466, 0.320702]]), rtol=0, atol=1e-6)


def test_row29_a_second_epoch_measures_its_ratio_against_the_frozen_old_policy() -> None:
    """Far beyond the clip on a token whose advantage is positive, nothing pushes on; the sign of the others brings
    them back. One token language, two tokens: π_old = (½, ½), π = (0.9, 0.1), Â = (1, −1): ratios 1.8 and 0.2."""
    language = Language(2, 1, seed=0)
    language.ref_logits = torch.zeros(1, 2, dtype=torch.float64)
    language.rewards = tensor([-1.0, 1.0])
    language.critic.zero_()
    assert language.replies == [[0], [1]]
    moved = tensor([[0.1, 0.9]]).log().requires_grad_()
    loss = language.ppo(moved, torch.zeros(1, 2, dtype=torch.float64), beta=0.0)
    # ½·min(1.8, 1.2)·1 + ½·min(0.2·−1, 0.8·−1) = 0.6 − 0.4 = 0.2
    assert loss.item() == pytest.approx(-0.2, abs=1e-12)
    loss.backward()
    assert moved.grad is not None
    assert not moved.grad.any()
