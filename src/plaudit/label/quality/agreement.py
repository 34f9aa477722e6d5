"""How far people agree on the same items, and the verdicts that all measures of labels start from.

All functions are pure; `labels` are the standing ones (`ledger.standing`). Shares come as {share, low, high, n}: the
95 % Wilson interval over items, since pairs of one ranking are not independent; n counts the verdicts. None means that
nothing was there to measure. docs/label-quality.md has each formula, and what to do when a number is bad.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.algo.agreement import best_accuracy, krippendorff_alpha, same_verdicts, verdict_agreement
from plaudit.algo.statistics import confidence_sequence, wilson_interval
from plaudit.label.db.ledger import Label
from plaudit.label.kinds.rank import verdicts_of

Pair = tuple[str, int, int]
Share = dict[str, float]


def share_of(values: Iterable[tuple[float, Hashable]]) -> Share | None:
    """Mean of values in [0, 1], each beside its cluster, with the interval over whole clusters; None without values.

    `all_low` and `all_high` are the confidence sequence of the clusters' means: it holds at every look at once, and so
    may be acted on, since a dashboard is looked at again and again.
    """
    rows = list(values)
    if not rows:
        return None
    number: dict[Hashable, int] = {}
    index = [number.setdefault(cluster, len(number)) for _, cluster in rows]
    said = np.array([value for value, _ in rows])
    all_low, all_high = confidence_sequence(np.bincount(index, said) / np.bincount(index))
    low, high = wilson_interval(said, index)
    return {
        "share": float(said.mean()),
        "low": low,
        "high": high,
        "n": len(rows),
        "all_low": all_low,
        "all_high": all_high,
    }


def asked(labels: Sequence[Label]) -> list[Label]:
    """The labels that were asked for as usual, as no check of anybody, and came in time."""
    return [label for label in labels if label.purpose == "normal" and not label.late]


def ranked(labels: Sequence[Label]) -> list[Label]:
    """Those of `asked` that have ranks."""
    return [label for label in asked(labels) if label.ranks is not None]


def judged_pairs(labels: Sequence[Label]) -> dict[Pair, dict[int, int]]:
    """Pair of replies -> person -> verdict (1, −1, 0 for a tie), of the labels asked for as usual."""
    judged: dict[Pair, dict[int, int]] = defaultdict(dict)
    for label in ranked(labels):
        for (i, j), sign in verdicts_of(label.ranks or ()).items():
            judged[label.item, i, j][label.person] = sign
    return dict(judged)


def strict(judged: Mapping[Pair, Mapping[int, int]]) -> dict[Hashable, dict[int, int]]:
    """The same without ties."""
    return {pair: {who: sign for who, sign in given.items() if sign} for pair, given in judged.items()}


def agreement(labels: Sequence[Label]) -> dict[str, Any]:
    """How far people agree on the same items.

    - `pairs`: of two people's verdicts on one pair that both ordered strictly, the share that is the same.
    - `alpha`: Krippendorff's, nominal, over the verdicts first better / second better / tie; every pair is counted
      both ways round, since which reply is called the first means nothing.
    - `alpha_ranks`: Krippendorff's, ordinal, over the ranks of single replies, in items of the commonest K.
    - `between`: Cohen's kappa (verdicts, both ways round) and agreement of each two people.
    - `best_accuracy`: the most that any reward model can expect on single labels at that agreement.
    """
    several = {pair: given for pair, given in judged_pairs(labels).items() if len(given) > 1}
    pairs = share_of((value, item) for value, (item, *_) in same_verdicts(several))
    alpha, between = verdict_agreement(several)
    return {
        "people": len({who for given in several.values() for who in given}),
        "items": len({pair[0] for pair in several}),
        "pairs": pairs,
        "best_accuracy": best_accuracy(pairs["share"]) if pairs else None,
        "alpha": alpha,
        "alpha_ranks": _alpha_of_ranks(labels),
        "between": sorted(between, key=lambda row: (row["first"], row["second"])),
    }


def _alpha_of_ranks(labels: Sequence[Label]) -> float | None:
    rows = [(label, label.ranks) for label in ranked(labels) if label.ranks is not None]
    sizes = Counter(len(ranks) for _, ranks in rows)
    if not sizes:
        return None
    size = max(sizes, key=lambda k: (sizes[k], k))
    rows = [(label, ranks) for label, ranks in rows if len(ranks) == size]
    items = {item: i for i, item in enumerate(dict.fromkeys(label.item for label, _ in rows))}
    people = {who: i for i, who in enumerate(dict.fromkeys(label.person for label, _ in rows))}
    table = np.full((len(people), len(items) * size), np.nan)
    for label, ranks in rows:
        start = items[label.item] * size
        table[people[label.person], start : start + size] = middle_ranks(ranks)
    return krippendorff_alpha(table, "ordinal")


def middle_ranks(ranks: Sequence[int]) -> list[float]:
    """Ranks with ties in the middle of the places that they share: (1, 2, 2, 3) -> 1, 2.5, 2.5, 4."""
    return [1 + sum(other < mine for other in ranks) + 0.5 * (ranks.count(mine) - 1) for mine in ranks]


def item_agreement(labels: Sequence[Label]) -> dict[str, float]:
    """Item -> share of its strict pairs of verdicts, two people at a time, that are the same; only of items where two
    people ordered the same pair."""
    same: dict[str, list[float]] = defaultdict(list)
    for value, (item, *_) in same_verdicts(judged_pairs(labels)):
        same[item].append(value)
    return {item: float(np.mean(values)) for item, values in same.items()}
