"""From the reward model's scalar score to a reward per token.

A score's way: raw -> stored normalisation of each source -> weighted sum -> missing-EOS rule -> clip -> batch
whitening -> minus the KL penalty per token. Each step is one function here, in that order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plaudit.algo.masked import whiten


def normalise(raw_scores_BM: Tensor, mean_M: Tensor, std_M: Tensor) -> Tensor:
    """(raw − mean) / std, each member of the reward model by its own moments, which are stored beside it, so that
    reference replies score 0 ± 1; [B, M]."""
    assert raw_scores_BM.shape[1:] == mean_M.shape == std_M.shape, (raw_scores_BM.shape, mean_M.shape, std_M.shape)
    return (raw_scores_BM - mean_M) / std_M


def combine_scores(normalised_BS: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_s w_s·score_s, [B]: one score of those of S sources, each normalised by its own moments."""
    assert normalised_BS.dim() == 2 and normalised_BS.shape[1] == len(weights), (normalised_BS.shape, weights)
    return (normalised_BS * normalised_BS.new_tensor(weights)).sum(dim=1)


def penalise_missing_eos(scores_B: Tensor, finished_B: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` from the score of a reply that never ended (TRL's convention; OpenAI replaces the score)."""
    return torch.where(finished_B, scores_B, scores_B - penalty)


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


def kl_estimate(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """k1 = log π(a) − log π_ref(a), the unbiased single-sample estimate of D_KL(π‖π_ref); [B, T].

    An estimate for rewards and logs. As a loss it would have no gradient in expectation (correctness.md row 9).
    """
    return logprobs_BT - ref_logprobs_BT


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """R_t = −β·kl_t at every reply token, plus the score at the last one; zero elsewhere; [B, T].

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2. The last reply token is the last True of the mask: the
    end-of-turn token when the reply has one (correctness.md row 3).
    """
    assert kl_BT.shape == mask_BT.shape and scores_B.shape == kl_BT.shape[:1], (scores_B.shape, kl_BT.shape)
    rewards_BT = torch.where(mask_BT, -kl_coef * kl_BT, torch.zeros_like(kl_BT))
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, positions_T, torch.full_like(positions_T, -1)).amax(dim=1)
    assert bool((last_B >= 0).all()), "a reply without a token has nowhere to put its score"
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, last_B] += scores_B.to(rewards_BT.dtype)
    return rewards_BT
