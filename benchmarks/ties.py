"""Are ties worth keeping? The losses of algo/preferences.py on synthetic rankings whose true utility is known.

200 training prompts with K = 4 replies each. A reply is a vector of features, its utility a linear function of them
(std 1); the annotator sees it with Gaussian noise and gives replies within a tie margin of the best of their group its
rank, so that about 40 % of the pairs are ties. A linear scorer (no language model) is fitted to the rankings in four
ways:

    pairwise          Bradley-Terry on the strict pairs, ties dropped, each pair once: what pair-trainers do
    soft              Bradley-Terry on all pairs, a tie is the soft label 0.5
    k-wise            all pairs of a ranking with ties as an outcome of their own (Davidson)
    plackett-luce     the whole ranking; inside a tie group the order is unknown

The same optimiser (L-BFGS on all rankings until it stands still) and the same L2 penalty for all: from one grid, for
each way and seed the one with the best strict log-likelihood in a 4-fold cross-validation over the training prompts.
Nothing is chosen on the 1,000 held-out prompts. Figures there, in nats a pair where they are likelihoods:

    strict_ll    mean log σ(Δ) over strict pairs: P(win | no tie) is σ(Δ) for every way
    outcome_ll   mean log P(win, tie or loss) over all pairs under Davidson's ν, fitted for every way to its scores of
                 the training prompts
    accuracy     share of all pairs that are in the order of the true utility

Differences to `pairwise` come with two 95 % intervals: Student's t over the seeds (other utilities, other data: would
it happen again), and a bootstrap over the held-out prompts of all seeds (these fitted scorers).

    python benchmarks/ties.py [--seeds 5] [--noise 0.5 --tie-margin 1.02] [--json]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plaudit.algo.preferences import bradley_terry_loss, davidson_loss, plackett_luce_loss
from plaudit.algo.statistics import bootstrap_interval
from plaudit.run.provenance import versions

TRAIN, HELD_OUT, K = 200, 1000, 4
FEATURES = 20
PENALTIES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FOLDS = 4
WAYS = ("pairwise", "soft", "k-wise", "plackett-luce")
MEASURES = ("strict_ll", "outcome_ll", "accuracy")
# 97.5 % quantile of Student's t with 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Setting:
    """How many prompts, and how the annotator sees utilities of std 1."""

    noise: float = 0.5
    tie_margin: float = 1.02
    train: int = TRAIN
    held_out: int = HELD_OUT


@dataclass
class Data:
    """Rankings of P prompts; pairs are listed prompt by prompt, both tensors of one prompt's C(K, 2)."""

    features: Tensor
    """[P, K, F]"""
    utilities: Tensor
    """[P, K], without noise"""
    ranks: NDArray[np.int64]
    """[P, K]; 1 is best"""
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)
    outcomes: Tensor = field(init=False)
    """[pairs]: 1 where the first is better, 0.5 for a tie, 0."""

    def __post_init__(self) -> None:
        prompts, replies = self.ranks.shape
        pairs = [(p * replies + a, p * replies + b) for p in range(prompts) for a, b in combinations(range(replies), 2)]
        self.first, self.second = torch.tensor(pairs).T
        flat = torch.from_numpy(self.ranks).flatten()
        self.outcomes = (torch.sign(flat[self.second] - flat[self.first]).double() + 1) / 2

    def of(self, prompts: NDArray[np.int64]) -> "Data":
        return Data(self.features[prompts], self.utilities[prompts], self.ranks[prompts])

    def groups(self) -> list[list[list[int]]]:
        """The tie groups of every ranking, best to worst, as indices of the flattened replies."""
        count = self.ranks.shape[1]
        return [
            [[p * count + int(i) for i in np.flatnonzero(ranks == rank)] for rank in np.unique(ranks)]
            for p, ranks in enumerate(self.ranks)
        ]


