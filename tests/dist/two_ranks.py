"""What two processes do together in the tests: `python two_ranks.py JOB HOME` runs as each of them; see `pair`.

ppo    every case of CASES, in HOME/CASE/run, with what learnt at the end in HOME/CASE/state-RANK.safetensors; then
       the first case again, stopped by a signal to the second rank and resumed; then a run in which the second
       rank's policy is moved a little; then the second rank ends in the middle of work
sharded  the roles of the run in HOME/run under FSDP2 (sharded.py), and SFT by HOME/recipe.yaml on a base that the ranks
       hold together, in HOME/two
held   on such a base SFT, stopped and resumed; every case of CASES, whose replies a server samples (HOME/served.json),
       in HOME/CASE/run; then the first case again, stopped and resumed; then every case on two ranks that each hold
       all and sample for themselves, in HOME/../whole/CASE/run
lagged  the first case, whose replies a server samples an update ahead; then once more, stopped and resumed
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sharded
import torch
from safetensors.torch import save_file

from plaudit.data.files import read_demonstrations, read_prompts
from plaudit.dist.machine import choose_machine
from plaudit.dist.ranks import ALONE, Ranks
from plaudit.errors import RankLost, RunStopped, UserError
from plaudit.models.config import LoraSettings
from plaudit.models.load import quiet_libraries
from plaudit.rewards import sources
from plaudit.rollout.config import RolloutConfig, SamplingConfig
from plaudit.run.folder import FollowedFolder, RunFolder
from plaudit.run.stopping import STOP, Interrupted
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.plan import Flags
from plaudit.stages.ppo import loop as ppo
from plaudit.stages.ppo import update as ppo_update
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.looks import Keeper
from plaudit.stages.recipe import load_recipe
from plaudit.stages.sft import loop as sft
from plaudit.train.config import CheckpointConfig, OptimiserConfig
from plaudit.train.run import Run

SECONDS = 300
"""After which two ranks that hang are ended; they need about fifteen on two idle cores."""
COMMON = {
    "updates": 3,
    "batch_size": 9,
    "minibatch_size": 3,
    "micro_batch_size": 1,
    "epochs": 2,
    "learning_rate": 1e-2,
    "evaluate_every": 3,
}
# Nine replies for two ranks; three micro-batches a step, so that the shares are never equal. FUNCTION and MODEL stand
# for paths that the test knows.
DRIFT, STOPPED = "drift", "stopped"
SFT = Flags(only=("sft",))
CASES: dict[str, dict[str, Any]] = {
    "value head, whitened": {
        "critic_learning_rate": 1e-2,
        "kl_target": 2.0,
        "kl_horizon": 9,
        "ptx_coef": 0.5,
        "ptx_rows": 5,
        "length_penalty": 0.05,
        "entropy_coef": 0.01,
        "critic_warmup": 1,
    },
    "own critic, running scale": {
        "critic": "own",
        "critic_learning_rate": 1e-2,
        "score_scale": "running",
        "kl_target": 2.0,
        "kl_horizon": 9,
        "missing_eos": "bootstrap",
        "micro_batch_size": None,
        "micro_batch_tokens": 90,
        "target_kl": 0.02,
        "sigmoid_centred": True,
    },
    "RLOO, three rewards": {
        "advantages": "rloo",
        "replies_per_prompt": 3,
        "kl_penalty": "loss",
        "kl_coef": 0.2,
        "rewards": [{"trained": True}, {"function": "FUNCTION"}, {"model": "MODEL", "weight": 0.5}],
    },
}
# It looks at all texts of a call, and counts its calls: that it is asked once, for all, is part of the numbers.
FUNCTION = """
calls = 0

def relative(items):
    global calls
    calls += 1
    mean = sum(len(item["completion"]) for item in items) / len(items)
    return {item["id"]: len(item["completion"]) - mean + 0.01 * calls for item in items}
