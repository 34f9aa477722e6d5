"""Numbers that judge a model: intervals, calibration, correlation. numpy in, floats out."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


FEW_CLUSTERS = 5
"""Fewer give no bootstrap interval: the draws are those few over again, and of one they are all the same."""


def bootstrap_interval(
    values: ArrayLike, clusters: ArrayLike | None = None, *, level: float = 0.95, draws: int = 4000
) -> list[float] | None:
    """Percentile bootstrap interval of the mean of `values` [n], its two ends; None of fewer than FEW_CLUSTERS.

    With `clusters` [n] whole clusters are drawn with replacement (pairs of one prompt are not independent), and the
    mean is taken over all values of the drawn clusters. The generator's seed is fixed: the same values give the same
    interval.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("an interval needs at least one value, got none")
    drawn = np.arange(x.size) if clusters is None else np.asarray(clusters)
    if len(np.unique(drawn)) < FEW_CLUSTERS:
        return None
    means = _drawn_means(x, np.ones(x.size), drawn, draws)
    ends: list[float] = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return ends


def _drawn_means(x: Floats, counted: Floats, clusters: ArrayLike, draws: int = 4000) -> Floats:
    """Mean of `x` where `counted` is 1, over whole clusters drawn with replacement; NaN for a draw that has none."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(index, weights=x * counted), np.bincount(index, weights=counted)
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(draws, len(sums)))
    with np.errstate(invalid="ignore"):
        means: Floats = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def wilson_interval(values: ArrayLike, clusters: ArrayLike | None = None) -> tuple[float, float]:
    """95 % score interval of the mean of `values` [n], each in [0, 1]: it stays within [0, 1] and is honest for few.

        (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   z = 1.96

    Wilson 1927. With `clusters` [n], n is the effective number of values, p(1 − p) / Var(p), where Var(p) is the
    between-cluster one of a ratio of sums (Korn and Graubard 1998); at most the number of values, and that of clusters
    where nothing varies. No draws: closed form, for pages that are computed while somebody waits.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("an interval needs at least one value, got none")
    assert ((x >= 0) & (x <= 1)).all()
    p, n = float(x.mean()), float(x.size)
    if clusters is not None:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        sums, counts = np.bincount(index, weights=x), np.bincount(index)
        groups = len(sums)
        variance = float(((sums - p * counts) ** 2).sum()) / n**2 * groups / max(1, groups - 1)
        n = min(n, p * (1 - p) / variance) if variance > 0 and p * (1 - p) > 0 else float(groups)
    z = 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


_BETS = (np.arange(199) + 0.5) / 199
_WEIGHTS = (_BETS * (1 - _BETS)) ** 4 / ((_BETS * (1 - _BETS)) ** 4).sum()


def log_capital(values: Floats, counts: ArrayLike, m: float) -> Floats:
    """log K(m) of `confidence_sequence`, of `values` [V] seen `counts` [..., V] times; m is in (0, 1)."""
    x = values[:, None]
    by_bet = np.asarray(counts, dtype=np.float64) @ np.log(x * _BETS / m + (1 - x) * (1 - _BETS) / (1 - m))
    largest = by_bet.max(axis=-1)
    found: Floats = largest + np.log(np.exp(by_bet - largest[..., None]) @ _WEIGHTS)
    return found


def confidence_sequence(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """An interval of the mean of `values` [n] in [0, 1] that may be looked at after each of them: with probability
    `level` the mean is in all the intervals, of n = 1, 2, 3, ..., at once, so one may stop whenever one likes.

        { m : K(m) < 1/(1 − level) },    K(m) = Σ_q w_q Π_i ( x_i·q/m + (1 − x_i)·(1 − q)/(1 − m) )

    K(m) is the capital of a gambler who bets against the mean being m and begins with 1, spread over the bets q with
    the weights w of a Beta(5, 5). Where m is the mean every factor is 1 in expectation, so the capital ever reaches
    1/(1 − level) with probability 1 − level at most (Ville 1939). Waudby-Smith and Ramdas 2024, JRSS-B 86 (1), 1-27;
    the mixture is that of Robbins 1970, Ann. Math. Stat. 41, 1397-1409, over bets on values between 0 and 1: a tie is
    ½. The values are of one law and independent. K is log-convex and at most 1 at the values' mean, so the ends are
    found by halving. The order of the values changes nothing; without any it is (0, 1).
    """
    x, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if x.size == 0:
        return 0.0, 1.0
    assert x[0] >= 0 and x[-1] <= 1

    def end(outside: float) -> float:
        within = float(x @ counts) / float(counts.sum())
        while abs(within - outside) > 1e-6:
            middle = (within + outside) / 2
            kept = log_capital(x, counts, middle) < -math.log(1 - level)
            within, outside = (middle, outside) if kept else (within, middle)
        return outside

    return end(0.0), end(1.0)


def length_controlled(
    shares: ArrayLike, lengths: ArrayLike, clusters: ArrayLike
) -> tuple[float, tuple[float, float], float]:
    """(win rate at equal length, its 95 % interval, slope) of `shares` [n] of the win, `lengths` [n] by which the reply
    was longer than the other one.

        P(win) = σ(θ + φ·tanh(d / std(d))),    the win rate at equal length is σ(θ)

    Dubois et al. 2024 (arXiv:2404.04475), without their term for how hard an instruction is, which needs other models.
    As in theirs the length is squashed, so that a few very long replies do not decide. A normal prior of variance 25
    on θ and φ keeps an undefeated side finite. The interval is a sandwich over whole `clusters` [n] (Liang and Zeger
    1986), for one look at a fixed number of labels.
    """
    y, d = np.asarray(shares, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if y.size == 0:
        raise ValueError("a win rate needs at least one comparison, got none")
    spread = math.sqrt(float((d**2).mean()))  # about 0, where both are as long
    x = np.stack([np.ones_like(d), np.tanh(d / spread) if spread else d], axis=1)
    fit, ridge = np.zeros(2), np.eye(2) / 25
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ fit))
        information = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(information, x.T @ (y - p) - ridge @ fit)
        fit = fit + step
        if float(np.abs(step).max()) < 1e-10:
            break
    p = 1 / (1 + np.exp(-x @ fit))
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((index.max() + 1, 2))
    np.add.at(sums, index, x * (y - p)[:, None])
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x + ridge)
    half = 1.959963984540054 * math.sqrt(float((bread @ (sums.T @ sums) @ bread)[0, 0]))
    low, middle, high = (float(1 / (1 + np.exp(-value))) for value in (fit[0] - half, fit[0], fit[0] + half))
    return middle, (low, high), float(fit[1])


