"""Numbers as text."""

from collections.abc import Sequence


def interval(ends: Sequence[float] | None, digits: int = 2, *, share: bool = False) -> str:
    """'0.31 to 0.52', ready to stand after a number."""
    if ends is None:
        return "–"
    low, high = ends
    return f"{number(100 * low, 1)} to {percent(high)}" if share else f"{number(low, digits)} to {number(high, digits)}"


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number as the report writes it: a true minus sign, no minus zero, a dash for nothing."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; its space does not break."""
    return "–" if value is None else f"{number(100 * value, digits)}\u00a0%"


def temperature(value: float) -> str:
    """A fitted temperature; at the largest one that is tried the margins say nothing of who wins."""
    return f"{value:.2f}" if value < 99 else "over 99"
