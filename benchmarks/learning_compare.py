"""Curves of learning.py and peers/trl_learning.py side by side: a table, an interval and a picture.

    python benchmarks/learning_compare.py ours-0.json ours-1.json ours-2.json trl-1e-4.json trl-3e-4.json \\
        --peer "TRL 1.12" --picture docs/images/learning.svg

Runs of one label are seeds of one thing; where they have several learning rates, the best one by its mean reward at the
budget is taken, and the others are named. "At the budget" is the highest point of a run's curve, reward over KL, within
`--kl` nats a reply; where the curve crosses the budget it is interpolated, and so is every other measure there. The
choice of the point favours every run alike. distinct-2 is given as a share of the first evaluation's, the SFT model's.

The interval of a label's reward minus the peer's is a 95 % bootstrap over held-out openings (the same for both) and
over runs; with one run of the peer its part of the noise between runs is not in it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plaudit.view.plots import STYLE
from task import openings, read_json

COLOURS = ("#c2560a", "#46678a", "#0b766d", "#8b3f7f", "#a08a00", "#5f6770", "#1b1f24")
DRAWS = 4000


@dataclass(frozen=True)
class Point:
    """A place on a curve: `share` of the way from evaluation `before` to `after`."""

    before: dict[str, Any]
    after: dict[str, Any]
    share: float

    def at(self, name: str) -> float:
        return self.before[name] + self.share * (self.after[name] - self.before[name])

    def by_prompt(self) -> np.ndarray:
        """[openings], in the order of their names."""
        first, second = self.before["rewards_by_prompt"], self.after["rewards_by_prompt"]
        assert first.keys() == second.keys()
        return np.array([first[name] + self.share * (second[name] - first[name]) for name in sorted(first)])


def at_budget(rows: Sequence[dict[str, Any]], budget: float) -> Point:
    """The highest point of the polyline (kl, reward) with kl ≤ budget."""
    points = [Point(row, row, 0.0) for row in rows if row["kl"] <= budget]
    for before, after in pairwise(rows):
        if (before["kl"] <= budget) != (after["kl"] <= budget):
            points.append(Point(before, after, (budget - before["kl"]) / (after["kl"] - before["kl"])))
    if not points:
        raise SystemExit(f"no evaluation lies within {budget} nats; even the first has {rows[0]['kl']:.2f}")
    return max(points, key=lambda point: point.at("reward"))


def chosen(runs: list[dict[str, Any]], budget: float) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Label -> its runs with the best learning rate, and a line for every learning rate that was left out."""
    kept: dict[str, list[dict[str, Any]]] = {}
    left: list[str] = []
    for label in dict.fromkeys(run["label"] for run in runs):
        by_rate: dict[float, list[dict[str, Any]]] = {}
        for run in runs:
            if run["label"] == label:
                by_rate.setdefault(run["learning_rate"], []).append(run)
        means = {
            rate: float(np.mean([at_budget(run["evaluations"], budget).at("reward") for run in part]))
            for rate, part in by_rate.items()
        }
        best = max(means, key=lambda rate: means[rate])
        kept[label] = by_rate[best]
        left += [f"{label}: learning rate {r:g} gave {means[r]:.3f}, not shown" for r in means if r != best]
    return kept, left


def difference(ours: Sequence[Point], peer: Sequence[Point], seed: int = 0) -> tuple[float, float, float]:
    """Mean reward of `ours` minus the peer's, with the interval's two ends."""
    a_RP, b_RP = np.stack([p.by_prompt() for p in ours]), np.stack([p.by_prompt() for p in peer])
    draw = np.random.default_rng(seed)
    prompts = draw.integers(0, a_RP.shape[1], (DRAWS, a_RP.shape[1]))
    means = []
    for runs_RP in (a_RP, b_RP):
        runs = draw.integers(0, len(runs_RP), (DRAWS, len(runs_RP)))
        means.append(runs_RP[runs[:, :, None], prompts[:, None, :]].mean(axis=(1, 2)))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(a_RP.mean() - b_RP.mean()), float(low), float(high)


