"""Does PPO learn better when the sampler's weights are rounded at random? The task of docs/ppo_by_hand.py, both ways.

    python benchmarks/merge_learning.py --rates 1e-3 1e-4 --seeds 3 --updates 40 --json

The base's weights are bfloat16 numbers; every pass is float32, so that how W + ΔW becomes bfloat16 in the sampler's
copy is the only difference. What is judged is the policy itself, not that copy: 256 replies of the unrounded merge,
with the same random numbers at every look.
"""

import argparse
import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from plaudit import rng
from plaudit.algo.statistics import bootstrap_interval
from plaudit.models.config import LoraSettings
from plaudit.models.load import quiet_libraries
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import Tokens, pad_right
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.provenance import versions
from plaudit.view.plots import STYLE

WAYS = ("nearest", "random")
LOOKS = 256
"""Replies of a look at the policy."""


def by_hand() -> ModuleType:
    """docs/ppo_by_hand.py, whose model, score and update these are."""
    path = Path(__file__).resolve().parents[1] / "docs" / "ppo_by_hand.py"
    spec = importlib.util.spec_from_file_location("ppo_by_hand", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rounded(roles: Roles, way: str, seed: int, update: int) -> Iterator[tuple[str, Tensor]]:
    """The sampler's weights: bfloat16 numbers, held in float32."""
    at_random = Rounding(seed, "benchmark", update)
    for name, merged in roles.merged_weights("policy", None):
        low = at_random(name, merged, torch.bfloat16) if way == "random" else merged.to(torch.bfloat16)
        yield name, low.float()


def sample(
    task: ModuleType, engine: InProcessEngine, seed: int, stage: str, update: int, rows: int
) -> tuple[Tokens, Tensor]:
    """Replies, and the engine's own log-probabilities of their tokens, in the order of `Tokens.mask_BT`."""
    prompts = [[task.ALPHABET.index(letter) for letter in task.PROMPTS[i % len(task.PROMPTS)]] for i in range(rows)]
    drawn = engine.generate(prompts, rng.uniforms(seed, stage, update, list(range(rows)), task.LONGEST))
    logprobs = torch.tensor([value for reply in drawn for value in reply.logprobs])
    return pad_right(prompts, [reply.ids for reply in drawn], task.PAD, torch.device("cpu")), logprobs


def slope(roles: Roles, tokens: Tokens, sampler: Tensor) -> float:
    """Of (sampler − policy) on (reference − policy) over the sampled tokens; 0 is the policy, 1 the reference."""
    with torch.no_grad():
        both = [roles(tokens, role, frozenset({"logprobs"})).logprobs_BT for role in ("policy", "reference")]
    policy, reference = (values_BT[tokens.mask_BT] for values_BT in both)
    away = reference - policy
    return float(((sampler - policy) @ away) / (away @ away))


def learn(task: ModuleType, way: str, rate: float, seed: int, updates: int, every: int) -> dict[str, Any]:
    """Mean scores of the policy after every `every` updates, and its KL from the reference there."""
    model = task.tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    engine, exact = (InProcessEngine(copy.deepcopy(model), eos_id=task.END) for _ in range(2))
    torch.manual_seed(seed)
    roles = Roles(model, trained="policy", lora=LoraSettings(r=8, alpha=16), value_gradient=True)
    optimiser = torch.optim.AdamW(roles.trainable().values(), lr=rate, weight_decay=0.0)
    looks: list[dict[str, float]] = []
    for update in range(updates + 1):
        if update % every == 0:
            exact.load_weights(roles.merged_weights("policy", None))
            replies = sample(task, exact, seed, "look", 0, LOOKS)[0].replies
            looks.append({"update": update, "score": float(np.mean([task.score(reply) for reply in replies]))})
        if update < updates:
            engine.load_weights(rounded(roles, way, seed, update))
            tokens, logprobs = sample(task, engine, seed, "ppo", update, task.REPLIES)
            if update % every == 0 and update:
                looks[-1]["slope"] = slope(roles, tokens, logprobs)
            looks[-1]["kl"] = task.update_policy(
                roles, optimiser, tokens, torch.tensor([task.score(reply) for reply in tokens.replies])
            )
    return {"way": way, "rate": rate, "seed": seed, "looks": looks}


def curves(runs: list[dict[str, Any]], way: str, rate: float) -> np.ndarray:
    """[seeds, looks] scores."""
    return np.array(
        [[look["score"] for look in run["looks"]] for run in runs if (run["way"], run["rate"]) == (way, rate)]
    )


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a rate: both ways' first slope and last score, and the mean difference of a seed's two curves."""
    rows = []
    for rate in dict.fromkeys(run["rate"] for run in runs):
        row: dict[str, Any] = {"rate": rate, "start": float(curves(runs, "random", rate)[:, 0].mean())}
        for way in WAYS:
            slopes = [run["looks"][1]["slope"] for run in runs if (run["way"], run["rate"]) == (way, rate)]
            row |= {f"slope_{way}": float(np.mean(slopes)), f"end_{way}": float(curves(runs, way, rate)[:, -1].mean())}
        gains = (curves(runs, "random", rate) - curves(runs, "nearest", rate))[:, 1:].mean(axis=1)
        row |= {"difference": float(gains.mean()), "interval": bootstrap_interval(gains)}
        rows.append(row)
    return rows


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    rates = list(dict.fromkeys(run["rate"] for run in runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(rates), 3), layout="constrained")
        for axes, rate in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates, strict=True):
            for way, colour in zip(WAYS, ("#c2560a", "#46678a"), strict=True):
                scores = curves(runs, way, rate)
                at = [look["update"] for look in runs[0]["looks"]]
                for line in scores:
                    axes.plot(at, line, color=colour, linewidth=0.6, alpha=0.4)
                axes.plot(
                    at, scores.mean(axis=0), color=colour, label={"nearest": "to the nearest"}.get(way, "at random")
                )
            axes.set(title=f"learning rate {rate:g}", xlabel="update", ylabel="mean score of the policy")
            axes.legend()
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 1e-4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--every", type=int, default=5, help="updates between two looks at the policy")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    task = by_hand()
    runs = [
        learn(task, way, rate, seed, options.updates, options.every)
        for rate in options.rates
        for seed in range(options.seeds)
        for way in WAYS
    ]
    if options.picture:
        picture(runs, options.picture)
    if options.json:
        print(json.dumps({"table": table(runs), "runs": runs, "versions": versions()}, indent=1))
        return
    for row in table(runs):
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
