"""What people said of replies, as losses of their scores: pairs, ties, whole rankings, votes, stated strength.

Every function takes scores r_θ(x, y) in any order and returns a sum over its rows, each times its weight: pairs of one
ranking have weight 1 / (its number of pairs) and the caller divides by the rankings of the whole optimiser step, so
that each ranking counts once however the step was split (docs/correctness.md, rows 14 and 24). All depend on score
differences only, except `centring_penalty`, which ties the level down.

Left out: which rows are compared and with what weight (the stage knows), and the regularisation of the scorer.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_TIE_GROUP = 10
"""Plackett-Luce: a tie group of g replies costs g·2^(g−1) terms a ranking, 5120 at this size."""
TEMPERATURE_BOUNDS = (0.01, 100.0)
"""`fit_temperature` stays within these."""


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    weights: Tensor,
    *,
    targets: Tensor | None = None,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """−Σ w·[q·log σ(Δ) + (1 − q)·log σ(−Δ)] with Δ = r_w − r_l − m, in nats; all tensors [pairs].

    Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155, equation 1) for q = 1 and m = 0: all pairs of a
    ranking go into one step with weight 1 / (its number of pairs), and the caller divides by the number of rankings.

    - `targets`: probability that `chosen` wins, for votes that differ (`vote_targets`); 0.5 is a tie. None is 1.
    - `margins` m: how far apart the scores shall be at least, in score units, from the strength that people stated;
      Touvron et al. 2023 (Llama 2, arXiv:2307.09288, equation 2). It is meant for pairs whose `chosen` wins: the model
      is P(chosen wins) = σ(Δ), so a pair with target 0.5 is fitted by r_w − r_l = m, not by equal scores.
    - `label_smoothing` ε: q becomes (1 − ε)·q + ε·(1 − q), the chance that a label is turned round (conservative DPO,
      Mitchell 2023, there for q = 1). ValueError outside 0 ≤ ε < ½.

    The gradient by r_w is −w·(q − σ(Δ)), −w·σ(−Δ) for q = 1. logsigmoid is finite for any difference
    (docs/correctness.md, row 23). With q = 1 and ε = 0 a pair that nothing contradicts has no best Δ:
    the loss falls for ever as Δ grows. Label smoothing, or votes with a prior, gives it one: log(q/(1 − q)).
    """
    assert chosen_scores.shape == rejected_scores.shape == weights.shape and chosen_scores.dim() == 1
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} is not in [0, 0.5): from one half on labels mean nothing")
    difference = chosen_scores - rejected_scores
    if margins is not None:
        assert margins.shape == difference.shape
        difference = difference - margins
    if targets is None and label_smoothing == 0:
        return -(weights * F.logsigmoid(difference)).sum()
    wins = torch.ones_like(difference) if targets is None else targets.to(difference.dtype)
    assert wins.shape == difference.shape
    wins = wins + label_smoothing * (1 - 2 * wins)
    # Two terms instead of softplus(−Δ) + (1 − q)·Δ, which cancels where Δ is large and negative.
    likelihood = wins * F.logsigmoid(difference) + (1 - wins) * F.logsigmoid(-difference)
    return -(weights * likelihood).sum()


def dpo_loss(
    chosen_log_ratios: Tensor,
    rejected_log_ratios: Tensor,
    weights: Tensor,
    *,
    beta: float,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    targets: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of pairs whose scores are implicit rewards β·log π(y|x)/π_ref(y|x), of whole replies; tensors [pairs].

    - `sigmoid`: −Σ w·log σ(β·h), h the difference of the log-ratios: `bradley_terry_loss` of the implicit rewards
      (Rafailov et al. 2023, arXiv:2305.18290, equation 7).
    - `ipo`: Σ w·(h − 1/2β)² (Azar et al. 2023, arXiv:2310.12036, equation 17): a pair that nothing contradicts has a
      best margin, where the other loss falls for ever as h grows.

    `targets` and `label_smoothing` as in `bradley_terry_loss`: with probability q `chosen` wins, so that ipo's is
    Σ w·[q·(h − 1/2β)² + (1 − q)·(h + 1/2β)²], which is least at h = (2q − 1)/2β: 0 for a tie. β = ½ and log-ratios of
    0.6 and −1.4 give h = 2: 0.313262 (sigmoid) with the gradient −β·σ(−1) = −0.134471 by the first, and 1 (ipo) with 2.
    """
    if loss == "sigmoid":
        scores = beta * chosen_log_ratios, beta * rejected_log_ratios
        return bradley_terry_loss(*scores, weights, targets=targets, label_smoothing=label_smoothing)
    assert chosen_log_ratios.shape == rejected_log_ratios.shape == weights.shape and weights.dim() == 1
    h, best = chosen_log_ratios - rejected_log_ratios, 1 / (2 * beta)
    wins = torch.ones_like(h) if targets is None else targets.to(h.dtype)
    wins = wins + label_smoothing * (1 - 2 * wins)
    return (weights * (wins * (h - best) ** 2 + (1 - wins) * (h + best) ** 2)).sum()