def best_of_n_kl(n: int) -> float:
    """ln n − (n−1)/n: at most so many nats lie between best-of-n sampling and the policy it samples from.

    Exact when no two replies score alike, less with ties (Beirami et al. 2024, arXiv:2401.01879). What PPO buys with
    its KL is compared with what best-of-n gets for this one: n = 4: 0.6363, 16: 1.8351, 64: 3.1745.
    """
    if n < 1:
        raise ValueError(f"best of n={n}: needs at least one reply")
    return math.log(n) - (n - 1) / n


def best_of_n(scores_PN: Floats, values_PN: Floats, n: int) -> Floats:
    """Expected value [P] of the best by `scores_PN` of n replies drawn without replacement from each prompt's N.

        Σ_i v_(i) · C(i − 1, n − 1) / C(N, n),    v_(i) the value of the reply with the i-th lowest score

    The mean over all subsets of n, so every reply of the pool tells about every n (Nakano et al. 2021,
    arXiv:2112.09332, appendix I); unbiased. Which of equal scores is the best is drawn, so they share their values.
    """
    P, N = scores_PN.shape
    assert values_PN.shape == (P, N) and 1 <= n <= N
    weights = np.array([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])
    found = np.empty(P)
    for prompt in range(P):
        order = np.argsort(scores_PN[prompt], kind="stable")
        _, group, counts = np.unique(scores_PN[prompt][order], return_inverse=True, return_counts=True)
        shared = np.bincount(group, weights=values_PN[prompt][order]) / counts
        found[prompt] = weights @ shared[group]
    return found


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's r; 0 when either side is constant (there is nothing to correlate with)."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def explained_variance(values: ArrayLike, returns: ArrayLike) -> float:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 a constant one, below 0 worse than that."""
    v, r = np.asarray(values, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    # Constant returns leave nothing to explain; their computed variance is rounding, not exactly 0.
    constant = np.ptp(r) <= 1e-12 * max(1.0, float(np.abs(r).max()))
    return 0.0 if constant else float(1 - (r - v).var() / r.var())


def calibration(margins: ArrayLike, *, bins: int = 8) -> tuple[list[dict[str, float]], float]:
    """Is a Bradley-Terry model as sure as it is right?

    `margins` [n] are score differences r_w − r_l of pairs whose winner is known. The model's stated confidence in its
    own choice is σ(|margin|) and it is right when margin > 0 (half right at 0). Pairs are put in equally filled bins
    by confidence. Returns the bins (confidence, accuracy, count) and the expected calibration error
    Σ count/n·|accuracy − confidence| (Naeini et al. 2015).
    """
    m = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(m)))
    right = np.where(m > 0, 1.0, np.where(m == 0, 0.5, 0.0))
    order = np.argsort(confidence, kind="stable")
    table = [
        {"confidence": float(confidence[part].mean()), "accuracy": float(right[part].mean()), "count": int(part.size)}
        for part in np.array_split(order, min(bins, max(1, m.size)))
        if part.size
    ]
    error = sum(row["count"] / m.size * abs(row["accuracy"] - row["confidence"]) for row in table)
    return table, float(error)