def draw(rng: np.random.Generator, weight: NDArray[np.float64], prompts: int, setting: Setting) -> Data:
    """Replies with features N(0, 1), so that utilities have the std |weight| = 1, and the annotator's ranks of them."""
    features = rng.standard_normal((prompts, K, len(weight)))
    utilities = features @ weight
    seen = utilities + setting.noise * rng.standard_normal(utilities.shape)
    ranks = np.zeros((prompts, K), dtype=np.int64)
    for p, row in enumerate(seen):
        best, rank = np.inf, 0
        for i in np.argsort(-row):
            if best - row[i] > setting.tie_margin:
                best, rank = row[i], rank + 1
            ranks[p, i] = rank
    return Data(torch.from_numpy(features), torch.from_numpy(utilities), ranks)


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimiser.step(closure)


def fit(way: str, data: Data, penalty: float) -> Tensor:
    """The scorer's weights [F]: the mean loss a ranking, plus penalty/2 times the squared norm."""
    flat = data.features.flatten(0, 1)
    weight = torch.zeros(flat.shape[1], dtype=torch.float64, requires_grad=True)
    log_nu = torch.zeros((), dtype=torch.float64, requires_grad=True)
    rankings, groups = len(data.features), data.groups()
    pairs = torch.full_like(data.outcomes, rankings / len(data.outcomes))
    strict = pairs * (data.outcomes != 0.5)

    def loss() -> Tensor:
        scores = flat @ weight
        first, second = scores[data.first], scores[data.second]
        if way == "k-wise":
            value = davidson_loss(first, second, data.outcomes, pairs, log_nu)
        elif way == "plackett-luce":
            value = plackett_luce_loss(scores, groups, scores.new_ones(rankings))
        else:
            value = bradley_terry_loss(first, second, pairs if way == "soft" else strict, targets=data.outcomes)
        return value / rankings + penalty / 2 * (weight**2).sum()

    minimise(loss, [weight, log_nu])
    return weight.detach()


def fit_log_nu(weight: Tensor, data: Data) -> Tensor:
    """Davidson's log ν for given scores."""
    scores = data.features.flatten(0, 1) @ weight
    log_nu = torch.zeros((), dtype=torch.float64, requires_grad=True)
    each = torch.full_like(data.outcomes, 1 / len(data.outcomes))
    minimise(lambda: davidson_loss(scores[data.first], scores[data.second], data.outcomes, each, log_nu), [log_nu])
    return log_nu.detach()


def evaluate(weight: Tensor, log_nu: Tensor, data: Data) -> dict[str, NDArray[np.float64]]:
    """Each measure for every pair [pairs]; strict_ll is NaN at ties."""
    scores = data.features.flatten(0, 1) @ weight
    half = (scores[data.first] - scores[data.second]) / 2
    log_p = torch.stack([-half, log_nu.expand_as(half), half], dim=1).log_softmax(dim=1)
    outcome_ll = log_p.gather(1, (2 * data.outcomes).long()[:, None])[:, 0]
    strict_ll = -torch.log1p(torch.exp(-2 * half * (2 * data.outcomes - 1)))
    utilities = data.utilities.flatten()
    right = ((half > 0) == (utilities[data.first] > utilities[data.second])).double()
    return {
        "strict_ll": torch.where(data.outcomes == 0.5, torch.nan, strict_ll).numpy(),
        "outcome_ll": outcome_ll.numpy(),
        "accuracy": right.numpy(),
    }


def choose_penalty(way: str, data: Data, rng: np.random.Generator) -> float:
    """The penalty with the best strict log-likelihood on held-out folds of the training prompts."""
    order = rng.permutation(len(data.features))
    found = []
    for penalty in PENALTIES:
        likelihoods = []
        for fold in np.array_split(order, FOLDS):
            weight = fit(way, data.of(np.setdiff1d(order, fold)), penalty)
            likelihoods.append(evaluate(weight, torch.zeros((), dtype=torch.float64), data.of(fold))["strict_ll"])
        found.append(float(np.nanmean(np.concatenate(likelihoods))))
    return PENALTIES[int(np.argmax(found))]