def logistic_loss(scores: Tensor, labels: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """−Σ w·[z·log σ(r + b) + (1 − z)·log σ(−r − b)], z = 1 for a reply that was liked, else 0; in nats, tensors
    [labels].

    Logistic regression of a yes or no (Cox 1958, J. R. Stat. Soc. B 20, 215-242) with the score as its predictor; b is
    how ready whoever judged is to like anything, Rasch's (1960) parameter of a person. Of two replies that one person
    judged, one liked and one not, the liked one is the first with probability σ(r_1 − r_2), whatever b is: scores mean
    the same as with `bradley_terry_loss`, so labels and pairs may train one model. KTO (Ethayarajh et al. 2024,
    arXiv:2402.01306) is another thing: it trains a policy on labels, without a reward model.

    The gradient by r, and by b, is w·(σ(r + b) − z).
    """
    assert scores.shape == labels.shape == weights.shape == biases.shape and scores.dim() == 1
    logits = scores + biases
    return -(weights * torch.where(labels > 0.5, F.logsigmoid(logits), F.logsigmoid(-logits))).sum()


def vote_targets(first_votes: Tensor, second_votes: Tensor) -> Tensor:
    """Soft labels from votes: (a + ½) / (a + b + 1), the probability that the first reply wins; all tensors [pairs].

    The mean of Jeffreys' prior, Beta(½, ½), after a votes to b: no vote is ever certain, and the best score difference,
    log((a + ½)/(b + ½)), is finite where all votes agree, ln 21 for 10 to 0. ValueError for negative numbers.
    """
    assert first_votes.shape == second_votes.shape
    if bool((first_votes < 0).any()) or bool((second_votes < 0).any()):
        raise ValueError("votes must not be negative")
    return (first_votes + 0.5) / (first_votes + second_votes + 1)


def davidson_loss(
    first_scores: Tensor, second_scores: Tensor, outcomes: Tensor, weights: Tensor, log_nu: Tensor
) -> Tensor:
    """−Σ w·log P(outcome), with ties as an outcome of their own; tensors [pairs], log_nu a scalar, in nats.

        P(first wins) = e^(Δ/2) / Z    P(tie) = ν / Z    P(second wins) = e^(−Δ/2) / Z    Z = e^(Δ/2) + ν + e^(−Δ/2)

    with Δ = r_first − r_second; Davidson 1970 (J. Am. Stat. Assoc. 65, 317-328), with worths π = e^r. `outcomes`
    are 1 (first won), 0.5 (tie) or 0; anything else is a ValueError. `log_nu` is learnt beside the scores: equally
    good replies tie with probability ν/(2 + ν). Without any tie its best value is −∞, with ties only +∞.

    Why not Rao and Kupper 1967: here P(first wins | no tie) = σ(Δ) exactly, so a score difference means the same with
    and without ties, and with the Bradley-Terry loss; theirs moves the odds of a strict win by its tie parameter.

    The gradient by r_first is −w·(s − (P(first wins) − P(second wins)))/2 with s = 1, 0 or −1, and by log ν
    −w·([tie] − P(tie)). A tie draws scores together, which dropping it does not.
    """
    assert first_scores.shape == second_scores.shape == outcomes.shape == weights.shape and first_scores.dim() == 1
    assert log_nu.dim() == 0
    index = (2 * outcomes).round().long()
    if bool((index != 2 * outcomes).any()) or bool(((index < 0) | (index > 2)).any()):
        raise ValueError(f"outcomes must be 1 (the first won), 0.5 (a tie) or 0, got {sorted(set(outcomes.tolist()))}")
    half = (first_scores - second_scores) / 2
    logits_P3 = torch.stack([-half, log_nu.to(half.dtype).expand_as(half), half], dim=1)
    return -(weights * logits_P3.log_softmax(dim=1).gather(1, index[:, None])[:, 0]).sum()


def plackett_luce_loss(scores_N: Tensor, rankings: Sequence[Sequence[Sequence[int]]], weights: Tensor) -> Tensor:
    """−Σ w·log P(ranking): the best reply is chosen by a softmax, then the best of the rest, and so on; in nats.

        P(y_1 ≻ y_2 ≻ … ≻ y_K) = Π_k e^(r_k) / Σ_(j ≥ k) e^(r_j)

    Luce 1959, Plackett 1975. `rankings` are tie groups, best to worst, of indices into `scores_N` [N]; `weights`
    [rankings]. K = 2 is Bradley-Terry. A tie group means that the order inside it was not told: its likelihood is the
    exact sum over all its orders, so a ranking of ties only has likelihood 1 and teaches nothing. (That is another
    meaning than Davidson's, where a tie says that the replies are about equally good.)

    ValueError for a tie group of more than `LARGEST_TIE_GROUP` replies with others below it; the last group may have
    any size, since its orders sum to 1.
    """
    assert scores_N.dim() == 1 and weights.shape == (len(rankings),)
    # Rankings whose groups have the same sizes are one batch.
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, groups in enumerate(rankings):
        replies = [i for group in groups for i in group]
        assert replies and all(groups) and len(set(replies)) == len(replies), groups
        too_large = [len(group) for group in groups[:-1] if len(group) > LARGEST_TIE_GROUP]
        if too_large:
            raise ValueError(
                f"ranking {number} has a tie group of {too_large[0]} replies with others below it; Plackett-Luce sums "
                f"over its orders and takes at most {LARGEST_TIE_GROUP}: rank fewer replies, or take the pairwise loss "
                "with ties (Davidson)"
            )
        alike[tuple(len(group) for group in groups)].append(number)
    total = torch.zeros((), dtype=scores_N.dtype, device=scores_N.device)
    for sizes, numbers in alike.items():
        index = torch.tensor([[i for group in rankings[n] for i in group] for n in numbers], device=scores_N.device)
        total = total + (weights[numbers] * _log_likelihood(scores_N[index], sizes)).sum()
    return -total


def _log_likelihood(scores_RK: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """log P [R] of R rankings whose replies stand best to worst and whose tie groups have these sizes."""
    found, first = scores_RK.new_zeros(len(scores_RK)), 0
    for size in sizes[:-1]:
        below_R = scores_RK[:, first + size :].logsumexp(dim=1)
        found = found + _log_all_orders(scores_RK[:, first : first + size], below_R)
        first += size
    return found


def _log_all_orders(group_RG: Tensor, below_R: Tensor) -> Tensor:
    """log of the sum, over all orders of the group, of the probability that it comes out on top in this order.

    p(S) = Σ_(i∈S) e^(r_i) / (Σ_(j∈S) e^(r_j) + e^below) · p(S∖i), p(∅) = 1, for all subsets S of the group, smallest
    first: 2^G sums instead of G! products.
    """
    log_p = torch.zeros_like(below_R)[:, None]
    for members, without in _subsets(group_RG.shape[1]):
        scores_RSC = group_RG[:, torch.tensor(members, device=group_RG.device)]
        before_RSC = log_p[:, torch.tensor(without, device=group_RG.device)]
        remaining_RS = torch.logaddexp(scores_RSC.logsumexp(dim=2), below_R[:, None])
        log_p = (scores_RSC + before_RSC).logsumexp(dim=2) - remaining_RS
    return log_p[:, 0]


@lru_cache
def _subsets(size: int) -> list[tuple[list[tuple[int, ...]], list[list[int]]]]:
    """For c = 1 … size: the subsets of c members, and where each stands, without each member, among those of c − 1."""
    place: dict[tuple[int, ...], int] = {(): 0}
    found = []
    for count in range(1, size + 1):
        members = list(combinations(range(size), count))
        found.append((members, [[place[s[:i] + s[i + 1 :]] for i in range(count)] for s in members]))
        place = {subset: number for number, subset in enumerate(members)}
    return found


def centring_penalty(chosen_scores: Tensor, rejected_scores: Tensor, weights: Tensor) -> Tensor:
    """Σ w·(r_w + r_l)²: holds the level of the scores at 0, which the losses above leave free; all tensors [pairs].

    Eisenstein et al. 2023 (arXiv:2312.09244, equation 2), who add it times η = 0.01; with weights of 1/pairs it is
    the mean of the squares. The gradient by either score is 2·w·(r_w + r_l): the difference is not touched.
    """
    assert chosen_scores.shape == rejected_scores.shape == weights.shape and chosen_scores.dim() == 1
    return (weights * (chosen_scores + rejected_scores) ** 2).sum()


def fit_temperature(margins: Tensor | Sequence[float], targets: Tensor | Sequence[float] | None = None) -> float:
    """The T > 0 that minimises −Σ [q·log σ(m/T) + (1 − q)·log σ(−m/T)] over held-out pairs; both [pairs].

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599) of a model of pairs: `margins` m = r_w − r_l, `targets` q as
    in `bradley_terry_loss`. T > 1: the model was too sure. Dividing by T changes no order, so no accuracy.

    The loss is convex in 1/T; its derivative Σ m·(σ(m/T) − q) is bisected, in float64. T is held in
    `TEMPERATURE_BOUNDS`: pairs that are all right would send it to 0, pairs that are right no more often than wrong to
    infinity. Margins that are all 0 leave it at 1. ValueError for no pairs, or for numbers that are not finite.
    """
    m = torch.as_tensor(margins, dtype=torch.float64).detach().cpu()
    q = torch.ones_like(m) if targets is None else torch.as_tensor(targets, dtype=torch.float64).detach().cpu()
    assert m.shape == q.shape and m.dim() == 1
    if m.numel() == 0 or not bool(m.isfinite().all() and q.isfinite().all()):
        raise ValueError(f"a temperature is fitted to finite margins of at least one pair, got {m.numel()} pairs")
    if not bool(m.any()):
        return 1.0
    low, high = (torch.tensor(bound, dtype=torch.float64).log() for bound in TEMPERATURE_BOUNDS)
    # The slope by 1/T falls as T grows: below the best T it is positive.
    for _ in range(80):
        middle = (low + high) / 2
        slope = (m * ((m / middle.exp()).sigmoid() - q)).sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(((low + high) / 2).exp())
