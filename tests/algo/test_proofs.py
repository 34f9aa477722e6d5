"""The whole loop on languages whose every reply can be listed: the right gradient, the right optimum, and no drift.

(a) PPO reaches π* ∝ π_ref·exp(r/β); (b) without a reward it stays; (c) its first gradient is the exact policy
gradient, also without a critic; (d) best-of-n is as far from its policy as the formula says.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from languages import Language, enumerated_loss, enumerated_ppo, gradient, sampled_ppo
from plaudit.algo.advantages import grpo, reward_to_go, rloo
from plaudit.algo.losses import kl_loss, ppo_loss
from plaudit.algo.rewards import kl_estimate, token_rewards
from plaudit.algo.statistics import best_of_n_kl

SIZES = [(3, 1), (4, 1), (5, 1), (3, 2), (4, 3)]


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize(("vocabulary", "length"), SIZES)
def test_the_enumerated_replies_are_all_of_them(vocabulary: int, length: int) -> None:
    language = Language(vocabulary, length, seed=0)
    assert language.probabilities(language.logits).sum().item() == pytest.approx(1, abs=1e-12)


# --- (c) the gradient ---


@pytest.mark.proof("c")
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("vocabulary", "length"), SIZES)
def test_proof_c_the_first_ppo_gradient_is_the_exact_policy_gradient(vocabulary: int, length: int, beta: float) -> None:
    """Whatever the critic says: with λ = 1 it is a baseline, and a baseline changes no expectation."""
    language = Language(vocabulary, length, seed=vocabulary + 10 * length)
    exact = -language.exact_gradient(beta)
    found = gradient(language.logits, lambda x: enumerated_loss(language, x, language.logits, beta))
    assert exact.norm().item() > 0.05
    assert cosine(found, exact) > 0.9999
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def grouped_loss(language: Language, logits: Tensor, beta: float, group_size: int, estimator: object) -> Tensor:
    """The loss of every possible group of replies, each group weighted by its probability under the policy."""
    rows = torch.tensor(list(itertools.product(range(len(language.replies)), repeat=group_size))).flatten()
    old_BT = language.logprobs(language.logits)
    kl_BT = kl_estimate(old_BT, language.logprobs(language.ref_logits))
    rewards_BT = token_rewards(language.rewards, kl_BT, language.mask_BT, beta)[rows]
    mask_BT = language.mask_BT[rows]
    assert callable(estimator)
    advantages_BT, returns_BT = estimator(rewards_BT, mask_BT)
    assert returns_BT is None
    probability_B = language.probabilities(language.logits)[rows].view(-1, group_size).prod(dim=1)
    weights_B = probability_B.repeat_interleave(group_size) / group_size
    return ppo_loss(
        logprobs_BT=language.logprobs(logits)[rows],
        old_logprobs_BT=old_BT[rows],
        advantages_BT=advantages_BT,
        values_BT=None,
        returns_BT=None,
        entropy_BT=torch.zeros_like(rewards_BT),
        mask_BT=mask_BT,
        count=1.0,
        clip_range=0.2,
        value_coef=0.0,
        entropy_coef=0.0,
        weights_BT=weights_B[:, None].expand_as(rewards_BT),
    ).loss


@pytest.mark.proof("c")
@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize(("vocabulary", "length"), [(3, 1), (3, 2)])
def test_proof_c_rloo_is_unbiased_for_any_group_size(vocabulary: int, length: int, group_size: int) -> None:
    language = Language(vocabulary, length, seed=7)
    estimator = partial(rloo, group_size=group_size)
    found = gradient(language.logits, lambda x: grouped_loss(language, x, 0.3, group_size, estimator))
    torch.testing.assert_close(found, -language.exact_gradient(0.3), rtol=1e-9, atol=1e-12)


@pytest.mark.proof("c")
def test_proof_c_group_means_without_the_std_shrink_the_gradient_by_one_kth() -> None:
    """Dr. GRPO's baseline holds the reply itself, which costs (K−1)/K of the gradient and turns nothing."""
    language = Language(3, 2, seed=7)
    estimator = partial(grpo, group_size=3, scale_std=False)
    found = gradient(language.logits, lambda x: grouped_loss(language, x, 0.3, 3, estimator))
    torch.testing.assert_close(found, -2 / 3 * language.exact_gradient(0.3), rtol=1e-9, atol=1e-12)


def test_grpo_with_the_std_follows_another_direction() -> None:
    """Guards the two tests above: they can tell a biased estimator. Its cosine is still positive."""
    language = Language(3, 2, seed=7)
    estimator = partial(grpo, group_size=3)
    found = gradient(language.logits, lambda x: grouped_loss(language, x, 0.3, 3, estimator))
    assert 0.5 < cosine(found, -language.exact_gradient(0.3)) < 0.9999


