"""PPO: sample, score, reward, advantage, update, record, look, keep the best; on one base with four roles.

    R_t = −β·(log π_φold(a_t|s_t) − log π_ref(a_t|s_t)), + the whitened score at the last token        (rollout.py)
    L(φ,ψ) = Ê_t[ L_CLIP(φ) − c1·L_VF(ψ) + c2·S[π_φ](s_t) ],   loss = −L                               (update.py)

after Schulman et al. 2017 (arXiv:1707.06347) and Ziegler et al. 2019 (arXiv:1909.08593). Settings are in config.py,
what is held and how it is built in trainer.py, the validation prompts and the policy that is kept in looks.py, what a
checkpoint keeps in state.py. The policy that is kept is the best on the validation prompts among those within the KL
budget; it is not simply the last. Leaves ppo/adapter (PEFT), ppo/value_head and, of a critic of its own, ppo/critic,
ppo/model (merged checkpoint), ppo/metrics.jsonl, ppo/evaluations.jsonl, ppo/validation/*.jsonl, ppo/times.jsonl,
ppo/rollouts/*.safetensors and ppo/summary.json.

    plaudit ppo RECIPE
"""

from functools import partial
from typing import Any

import numpy as np

from plaudit.algo.rewards import adapt_kl
from plaudit.data.annotator import Annotator
from plaudit.dist.machine import release_memory
from plaudit.guard.doctor import latest
from plaudit.guard.invariants import joint_fingerprint
from plaudit.guard.watch import verdict
from plaudit.models.export import export_policy
from plaudit.models.heads import save_head
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.records import Prompt
from plaudit.rollout.batch import RolloutBatch
from plaudit.run.display import console, progress
from plaudit.run.metrics import Clock, read_metrics
from plaudit.stages.ppo.checks import RunChecks
from plaudit.stages.ppo.config import PPOConfig
from plaudit.stages.ppo.constraints import measure_constraints
from plaudit.stages.ppo.looks import Keeper, Looks
from plaudit.stages.ppo.rollout import picked, rollout, score_references
from plaudit.stages.ppo.state import forget_later, pack, unpack
from plaudit.stages.ppo.trainer import Trainer, start_from_last, whole_again
from plaudit.stages.ppo.update import update
from plaudit.train.run import Run
from plaudit.train.saving import Saver, load_parameters


