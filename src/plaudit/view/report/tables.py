"""The rows of the report's tables, and the examples it shows."""

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from plaudit.algo.statistics import bootstrap_interval
from plaudit.view.plots import Rows

EXAMPLES = 9


def choose_examples(replies: Rows) -> list[dict[str, Any]]:
    """The first reply of prompts evenly spaced through each kind, in file order: a rule, not a choice.

    Kinds take turns until `EXAMPLES` prompts (or one a kind, if there are more kinds) are given out or none is left.
    """
    first: dict[str, dict[str, Any]] = {}
    for row in replies:
        first.setdefault(row["id"], row)
    groups = _by_kind(first.values())
    shares = dict.fromkeys(groups, 0)
    left = min(len(first), max(EXAMPLES, len(groups)))
    while left:
        for kind in shares:
            if left and shares[kind] < len(groups[kind]):
                shares[kind] += 1
                left -= 1
    return [groups[kind][i * len(groups[kind]) // share] for kind, share in shares.items() for i in range(share)]


def _by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kind = itemgetter("kind")
    return {name: list(own) for name, own in groupby(sorted(rows, key=kind), key=kind)}


def gold_by_kind(replies: Rows) -> list[dict[str, Any]]:
    """Gold score before and after for each kind of prompt, the gain's interval clustered by prompt; [] without gold."""
    if any(row[model]["gold"] is None for row in replies for model in ("sft", "ppo")):
        return []
    table = []
    for kind, rows in _by_kind(replies).items():
        sft, ppo = (np.array([row[model]["gold"] for row in rows]) for model in ("sft", "ppo"))
        prompts = [row["id"] for row in rows]
        gain_ci = bootstrap_interval(ppo - sft, prompts)
        means = {"sft": float(sft.mean()), "ppo": float(ppo.mean()), "gain": float((ppo - sft).mean())}
        table.append({"kind": kind, "prompts": len(set(prompts)), **means, "gain_ci": gain_ci})
    return table


def seconds_by_part(times: Rows) -> dict[str, float]:
    """Median seconds that an update of PPO spends sampling, scoring and training."""
    parts = [name for name in times[0] if name != "update"]
    return {part: float(np.median([row[part] for row in times])) for part in parts}
