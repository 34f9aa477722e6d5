"""One score from the M members of an ensemble of reward models: how far to trust what they disagree on.

Coste et al. 2023 (arXiv:2310.02743) and Eisenstein et al. 2023 (arXiv:2312.09244): a policy finds replies that one
member likes by mistake; a rule that leans to the members who like it least pays less for them.
"""

import math
from typing import assert_never

from torch import Tensor

from plaudit.algo.names import Aggregation


def aggregate(scores_MB: Tensor, how: Aggregation, *, k: float = 1.0, beta: float = 1.0) -> Tensor:
    """Scores [B] from the scores [M, B] of M members, all normalised alike (raw scores of two members have two scales).

    - `mean`: Σ r / M
    - `min`: the member who likes the reply least
    - `mean_minus_std`: mean − k·std, the std of the members at hand (divided by M, so that one member has std 0)
    - `pessimistic`: −β·log(Σ e^(−r/β) / M), between the two: β → ∞ gives the mean, β → 0 the min.
      r = {1, 2, 4}: β = 10 → 2.2569, 1 → 1.7496, 0.1 → 1.1099

    ValueError for a `k` below 0 or a `beta` not above 0.
    """
    assert scores_MB.dim() == 2 and len(scores_MB) > 0, scores_MB.shape
    if k < 0 or beta <= 0:
        raise ValueError(f"k={k} must be at least 0 and beta={beta} above 0")
    match how:
        case "mean":
            return scores_MB.mean(dim=0)
        case "min":
            return scores_MB.min(dim=0).values
        case "mean_minus_std":
            return scores_MB.mean(dim=0) - k * scores_MB.std(dim=0, correction=0)
        case "pessimistic":
            return -beta * ((-scores_MB / beta).logsumexp(dim=0) - math.log(len(scores_MB)))
        case _:
            assert_never(how)