"""


def config_of(case: str, home: Path) -> PPOConfig:
    own = next(iter(CASES.values())) if case == STOPPED else CASES.get(case, {})
    told = {key: value for key, value in {**COMMON, **own}.items() if value is not None}
    text = (
        json.dumps(told).replace("FUNCTION", f"{home / 'relative.py'}:relative").replace("MODEL", str(home / "judge"))
    )
    return PPOConfig.model_validate_json(text)


def prepare(home: Path, source: Path) -> None:
    """Put the stages before PPO, made by the run `source`, where the runs of all cases will find them."""
    home.mkdir()
    (home / "relative.py").write_text(FUNCTION)
    shutil.copytree(source / "reward" / "model", home / "judge")
    for name in ("prompts.jsonl", "demonstrations.jsonl"):
        shutil.copy(source.parent / name, home / name)
    for case in (*CASES, DRIFT, STOPPED):
        for stage in ("sft", "reward"):
            shutil.copytree(source / stage, home / case / "run" / stage)


def run_of(home: Path, case: str, ranks: Ranks) -> Run:
    path, served = home / case / "run", home / "served.json"
    if ranks.first:
        (path / "recipe.yaml").write_text("name: tiny\n")
        if not (path / "manifest.json").is_file():
            (path / "manifest.json").write_text('{"stages": {}}')  # as a run that has begun
        folder = RunFolder.open(path, "name: tiny\n", resume=True)
    else:
        folder = FollowedFolder(path)
    return Run(
        folder,
        0,
        choose_machine("float32"),
        "unused",
        None,
        tuple(read_prompts(home / "prompts.jsonl")),
        read_demonstrations(home / "demonstrations.jsonl"),
        ranks=ranks,
        sampling=SamplingConfig(max_new_tokens=8),
        lora=LoraSettings(r=4, alpha=8),
        optimiser=OptimiserConfig(warmup_steps=0),
        rollout=RolloutConfig.model_validate_json(served.read_text()) if served.is_file() else RolloutConfig(),
        # By the clock a slow machine would save where a quick one does not, and the files are compared.
        checkpoints=CheckpointConfig(every_minutes=1e6),
    )


def train(home: Path, case: str, ranks: Ranks = ALONE, *, resume: bool = False) -> None:
    """A whole PPO stage, or with `resume` the rest of one; what learnt and the optimiser's state are saved as
    they are at its end, and what was done."""
    trainers: list[Any] = []
    states: list[dict[str, torch.Tensor]] = []
    done, build, add = {"sampled": 0, "trained": 0}, ppo.Trainer, Keeper.add

    def spied(*arguments: Any) -> Any:
        trainer = build(*arguments)
        generate, forward = trainer.engine.generate, trainer.roles.forward

        def generated(prompts: Any, *rest: Any) -> Any:
            done["sampled"] += len(prompts)
            return generate(prompts, *rest)

        def forwarded(tokens: Any, *rest: Any) -> Any:
            done["trained"] += len(tokens.tokens_BT) if torch.is_grad_enabled() else 0
            return forward(tokens, *rest)

        trainer.engine.generate, trainer.roles.forward = generated, forwarded
        trainers.append(trainer)
        return trainer

    def added(keeper: Keeper, row: Any, state: Any) -> None:
        states.append(state)
        add(keeper, row, state)

    run = replace(run_of(home, case, ranks), resume=resume)
    # Collecting garbage is half the time of a run this small.
    still, few = patch.object(ppo, "release_memory", lambda: None), patch.object(sources, "NORMALISE_ON", 12)
    with still, few, patch.object(ppo, "Trainer", spied), patch.object(Keeper, "add", added), run.folder:
        ppo.train(config_of(case, home), run)
    (trainer,) = trainers
    groups = trainer.optimiser.state_dict()["state"]
    moments = {f"optimiser.{i}.{name}": value for i, group in groups.items() for name, value in group.items()}
    save_file({**states[-1], **moments}, home / case / f"state-{ranks.rank}.safetensors")
    numbers = {"first_std": trainer.numbers.first_std, "controller": vars(trainer.numbers.controller)}
    numbers["running"] = vars(trainer.numbers.running)
    (home / case / f"done-{ranks.rank}.json").write_text(json.dumps({**done, "numbers": numbers}, default=float))


def stop_and_go_on(home: Path, ranks: Ranks) -> None:
    """The second rank alone is sent a signal in the second of three updates: both leave after it; then they resume."""
    learn = ppo.update

    def asked(trainer: Any, batch: Any, update: int, clock: Any) -> Any:
        if update == 1 and not ranks.first:
            STOP.hear(signal.SIGTERM, None)
        return learn(trainer, batch, update, clock)

    try:
        with patch.object(ppo, "update", asked):
            train(home, STOPPED, ranks)
    except Interrupted as stop:
        print(f"left by {stop.signum}: {stop.saved}")
    ranks.wait()
    train(home, STOPPED, ranks, resume=True)


def drift(home: Path, ranks: Ranks) -> None:
    """One number of the second rank's critic is moved after each step; why that ended is in HOME/drift-RANK.txt."""
    accumulate = ppo_update.accumulate

    def moved(trainer: Any, *rest: Any) -> Any:
        if not ranks.first:
            trainer.roles.value_head.weight.data[0] += 1e-7
        return accumulate(trainer, *rest)

    try:
        with patch.object(ppo_update, "accumulate", moved):
            train(home, DRIFT, ranks)
    except RunStopped as stop:
        (home / f"{DRIFT}-{ranks.rank}.txt").write_text(str(stop))


