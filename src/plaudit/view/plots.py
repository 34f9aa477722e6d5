"""The report's plots: each a small SVG with its title and key beside it, in colours the page's style sheet decides.

matplotlib draws through `Figure` (no pyplot, no window). Its colours are swapped for CSS variables, so one plot serves
a light and a dark page, and its text stays text. Numbers are read from the stages' files as they are; nothing is
fitted or smoothed but the one trailing mean that its key names.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plaudit.view.text import number

# Drawn in these, shown in the page's variable of the same name; colour-blind safe by hue and by lightness.
INK, MUTED, GRID = "#1b1f24", "#5f6770", "#dde1e6"
SFT, PPO, REWARD = "#46678a", "#c2560a", "#0b766d"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SFT: "sft", PPO: "ppo", REWARD: "reward"}

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "text.parse_math": False, "text.color": INK, "svg.fonttype": "none",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.formatter.useoffset": False, "axes.formatter.use_mathtext": False,
    "grid.color": GRID, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "lines.linewidth": 1.6, "lines.markersize": 4, "figure.facecolor": "none",
    "savefig.facecolor": "none",
}  # fmt: skip

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