def one_seed(seed: int, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one seed, and for every way and measure its values at every held-out pair."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(FEATURES)
    weight /= np.linalg.norm(weight)
    train, held_out = (draw(rng, weight, count, setting) for count in (setting.train, setting.held_out))
    row: dict[str, Any] = {"seed": seed, "ties": round(float((train.outcomes == 0.5).double().mean()), 3)}
    values = {}
    for way in WAYS:
        penalty = choose_penalty(way, train, np.random.default_rng(seed))
        fitted = fit(way, train, penalty)
        values[way] = evaluate(fitted, fit_log_nu(fitted, train), held_out)
        row[way] = {"penalty": penalty, **{name: round(float(np.nanmean(values[way][name])), 5) for name in MEASURES}}
    return row, values


def student_interval(differences: list[float]) -> tuple[float, float]:
    mean, half = np.mean(differences), STUDENT[len(differences) - 2] * np.std(differences, ddof=1)
    half /= np.sqrt(len(differences))
    return float(mean - half), float(mean + half)


def measure(seeds: int, setting: Setting) -> dict[str, Any]:
    """Every way on every seed, and its differences to `pairwise`."""
    started = time.perf_counter()
    rows, values = zip(*(one_seed(seed, setting) for seed in range(seeds)), strict=True)
    pairs = K * (K - 1) // 2
    prompts = np.repeat(np.arange(seeds * setting.held_out), pairs)
    differences: dict[str, Any] = {}
    for way in WAYS[1:]:
        differences[way] = {}
        for name in MEASURES:
            by_seed = [row[way][name] - row["pairwise"][name] for row in rows]
            each = np.concatenate([of[way][name] - of["pairwise"][name] for of in values])
            there = ~np.isnan(each)
            differences[way][name] = {
                "mean": round(float(np.mean(by_seed)), 5),
                "by_seed": [round(value, 5) for value in by_seed],
                "ci_seeds": [round(end, 5) for end in student_interval(by_seed)],
                "ci_prompts": [
                    round(end, 5) for end in bootstrap_interval(each[there], prompts[there]) or [np.nan, np.nan]
                ],
            }
    return {
        "workload": "ties",
        "what": f"{setting.train} prompts, K={K}, noise {setting.noise}, tie margin {setting.tie_margin}",
        "ties": round(float(np.mean([row["ties"] for row in rows])), 3),
        "mean": {way: {n: round(float(np.mean([row[way][n] for row in rows])), 5) for n in MEASURES} for way in WAYS},
        "minus_pairwise": differences,
        "seeds": list(rows),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, len(STUDENT) + 2), metavar="2-10")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--noise", type=float, default=Setting.noise)
    parser.add_argument("--tie-margin", type=float, default=Setting.tie_margin, help="change it with the noise")
    given = parser.parse_args()
    found = measure(given.seeds, Setting(given.noise, given.tie_margin))
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['what']}: {100 * found['ties']:.0f} % ties, {given.seeds} seeds, {found['seconds']} s")
    print(f"{'':14}" + "".join(f"{name:>12}" for name in MEASURES))
    for way in WAYS:
        print(f"{way:14}" + "".join(f"{found['mean'][way][name]:12.4f}" for name in MEASURES))
    print("\nminus pairwise: mean (95 % over seeds) (95 % over prompts)")
    for way in WAYS[1:]:
        for name, got in found["minus_pairwise"][way].items():
            ends = " ".join("({:+.4f} to {:+.4f})".format(*got[ci]) for ci in ("ci_seeds", "ci_prompts"))
            print(f"{way:14}{name:>12}{got['mean']:+9.4f} {ends}")


if __name__ == "__main__":
    main()
