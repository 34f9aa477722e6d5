"""The plots of a report card, in the report's own style: each says in its title what is seen. And its own page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from plaudit.view.card.table import PARTS, part_rows
from plaudit.view.page import render_page
from plaudit.view.plots import INK, MUTED, PPO, REWARD, SFT, Plot, column, draw, histogram, in_percent
from plaudit.view.text import number, percent, temperature

_NAME = 26
_ROWS = 12

Card = Mapping[str, Any]
Bar = tuple[str, float, Sequence[float] | None, str]
"""Name, accuracy, its interval, colour."""


def card_plots(card: Card) -> list[Plot]:
    """Beside the baselines, reliability, scores, margins, by length, and by kind, source and judge where there are."""
    plots = [_beside(card), _reliability(card), _margins(card), _scores(card)]
    titles = {
        "by_length_gap": _length_title(card),
        "by_kind": _spread_title(card["by_kind"], "kinds of prompt"),
        "by_source": _spread_title(card["by_source"], "pairs of sources"),
        "by_judge_margin": f"Accuracy by how much better the winner is by {card['by_judge_margin']['of']}",
    }
    return plots + [_parts(card, part, title) for part, title in titles.items() if len(part_rows(card, part)) > 1]


def card_page(card: Card) -> str:
    """A report card, with its model and data, as a page of its own: one file without scripts or anything fetched."""
    return render_page("card/card.html.j2", parts=PARTS, card=card, plots=card_plots(card), open_mistakes=True)


def _beside(card: Card) -> Plot:
    """The model, the baselines and people, each with its interval."""
    rows: list[Bar] = [
        ("reward\nmodel", card["accuracy"], card["accuracy_ci"], REWARD),
        ("length\nalone", card["length"]["accuracy"], card["length"]["accuracy_ci"], MUTED),
    ]
    if card["position"]["listed"] == "either way":
        rows.append(("listed\nfirst", card["position"]["accuracy"], card["position"]["accuracy_ci"], MUTED))
    if card["ceiling"]["compared"]:
        rows.append(("annotators", card["ceiling"]["agreement"], card["ceiling"]["agreement_ci"], INK))
    gain = card["length"]["gain"]
    title = f"It is {number(abs(100 * gain), 1)} points {'more' if gain >= 0 else 'less'} accurate than length alone"
    keys = [("dot", "ink", "with 95 % interval"), ("dash", "muted", "a coin")]
    return draw("reward-beside", title, "accuracy (% of pairs)", "", lambda axes: _with_intervals(axes, rows, 7), keys)


def _with_intervals(axes: Axes, rows: Sequence[Bar], size: float, usual: float | None = None) -> None:
    """Accuracies below each other, with a line at a coin's and one at the `usual`."""
    axes.axvline(0.5, color=MUTED, linestyle="--", linewidth=1)
    if usual is not None:
        axes.axvline(usual, color=REWARD, linestyle=":", linewidth=1.2)
    for place, (_, value, ends, colour) in enumerate(rows):
        error = None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
        axes.errorbar([value], [place], xerr=error, fmt="o", color=colour, capsize=3, markersize=size)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    in_percent(axes.xaxis)


def _reliability(card: Card) -> Plot:
    found = card["calibration"]
    after = found["temperature"]

    def paint(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle="--", linewidth=1)
        for bins, colour in ((found["bins"], REWARD), (after["bins"] if after else [], PPO)):
            axes.plot(column(bins, "confidence"), column(bins, "accuracy"), color=colour, marker="o")
        in_percent(axes.xaxis)
        in_percent(axes.yaxis)

    confidence, right = percent(found["confidence"]), percent(card["accuracy"])
    title = f"It claims {confidence} confidence and is right in {right}: ECE {number(found['ece'], 3)}"
    bins = f"{len(found['bins'])} bins of equally many pairs"
    keys = [("line", "reward", bins), ("dash", "muted", "perfectly calibrated")]
    note = f"A perfectly calibrated model would show ECE {number(found['ece_expected'], 3)} on so few pairs."
    if after:
        keys.insert(1, ("line", "ppo", f"divided by a temperature of {temperature(after['value'])}"))
        note += f" With the temperature: {number(after['ece'], 3)}, each half of the prompts judged by the other's."
    return draw("reward-reliability", title, "confidence it states (%)", "accuracy (% of pairs)", paint, keys, note)


def _margins(card: Card) -> Plot:
    found = card["histograms"]["margins"]
    edges, counts = np.array(found["edges"]), np.array(found["counts"])
    width = edges[1] - edges[0]

    def paint(axes: Axes) -> None:
        share = counts / counts.sum() * 100
        # The bins end at 0 on either side.
        for side, colour in ((edges[:-1] > -width / 2, REWARD), (edges[:-1] < -width / 2, MUTED)):
            axes.bar(edges[:-1][side], share[side], width=width * 0.92, align="edge", color=colour)

    title = f"How far apart it puts the two replies of {card['counts']['strict_pairs']:,} pairs"
    keys = [("line", "reward", "right"), ("line", "muted", "wrong")]
    label = "score of the preferred reply minus the other (raw)"
    return draw("reward-margins", title, label, "share of pairs (%)", paint, keys)


def _scores(card: Card) -> Plot:
    found, spread = card["histograms"]["scores"], card["scores"]

    def paint(axes: Axes) -> None:
        for name, colour in (("rejected", SFT), ("chosen", REWARD)):
            histogram(axes, found[name], found["edges"], spread[f"{name}_mean"], colour)

    apart = (spread["chosen_mean"] - spread["rejected_mean"]) / spread["std"] if spread["std"] else 0.0
    way = "higher" if apart >= 0 else "lower"
    title = f"Preferred replies score {number(abs(apart))} standard deviations {way} than the others"
    keys = [("line", "reward", "preferred"), ("line", "sft", "other"), ("dash", "muted", "mean")]
    return draw("reward-scores", title, "score (raw)", "share of replies (%)", paint, keys)


def _parts(card: Card, part: str, title: str) -> Plot:
    """Accuracy of each row with its interval, and how often the longer reply won there."""
    rows: list[Bar] = []
    for row in part_rows(card, part)[:_ROWS]:
        name = row["name"] if len(row["name"]) <= _NAME else row["name"][: _NAME - 1] + "…"
        rows.append((f"{name}\n{row['pairs']:,}", row["accuracy"], row["accuracy_ci"], REWARD))

    def paint(axes: Axes) -> None:
        _with_intervals(axes, rows, 5, card["accuracy"])
        axes.set_xlim(-0.02, 1.02)

    height = max(2.3, 0.34 * len(rows) + 0.8)
    keys = [("dot", "reward", "with 95 % interval"), ("dash", "reward", "all pairs"), ("dash", "muted", "a coin")]
    note = f"By {PARTS[part]}; the number of pairs stands below the name."
    return draw(f"reward-{part}", title, "accuracy (% of pairs)", "", paint, keys, note, height=height)


def _length_title(card: Card) -> str:
    longer, shorter = (card["length"][f"accuracy_{name}_won"]["accuracy"] for name in ("longer", "shorter"))
    if longer is None or shorter is None:
        return "Accuracy by how much longer the preferred reply is"
    return f"Right in {percent(longer)} where the longer reply won, in {percent(shorter)} where the shorter one did"


def _spread_title(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    if not rows:
        return ""
    values = [row["accuracy"] for row in rows]
    return f"From {percent(min(values))} to {percent(max(values))} over {len(rows)} {what}"
