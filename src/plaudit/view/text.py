"""Numbers as text: for pages with a true minus and a blank that does not break, for terminals and JSON (`plain_`)
without either."""

from collections.abc import Sequence
from html import unescape


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number on a page: a true minus sign, no minus zero, a dash for nothing."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "–" if value is None else f"{number(100 * value, digits)}\u00a0%"


def interval(ends: Sequence[float] | None, digits: int = 2, *, share: bool = False) -> str:
    """'0.31 to 0.52', ready to stand after a number."""
    if ends is None:
        return "too few prompts"
    low, high = ends
    return f"{number(100 * low, 1)} to {percent(high)}" if share else f"{number(low, digits)} to {number(high, digits)}"


def plain_percent(share: float, unit: str = " %") -> str:
    return f"{100 * share:.1f}{unit}"


def plain_interval(ends: Sequence[float], unit: str = " %") -> str:
    """Of shares, in percent."""
    return f"{plain_percent(ends[0], '')} to {plain_percent(ends[1], unit)}"


def plain_points(gain: float, ends: Sequence[float] | None) -> str:
    """The difference of two shares with its interval: '+2.0 points (-1.0 to +5.0)'."""
    between = f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}" if ends else "too few prompts for an interval"
    return f"{100 * gain:+.1f} points ({between})"


def temperature(value: float) -> str:
    """A fitted temperature; at the largest one that is tried the margins say nothing of who wins."""
    return f"{value:.2f}" if value < 99 else "over 99"


def plain(page: str) -> str:
    """Words of a page as a terminal shows them."""
    return unescape(page).replace("\u00a0", " ").replace("−", "-").strip()
