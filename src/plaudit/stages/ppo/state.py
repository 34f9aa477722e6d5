"""PPO's state between two updates, as a checkpoint keeps it: everything that a later update depends on.

That is the policy, the critic and the optimiser; the numbers one update hands to the next (the KL coefficient, the
running moments, the first std); what foreign scores are normalised and centred on; all looks at the validation prompts,
which the watch reads, and the policies that may still be kept. With `rollout.lag: 1` also which policy has sampled the
next update's replies, and its adapter; the replies are stored. The prompts of an update, its random numbers and its
learning rates are functions of its number.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from plaudit.algo.masked import Moments
from plaudit.algo.rewards import KLController, Multiplier
from plaudit.records import Prompt
from plaudit.stages.ppo.looks import Keeper, Looks
from plaudit.stages.ppo.rollout import read_references
from plaudit.stages.ppo.trainer import Trainer
from plaudit.train.optimiser import move_schedule
from plaudit.train.saving import State, load_parameters, within


def pack(trainer: Trainer, looks: Looks, keeper: Keeper, seconds: list[float]) -> State:
    """The state after an update; tensors are not copied."""
    numbers = trainer.numbers
    tensors = within("model", trainer.roles.trainable()) | within("optimiser", trainer.optimiser.tensors())
    for place, (_, policy) in enumerate(keeper.held):
        tensors |= within(f"held/{place}", policy)
    ahead = trainer.sampler.ahead
    tensors |= within("ahead", trainer.sampler.packed())
    values = {
        "schedule": trainer.schedule.last_epoch,
        "controller": asdict(numbers.controller),
        "first_std": numbers.first_std,
        "sampler_noise": numbers.sampler_noise,
        "running": asdict(numbers.running),
        "multipliers": {name: asdict(one) for name, one in numbers.multipliers.items()},
        "halvings": trainer.micro.halvings,
        "sampled_at_once": trainer.engine.batch_rows,
        "moments": trainer.rewards.moments,
        "looks": looks.rows,
        "first_look": looks.first,
        "held": [row for row, _ in keeper.held],
        "first_held": keeper.first,
        "ahead": None if ahead is None else {"number": ahead.question.step, "policy": ahead.policy},
    }
    return State(tensors, values, {"seconds": seconds})


def unpack(
    state: State, trainer: Trainer, looks: Looks, keeper: Keeper, prompts: Callable[[int], list[Prompt]]
) -> list[float]:
    """Put a fresh trainer, its looks and its keeper where they were; returns the seconds of the updates so far.
    `prompts` gives those of an update."""
    values, numbers = state.values, trainer.numbers
    load_parameters(trainer.roles.trainable(), state.under("model"))
    trainer.optimiser.load_tensors(state.under("optimiser"))
    move_schedule(trainer.schedule, values["schedule"])
    numbers.controller, numbers.running = KLController(**values["controller"]), Moments(**values["running"])
    numbers.first_std, numbers.sampler_noise = values["first_std"], values["sampler_noise"]
    numbers.multipliers = {name: Multiplier(**one) for name, one in values["multipliers"].items()}
    trainer.micro.halvings = values["halvings"]
    trainer.engine.batch_rows = values["sampled_at_once"]
    trainer.rewards.moments = {name: (mean, std) for name, (mean, std) in values["moments"].items()}
    if trainer.config.sigmoid_centred:
        trainer.references = read_references(trainer.run.folder.path / "ppo")
    looks.rows, looks.first = values["looks"], values["first_look"]
    keeper.held = [(row, state.under(f"held/{place}")) for place, row in enumerate(values["held"])]
    keeper.first = values["first_held"]
    if (ahead := values.get("ahead")) is not None:  # not there in a checkpoint of older code
        trainer.sampler.restore(prompts(ahead["number"]), ahead["number"], ahead["policy"], state.under("ahead"))
    seconds: list[float] = state.times["seconds"]
    return seconds


def forget_later(folder: Path, update: int) -> None:
    """Delete the stored rollouts of updates after `update`: they will be made again."""
    for file in (folder / "rollouts").glob("*.safetensors"):
        if int(file.stem) > update:
            file.unlink()
