"""How the cost of a PPO update grows with batch, reply length and model width: seconds, peak memory, exponents.

Random weights of Llama shapes (shapes.py), 8 layers, the tokenizer of `--tokenizer`; everything but the one quantity
stands at its middle value. The exponent is the slope of the logarithms, by least squares: 1 is proportional.

    python benchmarks/scaling.py --tokenizer FOLDER --json --out scaling.json --picture docs/images/scaling.svg
    python benchmarks/scaling.py --tokenizer FOLDER --json --shape 1b           batch and reply of a named shape
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import bench
import shapes
import task

BATCHES, REPLIES, WIDTHS = (4, 8, 16, 32), (16, 32, 64, 128), (192, 384, 576, 768)
BATCH, REPLY, WIDTH, LAYERS = 16, 32, 384, 8
COSTS = {"seconds": "seconds an update", "peak_rss_mb": "peak memory, MB"}


def point(model: Path, batch: int, reply: int) -> dict[str, float]:
    """Median seconds of the second and third update, and the stage's peak. A process of its own: a child's peak is at
    least its parent's, so this one must stay small."""
    overrides = [
        f"ppo.batch_size={batch}",
        f"ppo.minibatch_size={batch // 2}",
        f"sampling.stages.ppo.max_new_tokens={reply}",
    ]
    overrides.append(f"ppo.micro_batch_size={min(task.MICRO_BATCH, batch // 2)}")
    found = bench.run([sys.executable, "ppo.py", "--model", str(model), "--updates", "3", "--json", *overrides])
    return {"seconds": float(np.median(found["seconds_per_update"][1:])), "peak_rss_mb": found["peak_rss_mb"]}


def exponent(values: list[float], costs: list[float]) -> float:
    """k of cost ∝ value^k."""
    return round(float(np.polyfit(np.log(values), np.log(costs), 1)[0]), 2)


def measure(tokenizer: str, shape: str | None) -> dict[str, Any]:
    """Quantity -> its points and exponents."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)

        def model(which: str) -> Path:
            folder = home / which.replace(":", "x")
            if not folder.exists():
                shapes.make(which, tokenizer, folder)
            return folder

        middle = shape or f"{WIDTH}:{LAYERS}"
        plan = {
            "batch, replies": [(value, middle, value, REPLY) for value in BATCHES],
            "reply, tokens": [(value, middle, BATCH, value) for value in REPLIES],
        }
        if shape is None:
            plan["width"] = [(value, f"{value}:{LAYERS}", BATCH, REPLY) for value in WIDTHS]
        for quantity, rows in plan.items():
            points = [{"value": value, **point(model(which), batch, reply)} for value, which, batch, reply in rows]
            values = [row["value"] for row in points]
            found[quantity] = {"points": points} | {
                f"exponent_{cost}": exponent(values, [row[cost] for row in points]) for cost in COSTS
            }
    return found


def _ticks(costs: list[float]) -> list[float]:
    """Round numbers around the costs, evenly spread on a logarithmic axis."""
    known = [digit * 10.0**power for power in range(-2, 7) for digit in (1, 1.5, 2, 3, 5, 7)]
    return [tick for tick in known if min(costs) / 1.5 <= tick <= max(costs) * 1.5]


def draw(found: dict[str, Any], path: Path) -> None:
    """Seconds above, memory below, a column a quantity, both axes logarithmic."""
    from matplotlib.figure import Figure

    ticks = {cost: _ticks([row[cost] for one in found.values() for row in one["points"]]) for cost in COSTS}
    figure = Figure(figsize=(3.4 * len(found), 5), layout="constrained")
    axes = figure.subplots(2, len(found), sharey="row", squeeze=False)
    for column, (quantity, one) in enumerate(found.items()):
        values = [row["value"] for row in one["points"]]
        for row, (cost, label) in enumerate(COSTS.items()):
            place = axes[row][column]
            place.loglog(values, [each[cost] for each in one["points"]], "o-")
            place.set_title(f"exponent {one[f'exponent_{cost}']}", fontsize=9)
            place.set_xticks(values, [str(value) for value in values])
            place.set_yticks(ticks[cost], [f"{tick:g}" for tick in ticks[cost]])
            place.minorticks_off()
            place.grid(alpha=0.3)
            if column == 0:
                place.set_ylabel(label)
            if row == 1:
                place.set_xlabel(quantity)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a Hugging Face folder")
    parser.add_argument("--shape", help=f"one of {', '.join(shapes.SHAPES)} instead of the widths")
    parser.add_argument("--out", type=Path, help="write everything there")
    parser.add_argument("--picture", type=Path, help="write the curves there (.svg or .png)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(given.tokenizer, given.shape)
    if given.picture:
        draw(found, given.picture)
    task.finish(found, given.out, given.json)


if __name__ == "__main__":
    main()