@pytest.mark.proof("c")
def test_proof_c_rewards_to_go_are_unbiased() -> None:
    language = Language(4, 3, seed=2)
    found = gradient(language.logits, lambda x: grouped_loss(language, x, 0.3, 1, reward_to_go))
    torch.testing.assert_close(found, -language.exact_gradient(0.3), rtol=1e-9, atol=1e-12)


# --- (a) the optimum ---


@pytest.mark.proof("a")
@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("length", [1, 2])
def test_proof_a_ppo_reaches_the_optimum_of_the_kl_regularised_objective(length: int, beta: float) -> None:
    """Four epochs an update, so the ratio leaves 1 and the clip works. It starts at the reference, 0.1 to 22 nats off.

    The optimum is due to 0.01 nats; on exact expectations there is no noise, so less than a hundredth of that is due.
    """
    language = Language(3, length, seed=5)
    star = language.optimum(beta)
    assert language.kl(language.ref_logits, star) > 0.1
    assert abs(language.kl(enumerated_ppo(language, beta, updates=120), star)) < 1e-4


@pytest.mark.proof("a")
@pytest.mark.parametrize(("beta", "updates"), [(0.05, 700), (0.2, 300), (1.0, 200)])
def test_proof_a_on_sampled_replies_with_a_critic_that_learns(beta: float, updates: int) -> None:
    """64 replies an update: at the optimum r − β·log(π/π_ref) is one number for all replies, so the noise dies out."""
    language = Language(3, 2, seed=5)
    star = language.optimum(beta)
    assert language.kl(language.ref_logits, star) > 0.1
    assert language.kl(sampled_ppo(language, beta, updates), star) < 0.01


# --- (b) no reward, no movement ---


@pytest.mark.proof("b")
def test_proof_b_without_a_reward_the_reference_has_no_gradient() -> None:
    language = Language(4, 2, seed=3)
    language.rewards.zero_()
    language.critic.zero_()
    found = gradient(language.ref_logits, lambda x: enumerated_loss(language, x, language.ref_logits, 0.5))
    assert found.abs().max().item() < 1e-12


@pytest.mark.proof("b")
def test_proof_b_without_a_reward_sampled_updates_with_a_wrong_critic_do_not_move_the_policy() -> None:
    """A critic that starts at random numbers is all the noise there is; the same loop with rewards goes far."""
    language = Language(3, 2, seed=5)
    reference = language.logprobs(language.ref_logits).sum(dim=1)
    moved = language.kl(sampled_ppo(language, 0.2, updates=60), reference)
    language.rewards.zero_()
    stayed = language.kl(sampled_ppo(language, 0.2, updates=60), reference)
    assert stayed < 0.002
    assert moved > 0.2


# --- (d) best of n ---


