"""From the reward model's scalar score to a reward per token.

A score's way: raw -> stored normalisation of each source -> (centred against the reference reply) -> (weighted
sum of several) -> missing-EOS rule -> (minus the length penalty) -> clip -> batch whitening or running scale -> minus
the KL penalty per token. Each step is one function here, in that order; those in brackets are optional.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from plaudit.algo.masked import Moments, whiten
from plaudit.algo.names import KLEstimator, MissingEos


def normalise(raw_scores_BM: Tensor, mean_M: Tensor, std_M: Tensor) -> Tensor:
    """(raw − mean) / std, each member of the reward model by its own moments, which are stored beside it, so that
    reference replies score 0 ± 1; [B, M]."""
    assert raw_scores_BM.shape[1:] == mean_M.shape == std_M.shape, (raw_scores_BM.shape, mean_M.shape, std_M.shape)
    return (raw_scores_BM - mean_M) / std_M


def sigmoid_centred(scores_B: Tensor, reference_scores_B: Tensor) -> Tensor:
    """σ(r − r_ref): the reward model's probability that this reply beats the reference policy's reply to its prompt.

    Fu et al. 2025 ("preference as reward", arXiv:2502.18770), with one reference reply. Bounded in (0, 1), ½ for a
    reply as good as the reference's, and steepest there: what is already far better earns little more. It is a
    probability only when r is in the unit in which the reward model was trained. ln 3 ahead: 0.75.
    """
    assert scores_B.shape == reference_scores_B.shape, (scores_B.shape, reference_scores_B.shape)
    return torch.sigmoid(scores_B - reference_scores_B)


def weighted_scores(scores: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ_k w_k·r_k over several rewards [B] each: weigh them in one unit (normalised), or the loudest wins."""
    if len(scores) != len(weights) or not scores:
        raise ValueError(f"{len(scores)} rewards and {len(weights)} weights: needs one weight a reward, at least one")
    assert len({score.shape for score in scores}) == 1, [score.shape for score in scores]
    return torch.stack([weight * score for score, weight in zip(scores, weights, strict=True)]).sum(dim=0)


def penalise_missing_eos(scores_B: Tensor, finished_B: Tensor, penalty: float, rule: MissingEos = "subtract") -> Tensor:
    """What a reply that never ended is worth (docs/correctness.md, row 3).

    - `subtract`: its score − penalty (TRL's convention): a good unfinished reply is still better than a bad one
    - `replace`: −penalty, whatever its score (OpenAI's lm-human-preferences): the reward model, which has seen whole
      replies only, is not asked
    - `none`: its score; for tasks that are cut on purpose, and for GAE that bootstraps
    """
    match rule:
        case "subtract":
            return torch.where(finished_B, scores_B, scores_B - penalty)
        case "replace":
            return torch.where(finished_B, scores_B, torch.full_like(scores_B, -penalty))
        case "none":
            return scores_B
        case _:
            assert_never(rule)


def length_penalty(lengths_B: Tensor, per_token: float, free_tokens: int = 0) -> Tensor:
    """per_token · max(0, length − free_tokens): a number ≥ 0 a reply, to be subtracted from its score.

    A term of its own, so that the log shows how much of a change of the score is length. `lengths_B` counts reply
    tokens, the end-of-turn token included. 30 tokens, 20 free, 0.1 a token: 1.
    """
    return per_token * (lengths_B - free_tokens).clamp(min=0)


def clip_scores(scores_B: Tensor, limit: float) -> Tensor:
    """Scores held in [−limit, limit]: one freak score must not own the batch."""
    return scores_B.clamp(-limit, limit)


