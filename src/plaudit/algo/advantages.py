"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equations 11-16)."""

import torch
from torch import Tensor


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [B, T], zero where the mask is False.

        δ_t = R_t + γ·V(s_{t+1}) − V(s_t),    Â_t = δ_t + γλ·Â_{t+1},    return_t = Â_t + V(s_t)

    The mask of a row is one run of True from its first reply token to its last (no gaps). After the last one the
    episode is over and V = 0, also for a reply that the length limit cut: truncation is treated as termination and
    answered by the missing-EOS rule (correctness.md row 13).
    """
    assert rewards_BT.shape == values_BT.shape == mask_BT.shape, (rewards_BT.shape, values_BT.shape, mask_BT.shape)
    zeros = torch.zeros_like(rewards_BT)
    rewards_BT = torch.where(mask_BT, rewards_BT, zeros)
    values_BT = torch.where(mask_BT, values_BT, zeros)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * next_advantage_B, zeros[:, t])
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, zeros)
