"""Which source of replies people prefer: a Bradley-Terry table with intervals, and a win rate of one over another.

A source is what an item says of a reply: a model, a checkpoint, a temperature. The ranks of K replies count as their
pairs; if the ranks follow Plackett-Luce, every pair follows Bradley-Terry with the same worths, so the table is that
of Plackett-Luce too, and intervals over whole items make good for pairs of one ranking not being independent.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plaudit.algo.statistics import confidence_sequence, length_controlled
from plaudit.label.db.ledger import ItemRow, Label
from plaudit.label.kinds.rank import verdicts_of
from plaudit.label.quality.agreement import share_of

PRIOR = 0.5
"""Wins and losses of every source against one of strength 0, so that an undefeated one is not infinitely strong."""
_DRAWS, _AT_ONCE = 1000, 50


def bradley_terry(
    wins_DSS: np.ndarray, *, prior: float = PRIOR, steps: int = 2000, tolerance: float = 1e-9
) -> np.ndarray:
    """Strengths [D, S], log worths with mean 0, from D tables of wins [D, S, S]; [d, i, j]: how often i beat j.

        P(i beats j) = σ(s_i − s_j);   worth_i ← wins_i / Σ_j n_ij / (worth_i + worth_j)   until it stands still

    Bradley and Terry 1952, by Hunter's MM steps (2004, Annals of Statistics 32, 384-406). `prior` wins and as many
    losses of everybody against a source of worth 1 keep it finite; with 0, two sources and 7 wins to 3 the strengths
    differ by ln(7/3) = 0.847298, and one that never lost has no finite strength (ValueError).
    """
    assert wins_DSS.ndim == 3 and wins_DSS.shape[1] == wins_DSS.shape[2]
    met_DSS = wins_DSS + wins_DSS.transpose(0, 2, 1)
    wins_DS = wins_DSS.sum(axis=2) + prior
    if prior == 0 and ((wins_DS == 0) | (wins_DSS.sum(axis=1) == 0)).any():
        raise ValueError("a source that won or lost every time has no finite strength without a prior")
    worth_DS = np.ones_like(wins_DS)
    for _ in range(steps):
        per_DS = (met_DSS / (worth_DS[:, :, None] + worth_DS[:, None, :])).sum(axis=2) + 2 * prior / (worth_DS + 1)
        new_DS = wins_DS / per_DS
        new_DS = new_DS if prior else new_DS / np.exp(np.log(new_DS).mean(axis=1, keepdims=True))
        moved = float(np.abs(np.log(new_DS / worth_DS)).max())
        worth_DS = new_DS
        if moved < tolerance:
            break
    strength_DS = np.log(worth_DS)
    return strength_DS - strength_DS.mean(axis=1, keepdims=True)


def source_table(items: Sequence[ItemRow], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Sources from best to worst: strength with its 95 % interval (percentile bootstrap, whole items drawn), win rate
    against the others (ties half) with its interval, and how many verdicts it rests on.

    A pair of one source with itself says nothing. Empty with fewer than two sources that were compared.
    """
    rows = [(item.id, one, other, won) for item, one, other, won in _meetings(items, labels)]
    names = sorted({name for _, one, other, _ in rows for name in (one, other)})
    if len(names) < 2:
        return []
    number = {name: i for i, name in enumerate(names)}
    place = {item: i for i, item in enumerate(dict.fromkeys(item for item, *_ in rows))}
    wins_ISS = np.zeros((len(place), len(names), len(names)))
    shares: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for item, one, other, won in rows:
        wins_ISS[place[item], number[one], number[other]] += won
        wins_ISS[place[item], number[other], number[one]] += 1 - won
        shares[one].append((won, place[item]))
        shares[other].append((1 - won, place[item]))
    strength_S = bradley_terry(wins_ISS.sum(axis=0, keepdims=True))[0]
    low_S, high_S = np.quantile(_drawn(wins_ISS), [0.025, 0.975], axis=0)
    table = []
    for name, i in number.items():
        strength = {"strength": float(strength_S[i]), "low": float(low_S[i]), "high": float(high_S[i])}
        wins = share_of(shares[name])
        assert wins is not None  # every name is of a row
        rates = {"win_rate": wins["share"], "win_low": wins["low"], "win_high": wins["high"], "verdicts": wins["n"]}
        table.append({"source": name, **strength, **rates})
    return sorted(table, key=lambda row: (-row["strength"], row["source"]))


