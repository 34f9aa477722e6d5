"""A reward model's report card: how good its scores are on ranked replies, what they rest on, and what is suspicious.

`report_card` takes rankings and a raw score for each reply, and gives one dict that JSON can hold. It knows nothing of
models, so any scorer gets the same card. Two raw scores of a prompt differ by the log-odds that the first reply is
preferred (Bradley-Terry); normalised scores would say something else about confidence.

Intervals are 95 %, by bootstrap over prompts. alarms.py finds what is suspicious; table.py, plots.py and page.py show
a card.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plaudit.algo.preferences import fit_temperature
from plaudit.algo.statistics import (
    FEW_CLUSTERS,
    bootstrap_gap,
    bootstrap_interval,
    calibration,
    calibration_noise,
    correlation,
    within_correlation,
)
from plaudit.errors import UserError
from plaudit.records import Ranking, messages_as_json
from plaudit.view.card.alarms import alarms
from plaudit.view.card.labels import human_ceiling, leaks
from plaudit.view.card.pairs import Floats, Pair, Pairs, verdicts

MISTAKES = 20
SUSPECTS = 20
SLICES = 20
"""Kinds, or pairs of sources, that get a row of their own; the smaller ones share one."""
_GAP_EDGES = (0.5, 0.9, 1.1, 2.0)
_GAP_NAMES = ["winner under half as long", "winner shorter", "about as long (±10 %)"]
_GAP_NAMES += ["winner longer", "winner over twice as long"]
_JUDGE_BINS = 4
_BINS = 24


def report_card(
    rankings: Sequence[Ranking],
    scores_N: ArrayLike,
    *,
    members_NM: ArrayLike | None = None,
    train: Sequence[Ranking] = (),
    simulated: bool = False,
    seen_in_order: bool = True,
) -> dict[str, Any]:
    """The card of raw scores [N], one a reply of `rankings` in order.

    `members_NM` [N, M] are those of an ensemble's members, which name the suspects. With `train`, the rankings that the
    model was trained on, the length baseline learns its direction there and their prompts are looked for among the
    judged ones. `simulated` says that a program ranked, so that no human limit holds, and `seen_in_order` that
    the order of the replies may be that in which they were ranked. UserError without a strict pair and for a score that
    is not finite.
    """
    pairs = Pairs(rankings)
    scores = np.asarray(scores_N, dtype=np.float64)
    assert scores.shape == (pairs.replies,), (scores.shape, pairs.replies)
    if not len(pairs):
        raise UserError(
            f"no strict pair in {len(pairs.rankings)} rankings: every reply is tied with every other, or there are "
            "none; a report card needs replies of which one is better"
        )
    _check_finite(scores, pairs)
    margins = pairs.margins(scores)
    right = verdicts(margins)
    # The pairs on which the model is most sure of the wrong reply, to read.
    mistakes = [n for n in np.argsort(margins, kind="stable")[:MISTAKES] if margins[n] < 0]
    card: dict[str, Any] = {
        "counts": _counts(pairs, train),
        **_mean("accuracy", right, pairs),
        "length": _length(pairs, right, scores, train),
        "position": _position(pairs, seen_in_order),
        "by_kind": _by_name(pairs, right, [pair.ranking.prompt.kind for pair in pairs.items]),
        "by_source": _by_name(pairs, right, [_sources(pair) for pair in pairs.items]),
        "by_length_gap": _by_length_gap(pairs, right),
        "by_judge_margin": _by_judge_margin(pairs, right),
        "calibration": _calibration(pairs, margins),
        "scores": {
            "mean": float(scores.mean()),
            "std": float(scores.std()),
            "chosen_mean": float(scores[pairs.winners].mean()),
            "rejected_mean": float(scores[pairs.losers].mean()),
        },
        "histograms": _histograms(pairs, scores, margins),
        "mistakes": [_to_read(pairs.items[n], scores, margins[n]) for n in mistakes],
        "suspects": _suspects(pairs, scores, margins, members_NM),
        "ceiling": human_ceiling(pairs.rankings, pairs, list(right)),
        "leaks": leaks(pairs, train),
        "simulated": simulated,
    }
    card["alarms"] = alarms(card)
    return card


def _check_finite(scores: Floats, pairs: Pairs) -> None:
    if not np.isfinite(scores).all():
        number = int(np.flatnonzero(~np.isfinite(scores))[0])
        replies = [(ranking.prompt.id, reply.text) for ranking in pairs.rankings for reply in ranking.replies]
        identity, text = replies[number]
        raise UserError(
            f"the model scores {scores[number]} for a reply to prompt {identity!r} ({text[:60]!r}); a score must be a "
            "finite number: try --dtype float32, or look for damaged weights"
        )


def _mean(name: str, values: Floats, pairs: Pairs) -> dict[str, Any]:
    """Of one value a pair, with its interval."""
    return {name: float(values.mean()), f"{name}_ci": bootstrap_interval(values, pairs.clusters)}


def _counts(pairs: Pairs, train: Sequence[Ranking]) -> dict[str, int]:
    sizes = [len(ranking.replies) for ranking in pairs.rankings]
    return {
        "rankings": len(sizes),
        "prompts": len(np.unique(pairs.clusters)),
        "replies": pairs.replies,
        "strict_pairs": len(pairs),
        "tied_pairs": sum(n * (n - 1) // 2 for n in sizes) - len(pairs),
        "annotators": len({ranking.annotator for ranking in pairs.rankings} - {None}),
        "train_rankings": len(train),
        "train_pairs": sum(len(ranking.pairs()) for ranking in train),
    }


def _length(pairs: Pairs, right: Floats, scores: Floats, train: Sequence[Ranking]) -> dict[str, Any]:
    """What length alone reaches, in characters, and how far the model goes with it."""
    trained = Pairs(train)
    learnt = len(trained) > 0
    longer = bool((trained if learnt else pairs).longer_won.mean() >= 0.5)
    alone = pairs.longer_won if longer else 1 - pairs.longer_won
    apart = pairs.gaps != 0
    longer_won = pairs.gaps > 0
    characters = [len(reply.text) for ranking in pairs.rankings for reply in ranking.replies]
    of_prompt: dict[Any, int] = {}
    prompts = [of_prompt.setdefault(r.prompt.messages, len(of_prompt)) for r in pairs.rankings for _ in r.replies]
    # Does the model choose the longer reply? It does where it is right and that one won, or wrong and it lost.
    chooses_longer = np.where(longer_won, right, 1 - right)
    found: dict[str, Any] = {
        "rule": "the longer reply wins" if longer else "the shorter reply wins",
        "learnt_on": "training pairs" if learnt else "these pairs, the better of both directions",
        **_mean("accuracy", alone, pairs),
        **_mean("gain", right - alone, pairs),
        "longer_won": float(pairs.longer_won.mean()),
        "model_chooses_longer": float(chooses_longer[apart].mean()) if apart.any() else None,
        "accuracy_longer_won": _part(right, apart & longer_won, pairs),
        "accuracy_shorter_won": _part(right, apart & ~longer_won, pairs),
        "gap_ci": None,
        "score_correlation": correlation(scores, characters),
        "score_correlation_within": within_correlation(scores, characters, prompts),
    }
    if (apart & longer_won).any() and (apart & ~longer_won).any():
        found["gap_ci"] = bootstrap_gap(right[apart], longer_won[apart], pairs.clusters[apart])
    return found


def _position(pairs: Pairs, seen_in_order: bool) -> dict[str, Any]:
    """What "the reply listed first wins" reaches. A model of single replies cannot see it; a labeller can."""
    first = np.array([float(pair.winner < pair.loser) for pair in pairs.items])
    listed = "winner first" if first.all() else "winner last" if not first.any() else "either way"
    listed = listed if seen_in_order else "replies in an order that nobody saw"
    return {**_mean("accuracy", first, pairs), "listed": listed}


def _part(right: Floats, where: Any, pairs: Pairs) -> dict[str, Any]:
    """Pairs, prompts and accuracy of a part of the pairs, with its interval and what length alone reaches there."""
    clusters = pairs.clusters[where]
    prompts = len(np.unique(clusters))
    part = right[where]
    return {
        "pairs": int(part.size),
        "prompts": prompts,
        "accuracy": float(part.mean()) if part.size else None,
        "accuracy_ci": bootstrap_interval(part, clusters) if part.size else None,
        "longer_won": float(pairs.longer_won[where].mean()) if part.size else None,
    }


def _by_name(pairs: Pairs, right: Floats, names: Sequence[str | None]) -> list[dict[str, Any]]:
    """One row a name, the largest first; [] where no pair has one."""
    counts = Counter(name for name in names if name is not None)
    if not counts:
        return []
    kept = [name for name, _ in counts.most_common(SLICES)]
    label = np.array([name if name in set(kept) else "" for name in names], dtype=object)
    rows = [{"name": name, **_part(right, label == name, pairs)} for name in kept]
    if (label == "").any():
        rest = len(counts) - len(kept)
        rows.append({"name": f"{rest} others" if rest else "not said", **_part(right, label == "", pairs)})
    return rows


def _sources(pair: Pair) -> str | None:
    sources = pair.ranking.sources
    return None if sources is None else f"{sources[pair.winner]} over {sources[pair.loser]}"


def _by_length_gap(pairs: Pairs, right: Floats) -> list[dict[str, Any]]:
    """By how much longer the winner is than the loser, as a ratio of characters."""
    ratio = np.array([max(len(p.chosen.text), 1) / max(len(p.rejected.text), 1) for p in pairs.items])
    bins = np.digitize(ratio, _GAP_EDGES)
    return [{"name": name, **_part(right, bins == n, pairs)} for n, name in enumerate(_GAP_NAMES) if (bins == n).any()]


def _by_judge_margin(pairs: Pairs, right: Floats) -> dict[str, Any]:
    """By how much better the file says the winner is, in bins of about equally many pairs; `of` says by what."""
    stated = [pair.judge_margin() for pair in pairs.items]
    kinds = Counter(kind for kind, _ in filter(None, stated))
    if not kinds:
        return {"of": None, "rows": []}
    of = kinds.most_common(1)[0][0]
    values = np.array([item[1] if item is not None and item[0] == of else np.nan for item in stated])
    edges = np.unique(np.nanquantile(values, np.linspace(0, 1, _JUDGE_BINS + 1)))
    rows = []
    for low, high in pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]:
        where = (values >= low) & ((values < high) | (high == edges[-1]))
        if where.any():
            rows.append({"name": f"{low:.3g} to {high:.3g}", **_part(right, where, pairs)})
    return {"of": of, "rows": rows}


def _calibration(pairs: Pairs, margins: Floats) -> dict[str, Any]:
    """Is it as sure as it is right, as it is and after its margins are divided by a temperature?

    The temperature is fitted to one half of the prompts and judged on the other, both ways round. `ece_expected` is
    what a perfectly calibrated model would show on so few pairs, `ece_limit` what it would exceed once in 20 times.
    """
    bins, ece = calibration(margins)
    expected, limit = calibration_noise(margins)
    found: dict[str, Any] = {
        "bins": bins,
        "ece": ece,
        "ece_expected": expected,
        "ece_limit": limit,
        "confidence": float(np.mean(1 / (1 + np.exp(-np.abs(margins))))),
        "temperature": None,
    }
    prompts = np.unique(pairs.clusters)
    if len(prompts) < 2 * FEW_CLUSTERS or not margins.any():
        return found
    half = np.random.default_rng(0).permutation(prompts)[: len(prompts) // 2]
    in_half = np.isin(pairs.clusters, half)
    scaled = np.empty_like(margins)
    for part in (in_half, ~in_half):
        scaled[part] = margins[part] / fit_temperature(margins[~part].tolist())
    bins, ece = calibration(scaled)
    found["temperature"] = {"value": fit_temperature(margins.tolist()), "ece": ece, "bins": bins}
    return found


def _histograms(pairs: Pairs, scores: Floats, margins: Floats) -> dict[str, Any]:
    """Scores of winners and losers, and margins, whose bins end at 0 so that none holds right and wrong together."""
    chosen, rejected = scores[pairs.winners], scores[pairs.losers]
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=_BINS)
    width = float(np.abs(margins).max()) / 12 or 1.0
    first, last = np.floor(margins.min() / width), np.floor(margins.max() / width) + 1
    margin_edges = np.arange(first, last + 1) * width
    return {
        "scores": {
            "edges": edges.tolist(),
            "chosen": np.histogram(chosen, edges)[0].tolist(),
            "rejected": np.histogram(rejected, edges)[0].tolist(),
        },
        "margins": {"edges": margin_edges.tolist(), "counts": np.histogram(margins, margin_edges)[0].tolist()},
    }


def _to_read(pair: Pair, scores: Floats, margin: float) -> dict[str, Any]:
    ranking = pair.ranking

    def side(place: int) -> dict[str, Any]:
        reply = ranking.replies[place]
        stated = {"source": ranking.sources, "judge_score": ranking.judge_scores, "votes": ranking.votes}
        return {
            **reply.as_json(),
            "score": float(scores[pair.first + place]),
            "characters": len(reply.text),
            **{name: values[place] for name, values in stated.items() if values is not None},
        }

    return {
        "id": ranking.prompt.id,
        "kind": ranking.prompt.kind,
        "annotator": ranking.annotator,
        "prompt": messages_as_json(ranking.prompt.messages),
        "preferred": side(pair.winner),
        "other": side(pair.loser),
        "margin": float(margin),
        # σ(|margin|): how sure the model is of its own choice.
        "confidence": float(1 / (1 + np.exp(-abs(margin)))),
    }


def _suspects(pairs: Pairs, scores: Floats, margins: Floats, members_NM: ArrayLike | None) -> dict[str, Any]:
    """Labels that may be wrong: every member of an ensemble prefers the other reply, and each is surer of that than
    of half of its choices. One model alone cannot tell its own mistake from the label's."""
    if members_NM is None or np.asarray(members_NM).shape[1] < 2:
        return {"members": 1, "found": None, "why": "the model is no ensemble, so nothing votes on a label"}
    members = np.asarray(members_NM, dtype=np.float64)
    assert members.shape[0] == pairs.replies, (members.shape, pairs.replies)
    margins_PM = pairs.margins(members)
    usual_M = np.maximum(np.median(np.abs(margins_PM), axis=0), 1e-12)
    # How far against the label the least convinced member is, in units of its own usual margin.
    against_P = (-margins_PM / usual_M).min(axis=1)
    order = [int(n) for n in np.argsort(-against_P, kind="stable") if against_P[n] > 1]
    rows = [
        {**_to_read(pairs.items[n], scores, margins[n]), "margins": margins_PM[n].tolist()} for n in order[:SUSPECTS]
    ]
    return {"members": members.shape[1], "found": len(order), "share": len(order) / len(pairs), "pairs": rows}
