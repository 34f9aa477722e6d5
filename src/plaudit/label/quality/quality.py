"""How good labels are: agreement between people, and for each person bias, pace, gold, consistency with oneself.

All functions are pure; `labels` are the standing ones (`ledger.standing`). Shares come as {share, low, high, n}: the
95 % Wilson interval over items, since pairs of one ranking are not independent; n counts the verdicts. None means that
nothing was there to measure. docs/label-quality.md has each formula, and what to do when a number is bad.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from plaudit.algo.agreement import best_accuracy, cohen_kappa, krippendorff_alpha
from plaudit.algo.statistics import wilson_interval
from plaudit.label.db.ledger import Label, verdicts_of
from plaudit.label.db.store import ItemRow
from plaudit.label.quality.reliability import reliabilities

WORDS_A_SECOND = 12.0
"""Nobody reads faster: three times the 238 words a minute of silent reading (Brysbaert 2019)."""

Pair = tuple[str, int, int]
Share = dict[str, float]


def share_of(values: Sequence[float], clusters: Sequence[Hashable]) -> Share | None:
    """Mean of `values`, each in [0, 1], with its interval over whole clusters; None without values."""
    if not values:
        return None
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    low, high = wilson_interval(values, [number[cluster] for cluster in clusters])
    return {"share": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def ranked(labels: Sequence[Label], *purposes: str) -> list[Label]:
    """The labels with ranks that were asked for one of these purposes and came in time."""
    return [label for label in labels if label.ranks is not None and label.purpose in purposes and not label.late]


def judged_pairs(labels: Sequence[Label]) -> dict[Pair, dict[int, int]]:
    """Pair of replies -> person -> verdict (1, −1, 0 for a tie), of the labels asked for as usual."""
    found: dict[Pair, dict[int, int]] = defaultdict(dict)
    for label in ranked(labels, "normal"):
        assert label.ranks is not None
        for (i, j), sign in verdicts_of(label.ranks).items():
            found[label.item, i, j][label.person] = sign
    return dict(found)


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
    same, items = _same(several)
    pairs = share_of(same, items)
    people = sorted({who for given in several.values() for who in given})
    table = [
        [sign * given[who] if who in given else np.nan for given in several.values() for sign in (1, -1)]
        for who in people
    ]
    return {
        "people": len(people),
        "items": len({pair[0] for pair in several}),
        "pairs": pairs,
        "best_accuracy": best_accuracy(pairs["share"]) if pairs else None,
        "alpha": krippendorff_alpha(table) if table else None,
        "alpha_ranks": _alpha_of_ranks(labels),
        "between": _between(several),
    }


def _same(several: Mapping[Pair, Mapping[int, int]]) -> tuple[list[float], list[str]]:
    same, items = [], []
    for (item, *_), given in several.items():
        signs = [sign for sign in given.values() if sign]
        for one, other in combinations(signs, 2):
            same.append(float(one == other))
            items.append(item)
    return same, items


def _alpha_of_ranks(labels: Sequence[Label]) -> float | None:
    rows = [(label, label.ranks) for label in ranked(labels, "normal") if label.ranks is not None]
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
    return [1 + sum(other < mine for other in ranks) + 0.5 * (ranks.count(mine) - 1) for mine in list(ranks)]


def _between(several: Mapping[Pair, Mapping[int, int]]) -> list[dict[str, Any]]:
    answers: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for given in several.values():
        for one, other in combinations(sorted(given), 2):
            answers[one, other].append((given[one], given[other]))
    rows = []
    for (one, other), given_both in sorted(answers.items()):
        both = ([s * a for a, _ in given_both for s in (1, -1)], [s * b for _, b in given_both for s in (1, -1)])
        orders = [a == b for a, b in given_both if a and b]
        rows.append(
            {
                "first": one,
                "second": other,
                "pairs": len(given_both),
                "kappa": cohen_kappa(*both),
                "agreement": float(np.mean(orders)) if orders else None,
            }
        )
    return rows


def item_agreement(labels: Sequence[Label]) -> dict[str, float]:
    """Item -> share of its strict pairs of verdicts, two people at a time, that are the same; only of items where two
    people ordered the same pair."""
    found: dict[str, list[float]] = defaultdict(list)
    for value, item in zip(*_same(judged_pairs(labels)), strict=True):
        found[item].append(value)
    return {item: float(np.mean(values)) for item, values in found.items()}


# --- one person ---


def person_quality(items: Mapping[str, ItemRow], labels: Sequence[Label]) -> dict[int, dict[str, Any]]:
    """Person -> what their labels are like, beside everybody else's; the keys are those of `dashboard`'s people."""
    judged = judged_pairs(labels)
    reliable = reliabilities(strict(judged))
    by_person: dict[int, list[Label]] = defaultdict(list)
    for label in labels:
        by_person[label.person].append(label)
    found: dict[int, dict[str, Any]] = {}
    for who, own in sorted(by_person.items()):
        found[who] = {
            **pace(items, own),
            **habits(own),
            "earlier_wins": earlier_wins(own),
            "first_is_best": first_is_best(own),
            "longer_wins": longer_wins(items, own),
            "gold": gold_accuracy(items, own),
            "self": consistency(own),
            "others": with_others(judged, who),
            "reliability": reliable.get(who),
        }
    return found


def pace(items: Mapping[str, ItemRow], own: Sequence[Label]) -> dict[str, Any]:
    """Seconds an item (median, 10th and 90th percentile) and the share of labels faster than the texts can be read.

    The time of a correction is that of the first answer; imported labels have none.
    """
    timed = [label for label in own if label.seconds > 0]
    if not timed:
        return {"seconds": None, "too_fast": None}
    seconds = [label.seconds for label in timed]
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    too_fast = [float(label.seconds < words_of(items[label.item]) / WORDS_A_SECOND) for label in timed]
    return {
        "seconds": {"p10": float(low), "median": float(middle), "p90": float(high)},
        "too_fast": share_of(too_fast, [label.item for label in timed]),
    }


def words_of(item: ItemRow) -> int:
    """Words of the last turn and of all replies: the least that has to be read."""
    texts = [item.messages[-1].content, *(reply.text for reply in item.replies)]
    return sum(len(text.split()) for text in texts)


def habits(own: Sequence[Label]) -> dict[str, Any]:
    """Shares of ties among the pairs, and of labels "all bad" and "cannot judge"."""
    judging = [label for label in own if label.text is None]
    signs = [sign for label in judging if label.ranks for sign in verdicts_of(label.ranks).values()]
    return {
        "ties": float(np.mean([sign == 0 for sign in signs])) if signs else None,
        **{
            name: float(np.mean([label.verdict == name for label in judging])) if judging else None
            for name in ("all_bad", "cannot_judge")
        },
    }


def earlier_wins(own: Sequence[Label]) -> Share | None:
    """Of the strictly ordered pairs, the share won by the reply that was shown further up. ½ is no position bias: the
    order is drawn anew for every view."""
    won, items = [], []
    for label in own:
        if label.ranks is None or len(label.order) != len(label.ranks):
            continue
        shown = [label.ranks[reply] for reply in label.order]
        for sign in verdicts_of(shown).values():
            if sign:
                won.append(float(sign > 0))
                items.append(label.item)
    return share_of(won, items)


def first_is_best(own: Sequence[Label]) -> Share | None:
    """Of the labels with a single best reply, the share where it was shown first; 1/K for somebody who reads."""
    rows = [
        (float(label.ranks[label.order[0]] == min(label.ranks)), label.item)
        for label in own
        if label.ranks is not None and len(label.order) == len(label.ranks) and label.ranks.count(min(label.ranks)) == 1
    ]
    return share_of([value for value, _ in rows], [item for _, item in rows])


def longer_wins(items: Mapping[str, ItemRow], own: Sequence[Label]) -> Share | None:
    """Of the strictly ordered pairs of replies of different length (characters), the share won by the longer one."""
    won, where = [], []
    for label in own:
        if label.ranks is None:
            continue
        lengths = [len(reply.text) for reply in items[label.item].replies]
        for (i, j), sign in verdicts_of(label.ranks).items():
            if sign and lengths[i] != lengths[j]:
                won.append(float((sign > 0) == (lengths[i] > lengths[j])))
                where.append(label.item)
    return share_of(won, where)


def gold_accuracy(items: Mapping[str, ItemRow], own: Sequence[Label]) -> Share | None:
    """Of the pairs that an item's known answer orders, the share ordered alike; a tie is half right."""
    right, where = [], []
    for label in own:
        gold = items[label.item].gold
        if gold is None or label.ranks is None:
            continue
        said = verdicts_of(label.ranks)
        for pair, sign in verdicts_of(gold).items():
            if sign:
                right.append(0.5 + 0.5 * sign * said[pair])
                where.append(label.item)
    return share_of(right, where)


def consistency(own: Sequence[Label]) -> Share | None:
    """Of the pairs that somebody ordered strictly both times they saw an item, the share ordered alike."""
    first: dict[str, Label] = {}
    same, where = [], []
    for label in sorted(own, key=lambda row: row.seq):
        if label.ranks is None:
            continue
        before = first.setdefault(label.item, label)
        if before is label or before.ranks is None:
            continue
        then = verdicts_of(before.ranks)
        for pair, sign in verdicts_of(label.ranks).items():
            if sign and then[pair]:
                same.append(float(sign == then[pair]))
                where.append(label.item)
    return share_of(same, where)


def with_others(judged: Mapping[Pair, Mapping[int, int]], who: int) -> Share | None:
    """Of the strict verdicts of one person beside one of somebody else on the same pair, the share that is the same."""
    same, where = [], []
    for (item, *_), given in judged.items():
        mine = given.get(who, 0)
        for other, sign in given.items():
            if mine and sign and other != who:
                same.append(float(mine == sign))
                where.append(item)
    return share_of(same, where)
