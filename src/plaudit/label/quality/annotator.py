"""What one person's labels are like: pace, habits, bias, gold items, consistency with themselves and with others.

Shares are as in agreement.py.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.label.db.ledger import ItemRow, Label
from plaudit.label.kinds.rank import VERDICTS, verdicts_of
from plaudit.label.quality.agreement import Pair, Share, asked, judged_pairs, share_of, strict
from plaudit.label.quality.reliability import reliabilities

WORDS_A_SECOND = 12.0
"""Nobody reads faster: three times the 238 words a minute of silent reading (Brysbaert 2019)."""

LEAST_PEOPLE = 4


def person_quality(
    items: Mapping[str, ItemRow], labels: Sequence[Label], people: Iterable[int]
) -> dict[int, dict[str, Any]]:
    """Person -> what their labels are like, beside everybody else's; None for whatever there is nothing of."""
    judged = judged_pairs(labels)
    reliable = reliabilities(strict(judged))
    doubtful = {row["item"] for row in doubtful_gold(items, labels)}
    trusted = {identity: item for identity, item in items.items() if identity not in doubtful}
    by_person: dict[int, list[Label]] = defaultdict(list)
    for label in labels:
        by_person[label.person].append(label)
    shared: dict[int, dict[Pair, Mapping[int, int]]] = defaultdict(dict)
    for pair, given in judged.items():
        for who in given if len(given) > 1 else ():
            shared[who][pair] = given
    measured = {}
    for who in people:
        own, beside = by_person[who], shared[who]
        usual = asked(own)  # the known answers of gold items may be the longer ones, and a check asks the same again
        measured[who] = {
            **pace(items, own),
            **habits(own),
            "earlier_wins": earlier_wins(usual),
            "first_is_best": first_is_best(usual),
            "longer_wins": longer_wins(items, usual),
            "gold": gold_accuracy(trusted, [label for label in own if label.item not in doubtful]),
            "self": consistency(own),
            "others": with_others(beside, who),
            "others_but_one": with_others(beside, who, without=furthest(beside, who)),
            "reliability": reliable.get(who),
        }
    return measured


def pace(items: Mapping[str, ItemRow], own: Sequence[Label]) -> dict[str, Any]:
    """Seconds an item (median, 10th and 90th percentile) and the share of labels faster than the texts can be read.

    The seconds are those in which the page was used, where the browser told; nobody reads faster than from serving to
    submitting. The time of a correction is that of the first answer; imported labels have none.
    """
    timed = [label for label in own if label.seconds > 0]
    if not timed:
        return {"seconds": None, "too_fast": None}
    seconds = [label.seconds if label.active is None else label.active for label in timed]
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    too_fast = []
    for label in timed:
        item = items[label.item]
        # The least that has to be read: the last turn and all replies.
        texts = [item.messages[-1].content, *(reply.text for reply in item.replies)]
        words = sum(len(text.split()) for text in texts)
        too_fast.append((float(label.seconds < words / WORDS_A_SECOND), label.item))
    return {
        "seconds": {"p10": float(low), "median": float(middle), "p90": float(high)},
        "too_fast": share_of(too_fast),
    }


def habits(own: Sequence[Label]) -> dict[str, Any]:
    """Shares of ties among the pairs, and of labels "all bad" and "cannot judge"."""
    judging = [label for label in own if label.text is None]
    signs = [sign for label in judging if label.ranks for sign in verdicts_of(label.ranks).values()]
    verdicts = {
        name: float(np.mean([label.verdict == name for label in judging])) if judging else None for name in VERDICTS
    }
    return {"ties": float(np.mean([sign == 0 for sign in signs])) if signs else None, **verdicts}


def _strict_pairs(own: Sequence[Label]) -> Iterator[tuple[Label, int, int]]:
    """(label, better reply, worse reply) of every pair that is ordered strictly."""
    for label in own:
        for (i, j), sign in verdicts_of(label.ranks or ()).items():
            if sign:
                yield label, *((i, j) if sign > 0 else (j, i))