def train(config: PPOConfig, run: Run, annotator: Annotator | None = None) -> dict[str, Any]:
    """Train, keep the best policy, save; returns the summary. `annotator` gives the validation replies' gold score."""
    trainer = Trainer(config, run)
    folder, prompts = run.folder.stage("ppo"), run.split("train")
    checks, stopped, seconds = RunChecks(trainer), None, list[float]()
    looks = Looks(trainer, run.split("validation"), annotator, folder)
    keeper = Keeper(config.keep_by, config.watch.patience, config.kl_budget)
    saver = Saver.open(run, "ppo", {what: joint_fingerprint(prints) for what, prints in checks.before.items()})
    if saver.state is not None:
        seconds = unpack(saver.state, trainer, looks, keeper, partial(picked, trainer, prompts))
    else:
        _first_scores(trainer, prompts)
        if not trainer.starts_as_reference:
            start_from_last(trainer)
    forget_later(folder, saver.step)
    metrics, evaluated = saver.log("metrics.jsonl"), saver.log("evaluations.jsonl")
    times, rows = saver.log("times.jsonl", timed=True), read_metrics(metrics.path)
    with saver, trainer.sampler, progress("PPO", config.updates, "update") as advance:
        advance(count=saver.step)
        for number in range(saver.step, config.updates + 1):
            last, clock = number == config.updates, Clock()
            with clock.part("rollout"):
                trainer.sampler.join()
            saver.checkpoint(number, lambda: pack(trainer, looks, keeper, seconds), last=last)
            if number % config.evaluate_every == 0 or last:
                evaluated.log(**looks.look(number))
                keeper.add(looks.rows[-1], trainer.roles.adapter_state())
                stopped = verdict(looks.rows, config.watch)
            if last or stopped is not None:
                break
            checks.before_rollout()
            batch = rollout(trainer, picked(trainer, prompts, number), number, clock)
            checks.before_update(batch, number)
            _store(trainer, batch, number)  # before the update, so that one that stops leaves what it stopped on
            batch, learnt = update(trainer, batch, number, clock)
            _store(trainer, batch, number)
            kl = batch.metrics["kl"]
            trainer.numbers.controller = adapt_kl(trainer.numbers.controller, kl, config.batch_size)
            rows.append({"update": number + 1, **batch.metrics, **learnt})
            metrics.log(**rows[-1])
            times.log(update=number + 1, **clock.seconds)
            release_memory()
            seconds.append(sum(clock.seconds.values()))
            note = f"score {batch.metrics['score']:+.2f}  KL {kl:.1f}  length {batch.metrics['length']:.0f}"
            symptom = latest(rows, {**run.optimiser.model_dump(), **config.model_dump()})
            advance(note if symptom is None else f"{note}  doctor: {symptom}")

    checks.at_end()
    if stopped is not None:
        console.print(f"PPO was stopped by the watch: {stopped}", soft_wrap=True)
    kept, state = keeper.kept(stopped=stopped is not None)
    load_parameters(trainer.roles.trainable(), state)
    if trainer.ranks.first:
        _save(trainer)
    summary = {
        "updates": number,
        "kept_update": kept["update"],
        "kept_by": keeper.by,
        "seconds_per_update": float(np.median(seconds[1:] or seconds)),
        "kl": kept["kl"],
        "score_sft": looks.rows[0]["score"],
        "score_ppo": kept["score"],
        "length_sft": looks.rows[0]["length"],
        "length_ppo": kept["length"],
        "stopped": stopped,
        **{key: value for key, value in kept.items() if key.startswith("constraint")},
    }
    if run.rounds.goes_on:
        summary["started_from"] = f"round {len(run.before)}"
        summary |= {"reference": summary["started_from"]} if run.rounds.moves_reference else {}
    return run.finish("ppo", "PPO", summary, tuple(name for name in summary if summary[name] is not None))


def _first_scores(trainer: Trainer, prompts: list[Prompt]) -> None:
    """While the policy is still the SFT model: its replies are what foreign scores are normalised and centred on."""
    run, folder = trainer.run, trainer.run.folder.stage("ppo")
    if measured_on := trainer.rewards.measured_on(prompts):
        trainer.rewards.measure(trainer.chat, measured_on, trainer.sampler.sample(measured_on, "ppo/reference", 0)[0])
    trainer.rewards.save(folder)
    measure_constraints(trainer, prompts)
    if trainer.config.sigmoid_centred:
        score_references(trainer, prompts, run.split("validation"), folder)


def _store(trainer: Trainer, batch: RolloutBatch, number: int) -> None:
    if trainer.ranks.first:
        batch.save(trainer.run.folder.stage("ppo") / "rollouts" / f"{number + 1:05d}.safetensors")


def _save(trainer: Trainer) -> None:
    """The last thing that is done with the roles: their base becomes the policy that is written."""
    config, run, roles = trainer.config, trainer.run, trainer.roles
    roles = roles if run.ranks.shard == "none" else whole_again(trainer)
    trainer.engine.close()
    folder = run.folder.stage("ppo")
    adapters = roles if isinstance(roles, Roles) else roles.others
    if adapters is roles:
        adapters.save_adapter(folder / "adapter")
    if config.has_critic:
        save_head(roles.value_head, folder / "value_head")
    if config.critic == "own" and adapters is not None:
        adapters.save_adapter(folder / "critic", adapters.learning.index("critic"))
    rounding = Rounding(run.seed, "ppo/model")
    source, to, dtype, temperature = str(run.sft_model), folder / "model", run.machine.dtype, run.sampling.temperature
    export_policy(roles, trainer.chat, source, to, dtype, rounding, temperature)
