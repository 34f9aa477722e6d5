"""A reward that is being gamed: a score that PPO does not optimise fell while the one it is paid by rose."""

import math
import statistics
from collections.abc import Sequence

from plaudit.guard.limits import SMALLEST_CHANGE, TOLERANCE, Row


def gain_se(name: str, now: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    """{f"{name}_gain_se": standard error of mean(now − first)}, paired: entry i of both belongs to one prompt.

    Prompts differ far more among each other than one prompt's reply does before and after, so the difference is known
    better than either mean. (1, 2, 3) against (0, 1, 1): differences 1, 1, 2 and their standard error 1/3. Of fewer
    than two prompts there is none: {}.
    """
    assert len(now) == len(first), (len(now), len(first))
    if len(now) < 2:
        return {}
    differences = [a - b for a, b in zip(now, first, strict=True)]
    return {f"{name}_gain_se": statistics.stdev(differences) / math.sqrt(len(differences))}


def gaming(looks: Sequence[Row], patience: int) -> str | None:
    """The evidence, or None. Each of the last `patience` looks lies below the best held-out score before them, and its
    proxy above that look's, both by more than the noise: looks that are merely unlucky do not come in a row."""
    looks = [row for row in looks if "held_out_score" in row]
    before, last = looks[:-patience], looks[-patience:]
    if not before:
        return None
    best = max(before, key=lambda row: row["held_out_score"])
    fell = all(best["held_out_score"] - row["held_out_score"] > _noise("held_out", best, row) for row in last)
    rose = all(row["score"] - best["score"] > _noise("score", best, row) for row in last)
    if not (fell and rose):
        return None
    held_out, proxy = (", ".join(f"{row[name]:.3g}" for row in last) for name in ("held_out_score", "score"))
    return (
        f"the held-out score fell while the score PPO is paid by rose, {patience} evaluations in a row: "
        f"held-out {best['held_out_score']:.3g} after update {best['update']:g}, then {held_out} {after(last)} "
        f"(falls below {_noise('held_out', best, last[-1]):.2g} count as noise); paid {best['score']:.3g}, then {proxy}"
    )


def _noise(name: str, one: Row, other: Row) -> float:
    """How far a score may differ between two rows by chance: `TOLERANCE` standard errors of the difference.

    Both errors are of differences to the first row, whose noise they share, so √(a² + b²) is rather too large.
    """
    error = math.hypot(one.get(f"{name}_gain_se", 0.0), other.get(f"{name}_gain_se", 0.0))
    return max(TOLERANCE * error, SMALLEST_CHANGE)


def after(looks: Sequence[Row]) -> str:
    return "after updates " + ", ".join(f"{row['update']:g}" for row in looks)
