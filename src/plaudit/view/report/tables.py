"""The rows of the report's tables, and the examples it shows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.algo.statistics import bootstrap_interval
from plaudit.view.plots import Rows
from plaudit.view.text import interval, number, percent

EXAMPLES = 9


@dataclass(frozen=True)
class Line:
    """One line of the headline table, as it is shown."""

    name: str
    meaning: str
    sft: str
    ppo: str
    change: str = ""
    interval: str = ""


# Name in evaluate/summary.json, name on the page, what it is, decimals (None: a share, shown in percent).
MEASURES: tuple[tuple[str, str, str, int | None], ...] = (
    ("length", "Length", "tokens a reply, its end-of-turn token included", 1),
    ("eos", "EOS rate", "replies that end before the length limit", None),
    ("ref_nll", "Reference NLL", "nats a token under the SFT model; a rise means less fluent", 2),
    (
        "repeated_trigrams",
        "Repeated 3-grams",
        "a reply's token 3-grams that occurred before in it; loops raise it",
        None,
    ),
    ("distinct_bigrams", "Distinct-2", "distinct token 2-grams over all; a fall means replies become alike", None),
    ("declines", "Declines", "replies to safety prompts that say no", None),
)


def headline(evaluated: dict[str, Any], replies: Rows, people: dict[str, Any] | None = None) -> list[Line]:
    """SFT against PPO on the test prompts; gold, people's comparisons and declines only where they were measured."""
    clusters = [row["id"] for row in replies]
    proxy_ci = bootstrap_interval([row["ppo"]["proxy"] - row["sft"]["proxy"] for row in replies], clusters)

    def line(name: str, label: str, meaning: str, digits: int | None, ends: str = "") -> Line:
        before, after = evaluated[f"{name}_sft"], evaluated[f"{name}_ppo"]
        if digits is None:
            change = f"{number(100 * (after - before), 1, sign=True)} points"
            return Line(label, meaning, percent(before), percent(after), change, ends)
        change = number(after - before, digits, sign=True)
        return Line(label, meaning, number(before, digits), number(after, digits), change, ends)

    lines = []
    if "gold_gain" in evaluated:
        gold = "the simulated annotator's utility without its noise; PPO is not paid by it"
        wins = "pairs in which PPO's reply has the higher gold score; a tie counts half"
        ends = interval(evaluated["win_rate_ci"], share=True)
        lines.append(line("gold", "Gold score", gold, 2, interval(evaluated["gold_gain_ci"])))
        lines.append(Line("Win rate", wins, "", percent(evaluated["win_rate"]), interval=ends))
    if people is not None:
        said = f"{people['labels']} blind comparisons by people on {people['prompts']} prompts; a tie counts half"
        ends = interval([people["low"], people["high"]], share=True)
        lines.append(Line("People prefer PPO", said, "", percent(people["win_rate"]), interval=ends))
    proxy = "the score PPO was paid by; of one reward, 0 ± 1 for SFT replies to training prompts"
    lines.append(line("proxy", "Proxy score", proxy, 2, interval(proxy_ci)))
    lines.append(Line("KL", "of the policy from the reference, nats a reply", "0", number(evaluated["kl"])))
    return lines + [line(*measure) for measure in MEASURES if f"{measure[0]}_sft" in evaluated]


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
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["kind"], []).append(row)
    return dict(sorted(groups.items()))


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