@pytest.mark.proof("d")
@pytest.mark.parametrize(("n", "expected"), [(1, 0.0), (4, 0.6363), (16, 1.8351), (64, 3.1745)])
def test_proof_d_best_of_n_by_the_formula(n: int, expected: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(expected, abs=5e-5)


def exact_best_of_n_kl(probabilities: list[float], n: int) -> float:
    """KL of the best of n draws from the law of one draw; the replies stand in the order of their scores."""
    total, below = 0.0, 0.0
    for p in probabilities:
        best = (below + p) ** n - below**n
        below += p
        if best > 0:
            total += best * math.log(best / p)
    return total


@pytest.mark.proof("d")
@pytest.mark.parametrize("n", [4, 16, 64])
def test_proof_d_the_formula_is_the_limit_without_ties_and_a_bound_with_them(n: int) -> None:
    """Two hundred thousand equally likely replies hardly ever tie; five replies tie all the time."""
    assert exact_best_of_n_kl([1 / 200_000] * 200_000, n) == pytest.approx(best_of_n_kl(n), abs=1e-3)
    for seed in range(5):
        language = Language(5, 1, seed)
        law = language.probabilities(language.logits)[language.rewards.argsort()].tolist()
        assert 0 < exact_best_of_n_kl(law, n) < best_of_n_kl(n)


@pytest.mark.proof("d")
def test_proof_d_best_of_no_replies_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0"):
        best_of_n_kl(0)


# --- the KL, in the reward and as a loss ---

PI, REF = tensor([[0.2, 0.3, 0.5]]).log(), tensor([[0.5, 0.3, 0.2]]).log()
GRAD_KL = tensor([[-0.238236, -0.082466, 0.320702]])


def one_token(policy: Tensor, reference: Tensor) -> Language:
    language = Language(3, 1, seed=0)
    language.logits, language.ref_logits = policy, reference
    language.rewards.zero_()
    return language


@pytest.mark.row(9)
def test_row_09_the_kl_as_a_reward_gives_ppo_the_gradient_of_the_kl() -> None:
    """π = (.2, .3, .5), ref = (.5, .3, .2), r ≡ 0, β = 1: the loss's gradient is ∇KL (docs/correctness.md, row 9)."""
    language = one_token(PI, REF)
    found = gradient(PI, lambda x: enumerated_loss(language, x, PI, 1.0))
    torch.testing.assert_close(found, GRAD_KL, rtol=0, atol=1e-6)


def enumerated_kl_loss(language: Language, logits: Tensor, old_logits: Tensor) -> Tensor:
    old_BT = language.logprobs(old_logits)
    return kl_loss(
        logprobs_BT=language.logprobs(logits),
        old_logprobs_BT=old_BT,
        ref_logprobs_BT=language.logprobs(language.ref_logits),
        mask_BT=language.mask_BT,
        count=1.0,
        weights_BT=old_BT.sum(dim=1).exp()[:, None].expand_as(old_BT),
    )


@pytest.mark.row(9)
@pytest.mark.parametrize("old", [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
def test_row_09_the_kl_loss_has_the_gradient_of_the_kl_whoever_sampled(old: list[float]) -> None:
    """On-policy in the first row, off-policy below: the ratio weighs it, so later epochs are right too."""
    language, old_logits = one_token(PI, REF), tensor([old]).log()
    found = gradient(PI, lambda x: enumerated_kl_loss(language, x, old_logits))
    torch.testing.assert_close(found, GRAD_KL, rtol=0, atol=1e-6)
    # Without the ratio it is right only where the sampler is the policy itself.
    plain = gradient(PI, lambda x: (tensor([old]) * 0.5 * (x.log_softmax(-1) - REF) ** 2).sum())
    assert bool((plain - GRAD_KL).abs().max() < 1e-6) == (old == [0.2, 0.3, 0.5])


@pytest.mark.row(9)
def test_row_09_the_number_of_the_kl_loss_is_k2() -> None:
    assert enumerated_kl_loss(one_token(PI, REF), PI, PI).item() == pytest.approx(0.293856, abs=5e-7)


@pytest.mark.row(9)
def test_row_09_the_kl_loss_holds_the_visited_states_fixed() -> None:
    """Two tokens: its gradient is that of Σ_s d(s)·KL(π(·|s)‖ref(·|s)) with d the old policy's visits, written here
    state by state; that of the KL of whole replies is another one, which KL in the reward gives (proof c)."""
    language = Language(3, 2, seed=4)

    def per_state(logits: Tensor) -> Tensor:
        first = language.logits.log_softmax(-1)[language.state[()]].exp()
        visits = {(): 1.0, (1,): first[1].item(), (2,): first[2].item()}
        own, ref = logits.log_softmax(-1), language.ref_logits.log_softmax(-1)
        kl_S = (own.exp() * (own - ref)).sum(dim=-1)
        return torch.stack([d * kl_S[language.state[prefix]] for prefix, d in visits.items()]).sum()

    def whole(logits: Tensor) -> Tensor:
        return (language.objective(logits, 0.0) - language.objective(logits, 1.0)).sum()

    found = gradient(language.logits, lambda x: enumerated_kl_loss(language, x, language.logits))
    torch.testing.assert_close(found, gradient(language.logits, per_state), rtol=1e-9, atol=1e-12)
    assert cosine(found, gradient(language.logits, whole)) < 0.999


@pytest.mark.row(29)
def test_row_29_a_second_epoch_measures_its_ratio_against_the_frozen_old_policy() -> None:
    """Far beyond the clip on a token whose advantage is positive, nothing pushes on; the sign of the others brings
    them back. One token language, two tokens: π_old = (½, ½), π = (0.9, 0.1), Â = (1, −1): ratios 1.8 and 0.2."""
    language = Language(2, 1, seed=0)
    language.ref_logits = torch.zeros(1, 2, dtype=torch.float64)
    language.rewards = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    language.critic.zero_()
    assert language.replies == [[0], [1]]
    moved, old = tensor([[0.1, 0.9]]).log(), torch.zeros(1, 2, dtype=torch.float64)
    # ½·min(1.8, 1.2)·1 + ½·min(0.2·−1, 0.8·−1) = 0.6 − 0.4 = 0.2
    assert enumerated_loss(language, moved, old, 0.0).item() == pytest.approx(-0.2, abs=1e-12)
    assert not gradient(moved, lambda x: enumerated_loss(language, x, old, 0.0)).any()
