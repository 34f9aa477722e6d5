"""PPO beside best-of-n, rejection sampling and DPO: who wins at which KL in words that the intervals decide, and the
plot over the KL."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from plaudit.view.plots import INK, PPO, REWARD, SFT, Plot, column, draw
from plaudit.view.text import interval, number

NAMES = {"ppo": "PPO", "rejection": "rejection sampling", "dpo": "DPO"}
COLOURS = {"ppo": (PPO, "ppo"), "rejection": (INK, "ink"), "dpo": (REWARD, "reward")}
"""Drawn in, and shown in the page's variable of that name."""


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each two methods that were compared; `found` is baselines/summary.json."""
    measure = f"{found['measure']} score"
    said = []
    for method, row in found["methods"].items():
        if "over_best_of_n" not in row:
            continue
        best, name = row["over_best_of_n"], NAMES[method]
        at = f"{number(row['kl'])} nats"
        other = f"best of {best['n']:.0f}"
        if best["kl"] < row["kl"] - 0.005:
            other += f", which costs {number(best['kl'])} nats"
        said.append(f"At {at}: {_who(name, other, best['difference'], best['ci'], measure)}")
    for method, gap in found.get("ppo_over", {}).items():
        ppo, other = (number(found["methods"][name]["kl"]) for name in ("ppo", method))
        who = _who("PPO", NAMES[method], gap["difference"], gap["ci"], measure)
        said.append(f"PPO at {ppo} nats, {NAMES[method]} at {other}: {who}")
    return said


def _who(first: str, second: str, difference: float, ci: list[float] | None, measure: str) -> str:
    if ci is None:
        return f"too few prompts to tell {first} from {second} ({measure} {number(difference, sign=True)})."
    told = f"{measure} {number(difference, sign=True)}, 95 % interval {interval(ci)}"
    if ci[0] <= 0 <= ci[1]:
        return f"no clear difference between {first} and {second} ({told})."
    winner, loser = (first, second) if difference > 0 else (second, first)
    return f"{winner} wins over {loser} ({first}'s {told})."


def baselines_plot(found: Mapping[str, Any]) -> Plot:
    """The value over the KL: best-of-n as a line, every other method as a point."""
    measure, best = found["measure"], found.get("best_of_n", [])

    def paint(axes: Axes) -> None:
        axes.plot([0], [found["sft"][measure]], color=SFT, marker="o")
        axes.plot(column(best, "kl"), column(best, measure), color=SFT, marker="o", markersize=3)
        for name, row in found["methods"].items():
            axes.plot([row["kl"]], [row[measure]], color=COLOURS[name][0], marker="D", markersize=6)

    keys = [("line", "sft", "best of n = 1 to 64")] if best else [("dot", "sft", "SFT")]
    keys += [("diamond", COLOURS[name][1], NAMES[name]) for name in found["methods"]]
    title = f"Held-out {measure} score over the distance from the SFT model"
    return draw("baselines", title, "KL (nats a reply)", f"{measure} score", paint, keys)