def earlier_wins(own: Sequence[Label]) -> Share | None:
    """Of the strictly ordered pairs, the share won by the reply that was shown further up. ½ is no position bias: the
    order is drawn anew for every view."""
    return share_of(
        (float(label.order.index(better) < label.order.index(worse)), label.item)
        for label, better, worse in _strict_pairs(own)
        if label.order
    )


def first_is_best(own: Sequence[Label]) -> Share | None:
    """Of the labels with a single best reply, the share where it was shown first; 1/K for somebody who reads."""
    return share_of(
        (float(label.ranks[label.order[0]] == min(label.ranks)), label.item)
        for label in own
        if label.ranks is not None and label.order and label.ranks.count(min(label.ranks)) == 1
    )


def longer_wins(items: Mapping[str, ItemRow], own: Sequence[Label]) -> Share | None:
    """Of the strictly ordered pairs of replies of different length (characters), the share won by the longer one."""
    pairs = ((label.item, items[label.item].replies, better, worse) for label, better, worse in _strict_pairs(own))
    lengths = ((len(replies[won].text), len(replies[lost].text), item) for item, replies, won, lost in pairs)
    return share_of((float(won > lost), item) for won, lost, item in lengths if won != lost)


def gold_accuracy(items: Mapping[str, ItemRow], own: Sequence[Label]) -> Share | None:
    """Of the pairs that an item's known answer orders, the share ordered alike; a tie is half right."""
    checked = ((label.item, verdicts_of(label.ranks)) for label in own if label.ranks is not None)
    return share_of(
        (0.5 + 0.5 * sign * said[pair], item)
        for item, said in checked
        for pair, sign in verdicts_of(items[item].gold or ()).items()
        if sign
    )


def doubtful_gold(items: Mapping[str, ItemRow], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Gold items whose known answer fewer than half of at least `LEAST_PEOPLE` people give, by their pairs: then it is
    the answer that is in doubt."""
    by_item: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        if label.ranks is not None and items[label.item].gold is not None:
            by_item[label.item].append(label)
    rows = []
    for identity, own in by_item.items():
        people, right = len({label.person for label in own}), gold_accuracy(items, own)
        if people >= LEAST_PEOPLE and right is not None and right["share"] < 0.5:
            rows.append({"item": identity, "share": right["share"], "people": people})
    return sorted(rows, key=lambda row: row["share"])


def consistency(own: Sequence[Label]) -> Share | None:
    """Of the pairs that somebody ordered strictly both times they saw an item, the share ordered alike."""
    first: dict[str, Label] = {}

    def alike() -> Iterator[tuple[float, str]]:
        for label in sorted((label for label in own if label.ranks is not None), key=lambda row: row.seq):
            before = first.setdefault(label.item, label)
            if before is label:
                continue
            then = verdicts_of(before.ranks or ())
            for pair, sign in verdicts_of(label.ranks or ()).items():
                if sign and then[pair]:
                    yield float(sign == then[pair]), label.item

    return share_of(alike())


def with_others(judged: Mapping[Pair, Mapping[int, int]], who: int, without: int | None = None) -> Share | None:
    """Of the strict verdicts of one person beside one of somebody else (but `without`) on the same pair, the share that
    is the same."""
    return share_of(
        (float(given[who] == sign), item)
        for (item, *_), given in judged.items()
        for other, sign in given.items()
        if other not in (who, without) and sign and given.get(who)
    )


def furthest(judged: Mapping[Pair, Mapping[int, int]], who: int) -> int | None:
    """The person whose verdicts differ most often from this one's; None where nobody's do."""
    differ: dict[int, int] = defaultdict(int)
    for given in judged.values():
        for other, sign in given.items():
            differ[other] += bool(other != who and sign and given.get(who) and given[who] != sign)
    most = max(differ.values(), default=0)
    return min((other for other, count in differ.items() if count == most), default=None) if most else None