def table(kept: dict[str, list[dict[str, Any]]], budget: float) -> list[str]:
    """Rows of Markdown, one a run."""
    heads = [
        "run",
        "seed",
        "learning rate",
        "reward, SFT",
        f"reward at KL ≤ {budget:g}",
        "KL there",
        "update there",
        "distinct-2 / SFT there",
        "last reward",
        "last KL",
        "s an update",
        "updates, s",
        "peak, MB",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for label, runs in kept.items():
        for run in runs:
            rows = run["evaluations"]
            point, first, last = at_budget(rows, budget), rows[0], rows[-1]
            cells = [
                label,
                str(run["seed"]),
                f"{run['learning_rate']:g}",
                f"{first['reward']:.3f}",
                f"{point.at('reward'):.3f}",
                f"{point.at('kl'):.2f}",
                f"{point.at('update'):.1f}",
                f"{point.at('distinct_2') / first['distinct_2']:.2f}",
                f"{last['reward']:.3f}",
                f"{last['kl']:.2f}",
                f"{run['seconds_per_update']:.1f}",
                f"{run['seconds']:.0f}",
                f"{run['peak_rss_mb']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def picture(kept: dict[str, list[dict[str, Any]]], budget: float, path: Path) -> None:
    """Reward over updates, reward and distinct-2 over KL; a line a run."""
    style = {**STYLE, "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": path.stem}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        over_update, over_kl, variety = figure.subplots(1, 3)
        for colour, (label, runs) in zip(COLOURS, kept.items(), strict=False):
            for number, run in enumerate(runs):
                rows = run["evaluations"]
                kl, reward = [row["kl"] for row in rows], [row["reward"] for row in rows]
                share = [row["distinct_2"] / rows[0]["distinct_2"] for row in rows]
                line = {"color": colour, "marker": ".", "label": label if number == 0 else None}
                over_update.plot([row["update"] for row in rows], reward, **line)
                over_kl.plot(kl, reward, **line)
                variety.plot(kl, share, **line)
        over_update.set(xlabel="update", ylabel="held-out reward (VADER compound)")
        over_kl.set(xlabel="KL to the SFT model, nats a reply", ylabel="held-out reward")
        variety.set(xlabel="KL to the SFT model, nats a reply", ylabel="distinct-2, share of the SFT model's")
        for axes in (over_kl, variety):
            axes.axvline(budget, color=STYLE["axes.edgecolor"], linestyle="--", linewidth=0.9)
        variety.axhline(0.8, color=STYLE["axes.edgecolor"], linestyle=":", linewidth=0.9)
        over_update.legend(frameon=False, loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)


def replies(kept: dict[str, list[dict[str, Any]]], budget: float) -> list[str]:
    """Of each label's first run: replies to a few openings at the start and at the evaluation nearest to its point."""
    opening = {row["id"]: row["prompt"] for row in openings("validation")}
    lines = []
    for label, runs in kept.items():
        rows = runs[0]["evaluations"]
        point = at_budget(rows, budget)
        there = point.before if point.share < 0.5 else point.after
        for prompt, text in rows[0]["replies"].items():
            lines += [f"{label}, {opening[prompt]!r}", f"    SFT:         {text!r}"]
            lines.append(f"    update {there['update']:4d}: {there['replies'][prompt]!r}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what --out wrote")
    parser.add_argument("--peer", help="label the others are compared with")
    parser.add_argument("--kl", type=float, default=8.0, help="budget in nats a reply")
    parser.add_argument("--picture", type=Path, help="write the curves there (.svg or .png)")
    given = parser.parse_args()
    kept, left = chosen([read_json(file) for file in given.files], given.kl)
    if len(kept) > len(COLOURS):
        parser.error(f"{len(kept)} labels; the picture has colours for {len(COLOURS)}")
    print("\n".join([*table(kept, given.kl), "", *left]))
    if given.peer is not None:
        if given.peer not in kept:
            parser.error(f"--peer {given.peer!r}: the files have the labels {', '.join(kept)}")
        points = {label: [at_budget(run["evaluations"], given.kl) for run in runs] for label, runs in kept.items()}
        for label in kept:
            if label != given.peer:
                mean, low, high = difference(points[label], points[given.peer])
                print(f"{label} minus {given.peer}: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    print("\n".join(["", *replies(kept, given.kl)]))
    if given.picture is not None:
        picture(kept, given.kl, given.picture)


if __name__ == "__main__":
    main()
