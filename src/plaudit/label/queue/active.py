"""Which items people see first: those whose answers a reward model can guess least.

Scores come from a process that has torch (stages/label_items.py); here is what becomes of them. The queue serves items
by priority, the higher first.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from plaudit.data.audit.near import THRESHOLD

PairRule = Literal["unsure", "max_min", "delta_ucb"]
"""What makes a pair of replies worth a label."""
By = Literal["unsure", "length", "max_min", "delta_ucb", "random"]


def gaps(scores_KM: ArrayLike) -> np.ndarray:
    """s_i − s_j of each pair of K replies by each of M members, [pairs, M], in the order of `itertools.combinations`.
    Scores are raw ones, whose differences are log odds."""
    s = np.asarray(scores_KM, dtype=np.float64)
    assert s.ndim == 2 and len(s) >= 2
    first, second = (np.array(side) for side in zip(*combinations(range(len(s)), 2), strict=True))
    return np.clip(s[first] - s[second], -500, 500)


def doubt(scores_KM: ArrayLike) -> np.ndarray:
    """How unsure a reward model of M members is of each pair of K replies, [pairs] in 0 to 1.

        h = −p·log₂ p − (1 − p)·log₂(1 − p),   p = mean_m σ(s_m,i − s_m,j)

    The entropy, in bits, of what the ensemble together predicts: large where every member is unsure, and where they
    contradict each other (uncertainty sampling by predictive entropy; Lewis and Gale 1994, Settles 2009).
    """
    p = (1 / (1 + np.exp(-gaps(scores_KM)))).mean(axis=1)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def worth(scores_KM: ArrayLike, by: PairRule) -> np.ndarray:
    """What a label of each pair of K replies is worth by a rule, [pairs]; only its order means something.

    - `unsure`: the pair's doubt;
    - `max_min`: |mean_m gap|, largest for the best and the worst reply;
    - `delta_ucb`: |mean_m gap| + std_m gap: how large the gap may well be, by what the members disagree about it
      (of one member it is max_min).

    The last two after ActiveUltraFeedback (arXiv:2603.09692), which finds pairs of large gaps more worth than doubtful
    ones: a label of them is rarely wrong, and far apart replies teach what differs.
    """
    found = gaps(scores_KM)
    match by:
        case "unsure":
            return doubt(scores_KM)
        case "max_min":
            return np.abs(found.mean(axis=1))
        case "delta_ucb":
            return np.abs(found.mean(axis=1)) + found.std(axis=1)


def priority(scores_KM: ArrayLike, texts: Sequence[str], by: By = "unsure") -> float:
    """The priority of an item in 0 to 1:

    - `unsure`: the mean doubt of its pairs of replies;
    - `length`: the mean over them of doubt times |a − b| / (a + b), a and b their lengths in characters: pairs that
      score alike and differ most in length come first, which is where people can teach that length alone is worth
      nothing;
    - `max_min`, `delta_ucb`: 2σ(w) − 1 of the pair that is worth most;
    - `random`: drawn, by the texts themselves.
    """
    if by == "random":
        return int.from_bytes(hashlib.sha256("\n".join(texts).encode()).digest()[:6]) / 256**6
    if by in ("max_min", "delta_ucb"):
        return float(np.tanh(worth(scores_KM, by).max() / 2))
    h = doubt(scores_KM)
    if by == "unsure":
        return float(h.mean())
    lengths = [len(text) for text in texts]
    unequal = [abs(a - b) / max(1, a + b) for a, b in combinations(lengths, 2)]
    return float((h * np.array(unequal)).mean())


def distinct(texts: Sequence[str], known: Sequence[str] = ()) -> list[int]:
    """The numbers of the texts that are worth a label: those that nearly say neither what one of `known` says nor what
    an earlier one of them does. Two texts nearly say the same where the Jaccard similarity of their sets of word
    triples is at least that of the audit of data (data/audit/near.py), here by the sets themselves."""
    seen, found = [_triples(text) for text in known], []
    for number, text in enumerate(texts):
        own = _triples(text)
        if all(len(own & other) < THRESHOLD * len(own | other) for other in seen):
            seen.append(own)
            found.append(number)
    return found


def _triples(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}