def whiten_scores(scores_B: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean 0 and std 1 over the batch, the std never taken below `floor`. Returns (whitened, std used).

    Dividing scores by σ is the same as multiplying the KL coefficient β by σ: the effective coefficient in score
    units is β·σ, and that is what the log shows. The floor (a quarter of the first update's std) keeps a batch whose
    replies have become alike from having its noise blown up.
    """
    return whiten(scores_B, torch.ones_like(scores_B, dtype=torch.bool), floor=floor)


def scale_scores(scores_B: Tensor, state: Moments) -> tuple[Tensor, float]:
    """score / running std, without a shift; `state` is the sum of the `moments_of` every batch so far, this one too, so
    that every score since the start weighs alike. Returns (scaled, std used).

    Whitening's calmer sister: the unit moves slowly, so two updates' rewards can be compared, and a reply's reward does
    not depend on the other replies of its batch. Effective KL coefficient: β·std, as for whitening. A running std of 0
    counts as 1.
    """
    std = 1.0 if state.std == 0 else state.std
    return scores_B / std, std


def kl_estimate(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Single-sample estimates of D_KL(π‖π_ref) at the sampled tokens (Schulman 2020, "Approximating KL"); [B, T].

        k1 = log π − log π_ref            unbiased, may be negative
        k2 = ½·k1²                        biased (0.293856 for a KL of 0.274887), never negative, low variance
        k3 = π_ref/π − 1 + k1             unbiased, never negative; one token that the policy made rare can be huge

    Estimates, for rewards and logs. As losses their gradients are another matter: k1's vanishes in expectation and
    k3's is not that of the KL (docs/correctness.md, row 9): use `losses.kl_loss`. In the reward, too, only k1 gives the
    policy the gradient of the KL.
    """
    log_ratio_BT = logprobs_BT - ref_logprobs_BT
    match estimator:
        case "k1":
            return log_ratio_BT
        case "k2":
            return 0.5 * log_ratio_BT**2
        case "k3":
            return torch.expm1(-log_ratio_BT) + log_ratio_BT
        case _:
            assert_never(estimator)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """R_t = −β·kl_t at every reply token, plus the score at the last one; zero elsewhere; [B, T].

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2. The last reply token is the last True of the mask: the
    end-of-turn token when the reply has one (docs/correctness.md, row 3).
    """
    assert kl_BT.shape == mask_BT.shape and scores_B.shape == kl_BT.shape[:1], (scores_B.shape, kl_BT.shape)
    rewards_BT = torch.where(mask_BT, -kl_coef * kl_BT, torch.zeros_like(kl_BT))
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, positions_T, torch.full_like(positions_T, -1)).amax(dim=1)
    assert bool((last_B >= 0).all()), "a reply without a token has nowhere to put its score"
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, last_B] += scores_B.to(rewards_BT.dtype)
    return rewards_BT


@dataclass(frozen=True)
class KLController:
    """The KL coefficient β and the rule that moves it: plain numbers, so that a checkpoint holds the whole state.

    `target` in nats a reply; None: β is fixed. `horizon` in replies: larger is slower. ValueError for a target or a
    horizon that is not above 0.
    """

    coef: float
    target: float | None = None
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        if self.coef < 0 or self.horizon <= 0 or (self.target is not None and self.target <= 0):
            raise ValueError(
                f"coef={self.coef} must be at least 0, target={self.target} and horizon={self.horizon} above 0"
            )


def adapt_kl(controller: KLController, kl: float, replies: int) -> KLController:
    """The controller after an update of `replies` replies whose mean KL from the reference was `kl` nats a reply.

        e = clip((kl − target)/target, −0.2, 0.2),    β ← β·(1 + e·replies/horizon)

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, where replies/horizon is K_β = 0.1. β = 0.1, target 6, KL 9,
    100 replies, horizon 1000: β = 0.102. Without a target nothing changes. ValueError for more replies than the
    horizon: β could reach 0 in a few steps and then would never come back.
    """
    assert math.isfinite(kl), kl
    if controller.target is None:
        return controller
    if replies > controller.horizon:
        raise ValueError(f"horizon={controller.horizon} is less than the {replies} replies of one update")
    error = min(max(kl / controller.target - 1, -0.2), 0.2)
    return replace(controller, coef=controller.coef * (1 + error * replies / controller.horizon))


MOST = 10.0
"""No multiplier grows beyond: at ten std of a constraint for one of the score nothing else has a say any more."""


@dataclass(frozen=True)
class Multiplier:
    """The Lagrange multiplier λ of a constraint, E[c] ≥ bound, in units of c's std: plain numbers, for a checkpoint.

    It starts at one std of c for one of the score: from 0 a short run would cross the bound before λ said anything,
    while a bound that holds by itself lets λ fall.
    """

    bound: float
    std: float
    value: float = 1.0


def move_multiplier(multiplier: Multiplier, measured: float, rate: float = 0.5) -> Multiplier:
    """The multiplier after a rollout whose mean of c was `measured`.

        λ ← clip(λ + η·(bound − measured)/std, 0, 10)

    Projected gradient descent on the dual of max E[r] s.t. E[c] ≥ bound (Tessler et al. 2019, arXiv:1805.11074,
    equation 9); for language models Moskovitz et al. 2023 (arXiv:2310.04373). λ stands still where c is at its
    bound, or above it and λ = 0. λ = 0.5, bound 0.6, std 0.5, measured 0.4, η = 0.5: 0.7.
    With η = 0.1 a run of eight updates ended at the price it began with (docs/benchmarks.md).
    """
    assert math.isfinite(measured), measured
    step = rate * (multiplier.bound - measured) / multiplier.std
    return replace(multiplier, value=min(max(multiplier.value + step, 0.0), MOST))