def part(ranks: Ranks) -> None:
    """The second rank ends; how long the first one waited for it is printed."""
    assert ranks.from_first("") == ""
    ranks.wait()
    if not ranks.first:
        raise UserError("this rank cannot go on")
    started = time.monotonic()
    try:
        ranks.total({"x": torch.ones(3)})
    finally:
        print(f"lost after {time.monotonic() - started:.1f} s")


def ppo_job(home: Path, ranks: Ranks) -> None:
    for case in CASES:
        train(home, case, ranks)
    stop_and_go_on(home, ranks)
    drift(home, ranks)
    part(ranks)


def sharded_job(home: Path, ranks: Ranks) -> None:
    sharded.compute(home / "run", home, ranks)
    run_pipeline(load_recipe(home / "recipe.yaml", ["distributed.shard=all", f"folder={home / 'two'}"]), SFT)


def sft_stopped(home: Path, ranks: Ranks) -> None:
    """Unbroken in HOME/two, and in HOME/sft-stopped with a signal to the second rank in the third step, and resumed."""
    run_pipeline(load_recipe(home / "recipe.yaml", ["distributed.shard=all", f"folder={home / 'two'}"]), SFT)
    recipe = load_recipe(home / "recipe.yaml", ["distributed.shard=node", f"folder={home / 'sft-stopped'}"])
    accumulate, steps = sft._accumulate, iter(range(1, 100))

    def asked(*arguments: Any) -> float:
        if next(steps) == 3 and not ranks.first:
            STOP.hear(signal.SIGTERM, None)
        return accumulate(*arguments)

    try:
        with patch.object(sft, "_accumulate", asked):
            run_pipeline(recipe, SFT)
    except Interrupted as stop:
        print(f"left by {stop.signum}: {stop.saved}")
    ranks.wait()
    run_pipeline(recipe, replace(SFT, resume=True))


def held_job(home: Path, ranks: Ranks) -> None:
    sft_stopped(home, ranks)
    held = replace(ranks, shard="all")
    for case in CASES:
        train(home, case, held)
    stop_and_go_on(home, held)
    for case in CASES:
        train(home.parent / "whole", case, ranks)


def lagged_job(home: Path, ranks: Ranks) -> None:
    train(home, next(iter(CASES)), ranks)
    stop_and_go_on(home, ranks)


JOBS = {"ppo": ppo_job, "sharded": sharded_job, "held": held_job, "lagged": lagged_job}


def main(job: str, home: Path) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    ranks = Ranks.join()
    try:
        JOBS[job](home, ranks)
    except (UserError, RankLost) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def pair(job: str, home: Path) -> list[tuple[int, str]]:
    """(exit code, what was printed) of two ranks at work on `job`; they are ended after SECONDS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, job, str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    until = time.monotonic() + SECONDS
    try:
        printed = [rank.communicate(timeout=until - time.monotonic())[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, printed, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
