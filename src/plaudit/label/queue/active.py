"""Which items people see first: those whose answers a reward model can guess least.

Scores come from a process that has torch (stages/label_items.py); here is what becomes of them. The queue serves items
by priority, the higher first.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from plaudit.data.audit.near import THRESHOLD

By = Literal["unsure", "length"]


def doubt(scores_KM: ArrayLike) -> np.ndarray:
    """How unsure a reward model of M members is of each pair of K replies, [pairs] in 0 to 1, in the order of
    `itertools.combinations`.

        h = −p·log₂ p − (1 − p)·log₂(1 − p),   p = mean_m σ(s_m,i − s_m,j)

    The entropy, in bits, of what the ensemble together predicts: large where every member is unsure, and where they
    contradict each other (uncertainty sampling by predictive entropy; Lewis and Gale 1994, Settles 2009). Scores are
    raw ones, whose differences are log odds.
    """
    s = np.asarray(scores_KM, dtype=np.float64)
    assert s.ndim == 2 and len(s) >= 2
    first, second = (np.array(side) for side in zip(*combinations(range(len(s)), 2), strict=True))
    gaps_PM = np.clip(s[first] - s[second], -500, 500)
    p = (1 / (1 + np.exp(-gaps_PM))).mean(axis=1)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def priority(scores_KM: ArrayLike, texts: Sequence[str], by: By = "unsure") -> float:
    """The priority of an item in 0 to 1: the mean over its pairs of replies of

    - `unsure`: their doubt;
    - `length`: their doubt times |a − b| / (a + b), a and b their lengths in characters: pairs that score alike and
      differ most in length come first, which is where people can teach that length alone is worth nothing.
    """
    h = doubt(scores_KM)
    if by == "unsure":
        return float(h.mean())
    lengths = [len(text) for text in texts]
    gaps = [abs(a - b) / max(1, a + b) for a, b in combinations(lengths, 2)]
    return float((h * np.array(gaps)).mean())


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