def _drawn(wins_ISS: np.ndarray) -> np.ndarray:
    """Strengths [draws, S] of as many items drawn with replacement, a few draws at a time to hold little memory."""
    rng = np.random.default_rng(0)
    I, S, _ = wins_ISS.shape
    # Items that say the same are drawn as one kind, as often as there are such items.
    kinds_KX, counts_K = np.unique(wins_ISS.reshape(I, S * S), axis=0, return_counts=True)
    parts = []
    for _ in range(_DRAWS // _AT_ONCE):
        drawn_DK = rng.multinomial(I, counts_K / I, size=_AT_ONCE).astype(np.float64)
        parts.append(drawn_DK @ kinds_KX)
    return bradley_terry(np.concatenate(parts).reshape(-1, S, S), tolerance=1e-6)  # an interval's ends say no more


def _meetings(items: Sequence[ItemRow], labels: Sequence[Label]) -> Iterator[tuple[ItemRow, str, str, float]]:
    """(item, one, other, share of the win that one takes) of each pair of replies of different, known sources."""
    by_id = {item.id: item for item in items}
    for label in labels:
        item = by_id[label.item]
        for (i, j), sign in verdicts_of(label.ranks or ()).items():
            one, other = item.replies[i].source, item.replies[j].source
            if one is not None and other is not None and one != other:
                yield item, one, other, 0.5 + 0.5 * sign


ENOUGH = 0.05
"""A win rate that is known to be nearer to one half than this is no difference that matters."""


def win_rate(
    items: Sequence[ItemRow], labels: Sequence[Label], first: str, second: str, overlap: int = 1
) -> dict[str, Any] | None:
    """How often replies of source `first` were ranked above those of `second` (ties half); None when nobody compared
    the two. `labels` hold those without ranks too; `overlap` people label an item that does not say otherwise.

    A prompt is one value, the mean of its labels, since labels of one prompt are not independent and contested prompts
    get more of them. `low` and `high` are of a confidence sequence of the prompts whose last label wanted is in: they
    hold after every label at once, so that looking and stopping is allowed. `enough` says who is preferred (or
    `neither`) once they tell, and `more` how many more labels that may take if the rate stays. `at_equal_length` is the
    rate if both wrote as much, its interval that of one look.
    """
    lengths: dict[str, list[float]] = defaultdict(list)
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for item, one, other, share in _meetings(items, labels):
        if {one, other} == {first, second}:
            by_prompt[item.prompt_id].append(share if one == first else 1 - share)
            length = {reply.source: len(reply.text) for reply in item.replies}
            lengths[item.prompt_id].append(length[first] - length[second])
    if not by_prompt:
        return None
    shares = [share for own in by_prompt.values() for share in own]
    rates = {prompt: float(np.mean(own)) for prompt, own in by_prompt.items()}
    given = Counter(label.item for label in labels)
    waiting = {
        item.prompt_id
        for item in items
        if {first, second} <= {reply.source for reply in item.replies} and given[item.id] < (item.overlap or overlap)
    }
    values = [rate for prompt, rate in rates.items() if prompt not in waiting]
    low, high = confidence_sequence(values)
    longer = [float(np.mean(own)) for own in lengths.values()]
    at, interval, _ = length_controlled(list(rates.values()), longer, list(rates))
    enough, more = _enough(values, first, second, low, high)
    return {
        "first": first,
        "second": second,
        "win_rate": float(np.mean(list(rates.values()))),
        "low": low,
        "high": high,
        "ties": float(np.mean([share == 0.5 for share in shares])),
        "labels": len(shares),
        "prompts": len(by_prompt),
        "complete": len(values),
        "enough": enough,
        "more": None if more is None else round(more * len(shares) / len(by_prompt)),
        "at_equal_length": {"win_rate": at, "low": interval[0], "high": interval[1]},
    }


def _enough(values: list[float], first: str, second: str, low: float, high: float) -> tuple[str | None, int | None]:
    """(who is preferred, if that is known; else how many more values like these it may take)."""
    if low > 0.5 or high < 0.5:
        return (first if low > 0.5 else second), None
    if low > 0.5 - ENOUGH and high < 0.5 + ENOUGH:
        return "neither", None
    for times in range(2, 41):
        least, most = confidence_sequence(values * times)
        if not least <= 0.5 <= most:
            return None, len(values) * (times - 1)
    return None, None
