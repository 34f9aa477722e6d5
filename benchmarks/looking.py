"""What looking after every label costs: the confidence sequence of the win rate beside a test of fixed size.

Simulated blind comparisons whose true win rate is known; after each label somebody looks whether the interval leaves
one half, and would stop. Counted is how often that is a false alarm at a true half, and after how many labels it comes
at other rates, beside the fixed-size interval (Wilson's) looked at in the same way. A fixed-size test has to choose its
number of labels before the first: that of 5 % error and 80 % power at the smallest win rate that it must not miss.

    python benchmarks/looking.py [--comparisons 10000] [--labels 1000]
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from plaudit.algo.statistics import log_capital

OUTCOMES = np.array([0.0, 0.5, 1.0])


def first_alarms(
    win_rate: float, ties: float, comparisons: int, labels: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(labels until the confidence sequence leaves one half, the same of a 95 % Wilson interval from 10 labels on) of
    each comparison; `labels` + 1 where it never did. `ties` of the labels are one."""
    law = [(1 - ties) * (1 - win_rate), ties, (1 - ties) * win_rate]
    drawn = np.random.default_rng(seed).choice(3, size=(comparisons, labels), p=law)
    counts = np.zeros((comparisons, 3))
    found = np.full((2, comparisons), labels + 1)
    for n in range(1, labels + 1):
        counts[np.arange(comparisons), drawn[:, n - 1]] += 1
        mean = counts @ OUTCOMES / n
        # The score interval leaves one half where the mean is further from it than z standard errors of a half.
        alarms = (
            log_capital(OUTCOMES, counts, 0.5) >= math.log(20),
            (np.abs(mean - 0.5) > 0.98 / math.sqrt(n)) & (n > 9),
        )
        found = np.where((found > labels) & np.stack(alarms), n, found)
    return found[0], found[1]


def fixed_size(smallest: float) -> int:
    """Labels of the two-sided test of a win rate of one half at 5 % with 80 % power at the rate `smallest`."""
    at_half, there = 1.959964 * 0.5, 0.841621 * math.sqrt(smallest * (1 - smallest))
    return math.ceil(((at_half + there) / (smallest - 0.5)) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--labels", type=int, default=1000)
    asked = parser.parse_args()
    for ties in (0.0, 0.3):
        found = [np.mean(alarm <= asked.labels) for alarm in first_alarms(0.5, ties, asked.comparisons, asked.labels)]
        print(f"true 50 %, {ties:.0%} ties: false alarms {found[0]:.1%}, of the fixed-size interval {found[1]:.1%}")
    planned = {rate: fixed_size(rate) for rate in (0.55, 0.6, 0.65)}
    print("fixed size: " + ", ".join(f"{n} labels for {rate:.0%}" for rate, n in planned.items()))
    for rate in (0.6, 0.65, 0.7, 0.8):
        alarm, _ = first_alarms(rate, 0.0, asked.comparisons // 10, asked.labels)
        print(f"true {rate:.0%}: {np.median(alarm):.0f} labels, {np.quantile(alarm, 0.9):.0f} in nine of ten")


if __name__ == "__main__":
    main()
