"""From rewards per token to advantages per token: with a critic (GAE) and without one (RLOO, GRPO, REINFORCE++).

Every estimator takes `rewards_BT` as `rewards.token_rewards` makes them and returns (advantages_BT, returns_BT), both
zero where the mask is False. `returns_BT` is what a critic learns; None where there is no critic.

An estimator over groups takes B = P·K rows, the K replies to one prompt behind each other, and gives every token of a
reply the same advantage.
"""

import torch
from torch import Tensor

from plaudit.algo.masked import NO_SPREAD, whiten


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equations 11-16).

        δ_t = R_t + γ·V(s_{t+1}) − V(s_t),    Â_t = δ_t + γλ·Â_{t+1},    return_t = Â_t + V(s_t)

    Known answer: R = (−.1, −.2, 1), V = (.5, .4, .3), γ = 1, λ = .95: Â = (.14675, .365, .7).

    The mask of a row is one run of True from its first reply token to its last (no gaps). After the last one the
    episode is over and V = 0, also for a reply that the length limit cut: truncation is treated as termination and
    answered by the missing-EOS rule (docs/correctness.md, row 13).

    With `bootstrap_B` [B] the state after the last token is worth that much: the critic's V(s_T) for a reply that was
    cut, 0 for one that ended. Then the missing-EOS rule should be `none`: a cut reply is not a worse one.
    """
    assert rewards_BT.shape == values_BT.shape == mask_BT.shape, (rewards_BT.shape, values_BT.shape, mask_BT.shape)
    zeros = torch.zeros_like(rewards_BT)
    rewards_BT = torch.where(mask_BT, rewards_BT, zeros)
    values_BT = torch.where(mask_BT, values_BT, zeros)
    beyond_B = torch.zeros_like(rewards_BT[:, 0]) if bootstrap_B is None else bootstrap_B.to(rewards_BT.dtype)
    assert beyond_B.shape == rewards_BT.shape[:1], (beyond_B.shape, rewards_BT.shape)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = beyond_B
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * next_advantage_B, zeros[:, t])
        # A column that does not count lies behind the last token (or before the first, where nothing reads it).
        next_value_B = torch.where(mask_BT[:, t], values_BT[:, t], beyond_B)
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, zeros)


def rloo(rewards_BT: Tensor, mask_BT: Tensor, *, group_size: int) -> tuple[Tensor, None]:
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

        R_i = Σ_t R_{i,t},    Â_i = R_i − mean of the other R_j of the group = K/(K−1)·(R_i − mean of the group)

    Known answer: R = (1, 2, 6): Â = (−3, −1.5, 4.5). The baseline does not see its own reply, so the gradient is
    unbiased. The KL penalty is in the rewards, as in the paper.
    """
    returns_PK = _group_returns(rewards_BT, mask_BT, group_size)
    centred_PK = returns_PK - returns_PK.mean(dim=1, keepdim=True)
    return _over_tokens(centred_PK * group_size / (group_size - 1), mask_BT), None


def grpo(rewards_BT: Tensor, mask_BT: Tensor, *, group_size: int, scale_std: bool = True) -> tuple[Tensor, None]:
    """Group-relative advantages (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.2).

        R_i = Σ_t R_{i,t},    Â_i = (R_i − mean of the group) / std of the group

    Known answer: R = (0, 0, 4, 4): Â = (−1, −1, 1, 1); without the std: (−2, −2, 2, 2). `scale_std=False` is
    Dr. GRPO's (Liu et al. 2025, arXiv:2503.20783): the std pays most for groups that are nearly decided.

    Ours: the std is divided by K, and a group of equal returns has advantage 0; others divide by std + 1e-4 with the
    std divided by K − 1. The paper keeps the KL out of the reward and in the loss (`losses.kl_loss`): pass rewards
    without a KL penalty for that. Our loss is the mean over the tokens of the step, not over each reply's own.
    """
    returns_PK = _group_returns(rewards_BT, mask_BT, group_size)
    centred_PK = returns_PK - returns_PK.mean(dim=1, keepdim=True)
    if not scale_std:
        return _over_tokens(centred_PK, mask_BT), None
    variance_P1 = (centred_PK**2).mean(dim=1, keepdim=True)
    alike_P1 = variance_P1 <= NO_SPREAD * (returns_PK**2).mean(dim=1, keepdim=True)
    # Returns that differ by rounding only must not be blown up to ±1.
    std_P1 = torch.where(alike_P1, torch.ones_like(variance_P1), variance_P1).sqrt()
    return _over_tokens(centred_PK / std_P1, mask_BT), None


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0) -> tuple[Tensor, None]:
    """Â_t = Σ_{k ≥ t} γ^(k−t)·R_k: REINFORCE without a baseline (Williams 1992); GAE with V = 0 and λ = 1."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma=gamma, lam=1.0)[0], None


def reinforce_plus_plus(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0) -> tuple[Tensor, None]:
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): rewards to go, whitened over all reply tokens of the update.

        G_t = Σ_{k ≥ t} γ^(k−t)·R_k,    Â_t = (G_t − mean) / std

    Known answer: R = (0, 1) and (3): G = (1, 1, 3), mean 5/3, std √8/3: Â = (−1/√2, −1/√2, √2). The KL penalty is in
    the rewards, token by token. The baseline is the whole batch, one reply a prompt is enough.
    """
    to_go_BT, _ = reward_to_go(rewards_BT, mask_BT, gamma=gamma)
    return whiten(to_go_BT, mask_BT)[0], None


def _group_returns(rewards_BT: Tensor, mask_BT: Tensor, group_size: int) -> Tensor:
    """The undiscounted return of every reply, [prompts, replies of a prompt]."""
    assert rewards_BT.shape == mask_BT.shape, (rewards_BT.shape, mask_BT.shape)
    if group_size < 2 or len(rewards_BT) % group_size:
        raise ValueError(
            f"groups of {group_size} replies: needs at least 2, and {len(rewards_BT)} replies in whole ones"
        )
    return torch.where(mask_BT, rewards_BT, torch.zeros_like(rewards_BT)).sum(dim=1).view(-1, group_size)


def _over_tokens(advantages_PK: Tensor, mask_BT: Tensor) -> Tensor:
    """Every token of a reply gets its reply's advantage."""
    spread_BT = advantages_PK.reshape(-1, 1).expand(mask_BT.shape)
    return torch.where(mask_BT, spread_BT, torch.zeros_like(spread_BT))
