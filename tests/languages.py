"""Languages so small that every reply can be listed, and PPO on them with the library's own functions.

A policy is a table: one logit vector a state, and a state is the tokens so far. So an expectation is an exact sum, the
optimum of the KL-regularised objective has a closed form, and a gradient can be compared with the true one and not
with a sample of it. `Language` holds the facts and shares no formula with the library; `ppo_terms` and the two loops
below it are PPO as the stage does it.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plaudit.algo.advantages import gae
from plaudit.algo.losses import ppo_loss
from plaudit.algo.rewards import kl_estimate, token_rewards

EOS = 0


def replies(vocabulary: int, length: int) -> list[list[int]]:
    """Every reply: it ends at token 0 or at the limit."""
    found = []
    for n in range(1, length + 1):
        for start in itertools.product(range(1, vocabulary), repeat=n - 1):
            found += [[*start, last] for last in (range(vocabulary) if n == length else [EOS])]
    return found


@dataclass
class Language:
    """All replies, a reward for each, a reference policy, and another policy and a critic drawn from the seed."""

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
        """Of every token of every reply [B, T], zero behind its end."""
        return self.pick @ logits.log_softmax(dim=-1).flatten()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of every whole reply [B]."""
        return self.logprobs(logits).sum(dim=1).exp()

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

    def optimum(self, beta: float) -> Tensor:
        """log π* of every reply: π* ∝ π_ref·exp(r/β)."""
        return (self.logprobs(self.ref_logits).sum(dim=1) + self.rewards / beta).log_softmax(dim=0)

    def kl(self, logits: Tensor, other_logprobs_B: Tensor) -> float:
        """KL(π‖other) over whole replies, in nats."""
        own = self.logprobs(logits.detach()).sum(dim=1)
        return (own.exp() * (own - other_logprobs_B)).sum().item()

    def exact_gradient(self, beta: float) -> Tensor:
        """∇ of the objective at `self.logits`."""
        logits = self.logits.clone().requires_grad_()
        self.objective(logits, beta).backward()
        assert logits.grad is not None
        return logits.grad


def gradient(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a loss at `logits`."""
    leaf = logits.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def enumerated_loss(language: Language, logits: Tensor, old_logits: Tensor, beta: float) -> Tensor:
    """PPO's loss with every reply in the batch once, weighted by its probability under the old policy.

    The weight stands where importance weights stand, and the count is 1: the batch mean is the exact expectation.
    λ = 1, no whitening, no entropy bonus, no value loss; the critic is whatever `language.critic` says.
    """
    old_BT = language.logprobs(old_logits)
    kl_BT = kl_estimate(old_BT, language.logprobs(language.ref_logits))
    rewards_BT = token_rewards(language.rewards, kl_BT, language.mask_BT, beta)
    values_BT = language.critic[language.states_BT]
    advantages_BT, _ = gae(rewards_BT, values_BT, language.mask_BT, gamma=1.0, lam=1.0)
    return ppo_loss(
        logprobs_BT=language.logprobs(logits),
        old_logprobs_BT=old_BT,
        advantages_BT=advantages_BT,
        values_BT=None,
        returns_BT=None,
        entropy_BT=torch.zeros_like(old_BT),
        mask_BT=language.mask_BT,
        count=1.0,
        clip_range=0.2,
        value_coef=0.0,
        entropy_coef=0.0,
        weights_BT=old_BT.sum(dim=1).exp()[:, None].expand_as(old_BT),
    ).loss


def enumerated_ppo(language: Language, beta: float, updates: int, epochs: int = 4, rate: float = 0.1) -> Tensor:
    """PPO on exact expectations from the reference policy on; returns the policy's logits."""
    policy = nn.Parameter(language.ref_logits.clone())
    optimiser = torch.optim.Adam([policy], lr=rate, betas=(0.0, 0.9))
    for update in range(updates):
        old_logits = policy.detach().clone()
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - update / updates)
        for _ in range(epochs):
            optimiser.zero_grad()
            enumerated_loss(language, policy, old_logits, beta).backward()
            optimiser.step()
    return policy.detach()


def sampled_ppo(
    language: Language, beta: float, updates: int, *, batch: int = 64, epochs: int = 4, rate: float = 0.1, seed: int = 0
) -> Tensor:
    """PPO as the stage does it: sampled replies, a critic that learns, λ = 1, no whitening; returns the logits."""
    generator = torch.Generator().manual_seed(seed)
    policy, critic = nn.Parameter(language.ref_logits.clone()), nn.Parameter(language.critic.clone())
    optimiser = torch.optim.Adam([policy, critic], lr=rate)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - update / updates)
        with torch.no_grad():
            rows = torch.multinomial(language.probabilities(policy), batch, replacement=True, generator=generator)
            mask_BT, states_BT = language.mask_BT[rows], language.states_BT[rows]
            old_BT = language.logprobs(policy)[rows]
            kl_BT = kl_estimate(old_BT, language.logprobs(language.ref_logits)[rows])
            rewards_BT = token_rewards(language.rewards[rows], kl_BT, mask_BT, beta)
            advantages_BT, returns_BT = gae(rewards_BT, critic[states_BT], mask_BT, gamma=1.0, lam=1.0)
        for _ in range(epochs):
            optimiser.zero_grad()
            ppo_loss(
                logprobs_BT=language.logprobs(policy)[rows],
                old_logprobs_BT=old_BT,
                advantages_BT=advantages_BT,
                values_BT=critic[states_BT],
                returns_BT=returns_BT,
                entropy_BT=torch.zeros_like(old_BT),
                mask_BT=mask_BT,
                count=float(mask_BT.sum()),
                clip_range=0.2,
                value_coef=0.5,
                entropy_coef=0.0,
            ).loss.backward()
            optimiser.step()
    return policy.detach()
