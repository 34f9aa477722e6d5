"""Does choosing what people label save labels? Reward accuracy and the gold of best-of-n over labels, by rule.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/active.py --json active.json --picture docs/images/active.svg

A task of the kind that rounds have, small enough for curves of many seeds. A reply is a vector of 24 features drawn
around its prompt's; its gold is a fixed linear taste of them and a part that no linear model sees; the annotator has
Gaussian noise, and prefers the better of two by what is perceived. The reward model is an ensemble of four heads of
Plaudit's own (models.heads) learnt by its Bradley-Terry loss (algo.preferences), each from a start of its own on a
resampling of the labels. Labels come in four steps, 50, 100, 200 and 400. The pairs of a step are, of eight replies to
each of fresh prompts, the two that are worth most by `plaudit.label.queue.active` and the reward model before (in the
first step random ones for all). Seeds, prompts, replies, noise and starts are the same for all rules, so differences
are paired.

What it leaves out: a language model. Text has more directions than 24, and its reward models learn features as well.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from plaudit.algo.preferences import bradley_terry_loss
from plaudit.algo.statistics import bootstrap_interval
from plaudit.label.queue.active import PairRule, worth
from plaudit.models.heads import ScalarHead

STEPS = (50, 100, 200, 400)
FEATURES, CANDIDATES, MEMBERS = 24, 8, 4
TESTED, BEST_OF = 1000, 16
PAIRS = [*combinations(range(CANDIDATES), 2)]
RULES = ("random", *get_args(PairRule))


class Task:
    """Prompts, replies and the annotator of a seed."""

    def __init__(self, seed: int, noise: float):
        self.seed, self.noise = seed, noise
        draw = np.random.default_rng([seed, 0])
        self.taste = draw.standard_normal(FEATURES) / FEATURES**0.5
        self.bent = draw.standard_normal((FEATURES, 8)) / FEATURES**0.5

    def replies(self, stream: int, prompts: int, count: int) -> np.ndarray:
        """[prompts, count, FEATURES]."""
        draw = np.random.default_rng([self.seed, 1, stream])
        return draw.standard_normal((prompts, 1, FEATURES)) + draw.standard_normal((prompts, count, FEATURES))

    def gold(self, replies: np.ndarray) -> np.ndarray:
        return replies @ self.taste + 0.3 * np.tanh(replies @ self.bent).sum(axis=-1) / 8**0.5

    def first_wins(self, pairs: np.ndarray, stream: int) -> np.ndarray:
        """Of pairs [n, 2, FEATURES]: whether the annotator prefers the first."""
        noise = np.random.default_rng([self.seed, 2, stream]).standard_normal((len(pairs), 2)) * self.noise
        seen = self.gold(pairs) + noise
        return seen[:, 0] > seen[:, 1]


def learnt(pairs: np.ndarray, wins: np.ndarray, seed: int) -> list[ScalarHead]:
    """The members, each on a resampling of the labels of its own."""
    members = []
    for member in range(MEMBERS):
        draw = np.random.default_rng([seed, 3, member])
        rows = draw.integers(0, len(pairs), len(pairs))
        sides = np.where(wins[rows, None, None], pairs[rows], pairs[rows][:, ::-1])
        better, worse = (torch.tensor(sides[:, side], dtype=torch.float32) for side in (0, 1))
        head = ScalarHead(FEATURES, bias=False)
        weight = head.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(torch.tensor(draw.standard_normal(tuple(weight.shape)) * 0.1, dtype=torch.float32))
        optimiser = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            ones = torch.full((len(rows),), 1 / len(rows))
            bradley_terry_loss(head(better), head(worse), ones).backward()
            optimiser.step()
        members.append(head.requires_grad_(False))
    return members


def scores(members: list[ScalarHead], replies: np.ndarray) -> np.ndarray:
    """[..., M]."""
    x = torch.tensor(replies, dtype=torch.float32)
    return np.stack([head(x.reshape(-1, FEATURES)).reshape(x.shape[:-1]).numpy() for head in members], axis=-1)


def curve(rule: str, seed: int, noise: float) -> list[dict[str, float]]:
    """A row a step: accuracy on random pairs of fresh prompts by gold, and the gold of best of n over the mean's."""
    task = Task(seed, noise)
    pairs, wins, members = np.empty((0, 2, FEATURES)), np.empty(0, dtype=bool), list[ScalarHead]()
    test = task.replies(99, TESTED, BEST_OF)
    gold, rows = task.gold(test), []
    for stream, labels in enumerate(STEPS):
        fresh = task.replies(stream, labels - len(pairs), CANDIDATES)
        if rule == "random" or not members:
            picked = PAIRS[:1] * len(fresh)
        else:
            picked = [PAIRS[worth(of_prompt, rule).argmax()] for of_prompt in scores(members, fresh)]
        new = np.stack([replies[list(two)] for replies, two in zip(fresh, picked, strict=True)])
        pairs, wins = np.concatenate([pairs, new]), np.concatenate([wins, task.first_wins(new, stream)])
        members = learnt(pairs, wins, seed)
        judged = scores(members, test).mean(axis=-1)
        right = (judged[:, 0] > judged[:, 1]) == (gold[:, 0] > gold[:, 1])
        best = np.take_along_axis(gold, judged.argmax(axis=1)[:, None], axis=1)[:, 0]
        rows.append(
            {"labels": labels, "accuracy": float(right.mean()), "gold": float((best - gold.mean(axis=1)).mean())}
        )
    return rows


def compared(curves: dict[str, list[list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """A row a rule and step: means, and paired differences from random with 95 % intervals over seeds."""
    found = []
    for rule, of_seeds in curves.items():
        for step, labels in enumerate(STEPS):
            row: dict[str, Any] = {"rule": rule, "labels": labels}
            for name in ("accuracy", "gold"):
                own = np.array([rows[step][name] for rows in of_seeds])
                gain = own - np.array([rows[step][name] for rows in curves["random"]])
                row[name] = float(own.mean())
                row[f"{name}_gain"] = [float(gain.mean()), *(bootstrap_interval(gain) or [np.nan, np.nan])]
            found.append(row)
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (name, title) in enumerate((("accuracy", "Reward accuracy"), ("gold", f"Gold of best of {BEST_OF}")), 1):
        axes = figure.add_subplot(1, 2, place)
        for rule in RULES:
            own = [row for row in rows if row["rule"] == rule]
            axes.plot([row["labels"] for row in own], [row[name] for row in own], marker="o", label=rule)
        axes.set(title=title, xlabel="labels", xscale="log", xticks=STEPS, xticklabels=STEPS)
        axes.minorticks_off()
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="std of the annotator's noise; gold's is about 1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    curves = {rule: [curve(rule, seed, asked.noise) for seed in range(asked.seeds)] for rule in RULES}
    rows = compared(curves)
    for row in rows:
        gains = "  ".join(
            f"{name} {row[name]:.3f} ({row[f'{name}_gain'][0]:+.3f}, {row[f'{name}_gain'][1]:+.3f} to "
            f"{row[f'{name}_gain'][2]:+.3f})"
            for name in ("accuracy", "gold")
        )
        print(f"{row['rule']:10} {row['labels']:4}  {gains}")
    if asked.json:
        asked.json.write_text(json.dumps({"noise": asked.noise, "seeds": asked.seeds, "rows": rows}, indent=1) + "\n")
    if asked.picture:
        draw(rows, asked.picture)


if __name__ == "__main__":
    main()
