"""How reliable each annotator is, without knowing the right answers: Dawid and Skene's EM.

Left out: difficulty of items (GLAD), and answers that depend on who wrote the reply.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEAST_ANNOTATORS = 3
"""With two, only the product of their reliabilities can be known."""
LEAST_PAIRS = 10
"""Pairs somebody must have judged beside others before a reliability is stated."""
PRIOR_RIGHT, PRIOR_WRONG = 3.0, 1.0
"""Pseudo-verdicts of everybody in `reliabilities`: as if 3 of 4 had been right."""


@dataclass(frozen=True)
class DawidSkene:
    """`classes_UC` [units, classes] how likely each class is, `shares_C` of the classes, `confusion_ACC` [annotators,
    true class, answer]."""

    classes_UC: np.ndarray
    shares_C: np.ndarray
    confusion_ACC: np.ndarray


def dawid_skene(
    units: ArrayLike,
    annotators: ArrayLike,
    answers: ArrayLike,
    *,
    counts: ArrayLike = 1.0,
    right: float = 0.0,
    wrong: float = 0.0,
    steps: int = 500,
    tolerance: float = 1e-8,
) -> DawidSkene:
    """Fit answers [n], each of one annotator to one unit, all numbered from 0, by expectation-maximisation.

        E:  P(unit u is c) ∝ share_c · Π over its answers  confusion[annotator, c, answer]
        M:  confusion[a, c, k] ∝ Σ_u P(u is c) · (how often a answered k) + prior,   share_c = mean_u P(u is c)

    Dawid and Skene 1979 (Applied Statistics 28, 20-28), started as there from each unit's shares of answers. `right`
    and `wrong` are pseudo-counts on and off the diagonal (theirs: none); some of `right` keeps the class names from
    being swapped. `counts` [units] says for how many equal units each of them stands. It ends when no probability moves
    by more than `tolerance`.
    """
    u, a, k = (np.asarray(values, dtype=np.int64) for values in (units, annotators, answers))
    assert u.shape == a.shape == k.shape and u.ndim == 1 and u.size
    U, A, C = int(u.max()) + 1, int(a.max()) + 1, int(k.max()) + 1
    counts_U1 = np.broadcast_to(np.asarray(counts, dtype=np.float64), (U,))[:, None]
    classes_UC = np.zeros((U, C))
    np.add.at(classes_UC, (u, k), 1.0)
    classes_UC /= classes_UC.sum(axis=1, keepdims=True)
    prior_CC = np.full((C, C), wrong) + (right - wrong) * np.eye(C)
    cell = a * C + k
    for _ in range(steps):
        weighted_UC = classes_UC * counts_U1
        shares_C = weighted_UC.sum(axis=0) / counts_U1.sum()
        counts_ACC = np.tile(prior_CC, (A, 1, 1))
        for c in range(C):
            counts_ACC[:, c] += np.bincount(cell, weighted_UC[u, c], minlength=A * C).reshape(A, C)
        totals_AC1 = counts_ACC.sum(axis=2, keepdims=True)
        confusion_ACC = np.divide(counts_ACC, totals_AC1, out=np.full_like(counts_ACC, 1 / C), where=totals_AC1 > 0)
        with np.errstate(divide="ignore"):
            said_ACC = np.log(confusion_ACC)
            sums = [np.bincount(u, said_ACC[:, c][a, k], minlength=U) for c in range(C)]
            logs_UC = np.log(shares_C) + np.stack(sums, axis=1)
        logs_UC -= logs_UC.max(axis=1, keepdims=True)
        new_UC = np.exp(logs_UC)
        new_UC /= new_UC.sum(axis=1, keepdims=True)
        moved = float(np.abs(new_UC - classes_UC).max())
        classes_UC = new_UC
        if moved <= tolerance:
            break
    return DawidSkene(classes_UC, shares_C, confusion_ACC)


def reliabilities(judged: Mapping[Hashable, Mapping[int, int]]) -> dict[int, float]:
    """Annotator -> probability that a strict verdict of theirs is the right one, from `judged`: pair -> {annotator:
    1 or −1, which of the two replies is better}.

    Which of two replies is called the first means nothing, so every pair also counts turned round: that makes both
    kinds of error equally likely (the one-coin model). Only pairs that two or more judged say anything; empty with
    fewer than three annotators there, and without those who judged fewer than ten such pairs.
    """
    several = [dict(given) for given in judged.values() if len(given) >= 2]
    names = sorted({name for given in several for name in given})
    if len(names) < LEAST_ANNOTATORS:
        return {}
    number = {name: i for i, name in enumerate(names)}
    # Few people give few different sets of answers, of however many pairs.
    kinds = Counter(
        tuple(sorted((number[name], int(sign == side)) for name, sign in given.items()))
        for given in several
        for side in (1, -1)
    )
    rows = [(u, who, answer) for u, kind in enumerate(kinds) for who, answer in kind]
    u, who, answer = np.array(rows, dtype=np.int64).T
    counts = np.array(list(kinds.values()))
    fitted = dawid_skene(u, who, answer, counts=counts, right=PRIOR_RIGHT, wrong=PRIOR_WRONG, steps=200, tolerance=1e-6)
    pairs = np.bincount(who, counts[u], minlength=len(names)) // 2
    diagonals = fitted.confusion_ACC.diagonal(axis1=1, axis2=2).mean(axis=1)
    return {name: float(diagonals[i]) for i, name in enumerate(names) if pairs[i] >= LEAST_PAIRS}


def log_odds(reliability: float, bound: float = 4.0) -> float:
    """The weight of a verdict that is right with this probability: ln(p / (1 − p)), from 0 up to `bound`.

    With it, a weighted majority is the best guess that independent voters allow (Nitzan and Paroush 1982). Somebody
    worse than chance weighs nothing rather than counting for the opposite.
    """
    p = min(max(reliability, 0.5), 1 - 1e-9)
    return float(min(bound, np.log(p / (1 - p))))


def mean_ranks(ranks: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Weighted mean of rankings [annotators, replies] reply by reply; equal weights where all are 0."""
    w = np.asarray(weights, dtype=np.float64)
    assert w.shape == (len(ranks),) and (w >= 0).all()
    return [round(float(x), 9) for x in np.average(ranks, axis=0, weights=w if w.any() else None)]
