"""What the pages' plots are drawn with: each a small SVG with its title and key beside it, its text left as text.

matplotlib draws through `Figure` (no pyplot, no window). Its colours are swapped for CSS variables, so one plot serves
a light and a dark page.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from plaudit.view.text import number

# Drawn in these, shown in the page's variable of the same name; colour-blind safe by hue and by lightness.
INK, MUTED, GRID = "#1b1f24", "#5f6770", "#dde1e6"
SFT, PPO, REWARD = "#46678a", "#c2560a", "#0b766d"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SFT: "sft", PPO: "ppo", REWARD: "reward"}

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
    "grid.color": GRID,
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor", "svg.fonttype"), "none"),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.parse_math"), False),
    **dict.fromkeys(("axes.formatter.useoffset", "axes.formatter.use_mathtext"), False),
}

Rows = Sequence[dict[str, Any]]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Plot:
    """One plot: `title` says in words what is seen; each key is (mark: line, thin, dash or dot; colour; label)."""

    name: str
    title: str
    svg: Markup
    keys: tuple[Key, ...]
    note: str


def draw(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    paint: Callable[[Axes], None],
    keys: Sequence[Key] = (),
    note: str = "",
    height: float = 2.3,
) -> Plot:
    """One plot, drawn on fresh axes; `paint` may change anything but the labels."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # A kind may be named in a script that DejaVu lacks; the reader's browser has the font.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure = Figure(figsize=(3.5, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(name, title, _for_page(buffer.getvalue()), tuple(keys), note)


def _for_page(svg: str) -> Markup:
    """Keep the drawing alone, without the ids that would repeat from plot to plot, in the page's colours."""
    svg = re.sub(r' id="[A-Za-z.]+_\d+"', "", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return Markup(svg)


def change(before: float, after: float, show: Callable[[float], str] = number) -> str:
    """'rose from 1.00 to 2.00', or what else it did to the digits shown."""
    if show(before) == show(after):
        return f"stayed at {show(after)}"
    return f"{'rose' if after > before else 'fell'} from {show(before)} to {show(after)}"


def column(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows]


def whole_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def in_percent(axis: Axis) -> None:
    """Shares, written as percent without the sign."""
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))


def histogram(axes: Axes, counts: ArrayLike, edges: ArrayLike, mean: float, colour: str) -> None:
    """The share of all counts in each bin, and a line at the mean."""
    share = np.asarray(counts) / np.sum(counts) * 100
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
    axes.stairs(share, edges, color=colour, linewidth=1.3)
    axes.axvline(mean, color=colour, linestyle="--", linewidth=1.3)
