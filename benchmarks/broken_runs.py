"""What the lesson's "Break it" shows: the PPO stage of a finished tiny run again, once as it should be and once for
each of four famous mistakes, with what the doctor says of each.

    python benchmarks/broken_runs.py RUN --to src/plaudit/view/lesson/parts/broken.json
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from plaudit.algo import advantages, rewards
from plaudit.data.files import write_json
from plaudit.errors import RunStopped
from plaudit.guard.doctor import examine
from plaudit.run.metrics import read_metrics
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.recipe import load_recipe

UPDATES = 12
SETTINGS = [f"ppo.updates={UPDATES}", "ppo.learning_rate=0.01", "ppo.batch_size=8", "ppo.minibatch_size=4"]
SETTINGS += ["ppo.kl_coef=0.05", "ppo.watch.enabled=false", "ppo.evaluate_every=2"]


def flipped_kl(right: Callable[..., Any]) -> Callable[..., Any]:
    """log π_ref − log π where log π − log π_ref belongs: leaving the reference is paid."""
    return lambda scores_B, kl_BT, mask_BT, kl_coef: right(scores_B, -kl_BT, mask_BT, kl_coef)


def late_score(right: Callable[..., Any]) -> Callable[..., Any]:
    """The score a token after the last one, where nothing counts."""

    def wrong(scores_B: Any, kl_BT: Any, mask_BT: Any, kl_coef: float) -> Any:
        return right(torch.zeros_like(scores_B), kl_BT, mask_BT, kl_coef)

    return wrong


def shifted_values(right: Callable[..., Any]) -> Callable[..., Any]:
    """V(s_{t+1}) where V(s_t) belongs."""

    def wrong(rewards_BT: Any, values_BT: Any, mask_BT: Any, **more: Any) -> Any:
        return right(rewards_BT, values_BT.roll(-1, dims=1), mask_BT, **more)

    return wrong


VARIANTS: dict[str, tuple[list[str], tuple[Any, str, Callable[..., Any]] | None]] = {
    "right": ([], None),
    "no_kl": (["ppo.kl_coef=0"], None),
    "flipped_kl": ([], (rewards, "token_rewards", flipped_kl)),
    "shifted_values": ([], (advantages, "gae", shifted_values)),
    "late_score": ([], (rewards, "token_rewards", late_score)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    found = {}
    for name, (overrides, mistake) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as home:
            folder = shutil.copytree(
                given.run, Path(home) / "run", ignore=shutil.ignore_patterns(".lock", "ppo", "evaluate")
            )
            recipe = load_recipe(given.run / "recipe.yaml", [f"folder={folder}", *SETTINGS, *overrides])
            stopped = None
            try:
                if mistake is None:
                    run_pipeline(recipe, Flags(only=("ppo",)))
                else:
                    module, attribute, wrong = mistake
                    with patch.object(module, attribute, wrong(getattr(module, attribute))):
                        run_pipeline(recipe, Flags(only=("ppo",)))
            except RunStopped as error:
                stopped = str(error)
            found[name] = {"stopped": stopped, **_left(folder)}
            print(name, stopped, [one["name"] for one in found[name]["doctor"]], file=sys.stderr)
    write_json(
        given.to,
        {"updates": UPDATES, "seed": yaml.safe_load((given.run / "recipe.yaml").read_text())["seed"], "runs": found},
    )


def _left(folder: Path) -> dict[str, Any]:
    looks = read_metrics(folder / "ppo/evaluations.jsonl")
    columns = {key: [round(row[key], 4) for row in looks] for key in ("update", "score", "kl", "entropy", "length")}
    told = [{"level": f.level, "name": f.name, "says": f.says, "change": f.change} for f in examine(folder).findings]
    return {**columns, "doctor": told}


if __name__ == "__main__":
    main()
