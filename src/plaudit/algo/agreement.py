"""How far annotators agree: Krippendorff's alpha, Cohen's kappa, and what agreement allows a model.

numpy in, floats out. Our own code, from the papers: the package `krippendorff` is GPL.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

Metric = Literal["nominal", "ordinal", "interval"]
Unit = TypeVar("Unit")
Who = TypeVar("Who", int, str)


def krippendorff_alpha(values: ArrayLike, metric: Metric = "nominal") -> float | None:
    """Krippendorff's alpha of `values` [annotators, units], NaN where an annotator did not judge a unit.

        α = 1 − (n − 1) · Σ_u Σ_{i≠j in u} δ(v_i, v_j) / (m_u − 1)  /  Σ_{i≠j over all} δ(v_i, v_j)

    n counts the values of units that two or more judged, m_u those of unit u; δ is 0 or 1 for equal or not (nominal),
    (v_i − v_j)² (interval), or, between the c-th and the k-th of the values that occur, n_g of them equal to the g-th,
    (Σ_{g=c..k} n_g − (n_c + n_k)/2)² (ordinal). 1 is perfect agreement, 0 that of chance, below 0 worse than that.
    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". None where it is undefined: no unit with two
    values, or one value only, which leaves no disagreement to be expected.
    """
    table = np.asarray(values, dtype=np.float64)
    assert table.ndim == 2, table.shape
    # As in the paper: a table of coincidences between the values, which stays small however many units there are.
    given = ~np.isnan(table)
    judged = given.sum(axis=0)
    paired = judged >= 2
    used = given[:, paired]
    distinct, code = np.unique(table[:, paired][used], return_inverse=True)
    if len(distinct) < 2:
        return None
    units = np.broadcast_to(np.arange(used.shape[1]), used.shape)[used]
    counts_UV = np.zeros((used.shape[1], len(distinct)))
    np.add.at(counts_UV, (units, code), 1.0)
    scaled_UV = counts_UV / (judged[paired][:, None] - 1)
    coincidences_VV = scaled_UV.T @ counts_UV - np.diag(scaled_UV.sum(axis=0))
    totals_V = counts_UV.sum(axis=0)
    # The ordinal distance is the one between the middles of the values' places in the sorted row of all n values.
    places_V = totals_V.cumsum() - totals_V / 2 if metric == "ordinal" else distinct
    apart_VV = places_V[:, None] - places_V[None, :]
    delta_VV = (apart_VV != 0).astype(np.float64) if metric == "nominal" else apart_VV**2
    expected = float(totals_V @ delta_VV @ totals_V)
    return float(1 - (totals_V.sum() - 1) * float((coincidences_VV * delta_VV).sum()) / expected)


def cohen_kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Cohen's kappa of two annotators' answers to the same questions: (p_observed − p_chance) / (1 − p_chance).

    p_chance is what two annotators with these shares of answers would agree on by drawing them. Cohen 1960. None
    without answers, or where both always give the same one, which leaves nothing to chance.
    """
    assert len(first) == len(second)
    if not first:
        return None
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    answers = set(first) | set(second)
    chance = sum(first.count(a) * second.count(a) for a in answers) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def same_verdicts(judged: Mapping[Unit, Mapping[Who, int]]) -> Iterator[tuple[float, Unit]]:
    """Whether two people said the same (1 or 0), and the pair, for each two who ordered a pair of replies strictly;
    `judged` is pair -> person -> verdict: 1 the first reply is better, −1 the second is, 0 a tie."""
    for unit, given in judged.items():
        for one, other in combinations([sign for sign in given.values() if sign], 2):
            yield float(one == other), unit


def verdict_agreement(judged: Mapping[Unit, Mapping[Who, int]]) -> tuple[float | None, list[dict[str, Any]]]:
    """(Krippendorff's alpha, nominal, of verdicts as in `same_verdicts`; a row of each two people).

    Every pair is counted both ways round, since which of its replies is called the first means nothing. A row is
    {first, second, pairs, agreement: the share that is the same of those that both ordered strictly, kappa: Cohen's}.
    """
    people = sorted({who for given in judged.values() for who in given})
    place = {who: row for row, who in enumerate(people)}
    said = [(place[who], unit, sign) for unit, given in enumerate(judged.values()) for who, sign in given.items()]
    table = np.full((len(people), 2 * len(judged)), np.nan)
    if said:
        row, unit, sign = np.array(said).T
        table[row, 2 * unit], table[row, 2 * unit + 1] = sign, -sign
    answers: dict[tuple[Who, Who], list[tuple[int, int]]] = defaultdict(list)
    for given in judged.values():
        for one, other in combinations(sorted(given), 2):
            answers[one, other].append((given[one], given[other]))
    rows = []
    for (one, other), both in answers.items():
        same = [a == b for a, b in both if a and b]
        kappa = cohen_kappa(*([sign * said[who] for said in both for sign in (1, -1)] for who in (0, 1)))
        counts = {"first": one, "second": other, "pairs": len(both)}
        rows.append({**counts, "agreement": float(np.mean(same)) if same else None, "kappa": kappa})
    return krippendorff_alpha(table) if said else None, rows


def best_accuracy(agreement: float) -> float:
    """The highest accuracy that any model can expect on single annotators' labels who agree `agreement` of the time.

    Of a pair whose labels are drawn with probability p and 1 − p, two annotators agree with a = p² + (1 − p)², and
    always saying the likelier label is right with max(p, 1 − p) = (1 + √(2a − 1)) / 2. That is concave in a, so over
    pairs of different p it is an upper bound (Jensen). Below ½ agreement it is ½.
    """
    return 0.5 + 0.5 * max(0.0, 2 * agreement - 1) ** 0.5