def calibration_noise(margins: ArrayLike) -> tuple[float, float]:
    """(mean, 95th percentile) of the ECE that a perfectly calibrated model of these `margins` [n] would show.

    The ECE of few pairs is never 0: right and wrong are drawn with the stated confidence, 200 times.
    """
    size = np.abs(np.asarray(margins, dtype=np.float64))
    right = np.random.default_rng(0).random((200, size.size)) < 1 / (1 + np.exp(-size))
    errors = [calibration(np.where(row, size, -size))[1] for row in right]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def within_correlation(x: ArrayLike, y: ArrayLike, clusters: ArrayLike) -> float:
    """Pearson's r of `x` and `y` [n] after each cluster's own mean is taken off both: what is left within a prompt.

    0 when nothing varies within any cluster.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(index)
    centred = []
    for values in (x, y):
        v = np.asarray(values, dtype=np.float64)
        off = v - (np.bincount(index, weights=v) / counts)[index]
        # What rounding leaves of a value that is the same throughout its cluster is no variation.
        centred.append(np.where(np.abs(off) <= 1e-12 * np.abs(v).max(initial=1.0), 0.0, off))
    return correlation(*centred)


def bootstrap_gap(values: ArrayLike, group: ArrayLike, clusters: ArrayLike) -> list[float] | None:
    """95 % percentile bootstrap interval of mean(`values` where `group`) − mean(those where not), whole clusters drawn.

    `values`, `group` (truth values) and `clusters` are [n]; both groups hold something. Draws that leave a group
    empty are left out; None of fewer than FEW_CLUSTERS.
    """
    x, g = np.asarray(values, dtype=np.float64), np.asarray(group, dtype=bool)
    if not g.any() or g.all():
        raise ValueError(f"a gap needs values in both groups, got {int(g.sum())} of {g.size} in the first")
    if len(np.unique(np.asarray(clusters))) < FEW_CLUSTERS:
        return None
    of, rest = (_drawn_means(x, side.astype(np.float64), clusters) for side in (g, ~g))
    ends: list[float] = np.nanquantile(of - rest, [(1 - 0.95) / 2, (1 + 0.95) / 2]).tolist()
    return ends


def auc(scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike) -> tuple[float, list[float]]:
    """(AUC, its 95 % interval): how often one of `scores` [n] with a true label is above one with a false one, ties
    half.

    The variance is DeLong's (DeLong et al. 1988, Biometrics 44, 837-845) for whole `clusters` [n] (Obuchowski 1997,
    Biometrics 53, 567-578): of each score the share of the other side that it is right about, summed by cluster. Where
    every cluster is one score the two are the same. The interval ends at 0 and 1; of one cluster it is all of that.
    """
    x, liked = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not liked.any() or liked.all():
        raise ValueError(f"an AUC needs labels of both kinds, got {int(liked.sum())} true of {liked.size}")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    right = np.empty_like(x)  # of each score: the share of the other side on the right side of it
    for side, sign in ((liked, 1.0), (~liked, -1.0)):
        others = np.sort(sign * x[~side])
        below, upto = (np.searchsorted(others, sign * x[side], how) for how in ("left", "right"))
        right[side] = (below + upto) / (2 * others.size)
    found = float(right[liked].mean())
    groups = len(np.unique(index))
    if groups < 2:
        return found, [0.0, 1.0]
    off, variance = [], 0.0
    for side in (liked, ~liked):
        of_cluster = np.bincount(index, weights=(right - found) * side, minlength=groups) / side.sum()
        those = len(np.unique(index[side]))
        variance += those / max(those - 1, 1) * float((of_cluster**2).sum())
        off.append(of_cluster)
    variance += 2 * groups / (groups - 1) * float((off[0] * off[1]).sum())
    half = 1.959963984540054 * math.sqrt(max(variance, 0.0))
    return found, [max(0.0, found - half), min(1.0, found + half)]
