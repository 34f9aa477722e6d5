"""Rejection sampling: of n replies of the SFT model to a prompt the one that the reward scores highest is learnt, by
the code of SFT (Llama 2: Touvron et al. 2023, arXiv:2307.09288, section 3.2; there over several rounds).

It is paid by what pays PPO and starts where PPO starts, with PPO's adapter and at its temperature. A reply that the
length limit cut is never chosen: its last token would be learnt as an end. Leaves rejection/demonstrations.jsonl (the
chosen replies), rejection/adapter (PEFT; not for full fine-tuning), rejection/model (merged checkpoint),
rejection/metrics.jsonl, rejection/samples.jsonl and rejection/summary.json.

    plaudit rejection RECIPE
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import rng
from plaudit.data.files import write_rows
from plaudit.data.table import DemonstrationTable
from plaudit.data.templates.bake import OWN
from plaudit.errors import UserError
from plaudit.models.export import export_policy
from plaudit.models.load import load_model
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.records import Completion, Demonstration, Prompt
from plaudit.rewards.config import RewardSource
from plaudit.rewards.sources import RewardSources
from plaudit.run.display import progress
from plaudit.run.folder import CHECKPOINTS
from plaudit.run.metrics import read_metrics
from plaudit.stages.evaluate.judging import SAMPLED, sampled
from plaudit.stages.rejection.config import RejectionConfig
from plaudit.stages.sft import loop as sft
from plaudit.stages.sft.config import SFTConfig
from plaudit.train.run import Run
from plaudit.train.sampling import sample_in_batches
from plaudit.train.saving import Saver, State

CHOSEN = "demonstrations.jsonl"


def train(
    config: RejectionConfig, learning: SFTConfig, run: Run, paid_by: Sequence[RewardSource] = ()
) -> dict[str, Any]:
    """Sample, choose, learn what was chosen, save; `learning` is SFT's section. Returns the summary."""
    asked = [prompt for prompt in prompts_of(config, run) for _ in range(config.replies)]
    first, path = -(-len(asked) // SAMPLED), run.folder.stage("rejection") / CHOSEN
    with Saver.open(run, "rejection") as saver:
        if saver.step <= first:  # else a step was learnt from the file, which was there before it
            _choose(config.replies, asked, run, paid_by, saver, path)
        rows = read_metrics(path)
        training, steps = sft.begin(*_learning(config, learning, run, rows), "rejection")
        done = sft.optimise(training, steps, saver, first)
    sft.keep_best(training)
    folder, model = run.folder.stage("rejection"), training.model
    if isinstance(model, Roles):
        model.save_adapter(folder / "adapter")
    rounding, temperature = Rounding(run.seed, "rejection/model"), run.sampling.temperature
    export_policy(model, training.chat, str(run.sft_model), folder / "model", run.machine.dtype, rounding, temperature)
    learnt = sft.summary_of(training, steps, done)
    summary = {
        "replies": config.replies,
        "proxy_mean": float(np.mean([row["proxy_mean"] for row in rows])),
        "proxy_chosen": float(np.mean([row["proxy"] for row in rows])),
        **{name: learnt[name] for name in learnt if name not in ("dropped", "truncated", "chat_template", "kinds")},
    }
    return run.finish("rejection", "Rejection sampling", summary, tuple(summary))


def prompts_of(config: RejectionConfig, run: Run) -> list[Prompt]:
    """`train_prompts` training prompts in seeded order, then every validation prompt."""
    train = run.split("train")
    order = rng.permutation(run.seed, "rejection/prompts", 0, len(train))
    return [train[i] for i in order[: config.train_prompts]] + run.split("validation")


def _choose(
    count: int, asked: list[Prompt], run: Run, paid_by: Sequence[RewardSource], saver: Saver, path: Path
) -> None:
    """Sample a reply to each prompt of `asked`, where every prompt stands `count` times, and write the best ones."""
    chat, machine = run.chat(run.sft_model), run.machine
    rewards = RewardSources(paid_by, machine)
    rewards.load(run.folder.require("ppo/summary.json", "ppo").parent)
    log = saver.log(f"{CHECKPOINTS}/replies.jsonl")
    with progress("Replies", 2 * len(asked), "reply") as advance:
        sampling = partial(
            sample_in_batches, ranks=run.ranks, saver=saver, log=log, done=0, state=State(), advance=advance
        )
        model = load_model(str(run.sft_model), machine.dtype, machine.device)
        passes = sampled(run, run.sft_model, model, chat, asked, sampling, "rejection")
        proxy_PN = passes.proxy(rewards, model, advance, share=True).reshape(-1, count)
    rows = []
    for number, proxy_N in enumerate(proxy_PN.tolist()):
        prompt = asked[number * count]
        replies = [chat.completion(ids) for ids in passes.ids[number * count : (number + 1) * count]]
        if (best := best_of(replies, proxy_N)) is not None:
            told = Demonstration(prompt, replies[best].text).as_json()
            rows.append({**told, "proxy": proxy_N[best], "proxy_mean": float(np.mean(proxy_N))})
    for split in ("train", "validation"):
        if not any(row["split"] == split for row in rows):
            raise UserError(
                f"rejection: none of the SFT model's replies to prompts of split {split} is whole and not empty; raise "
                "sampling.max_new_tokens"
            )
    write_rows(path, rows)


def best_of(replies: Sequence[Completion], proxy_N: Sequence[float]) -> int | None:
    """The number of the reply that is learnt: of those that are whole and not empty the first with the highest proxy;
    None where there is none."""
    whole = [i for i, reply in enumerate(replies) if reply.finished and reply.text.strip()]
    return max(whole, key=lambda i: proxy_N[i]) if whole else None


def _learning(
    config: RejectionConfig, learning: SFTConfig, run: Run, rows: Sequence[dict[str, Any]]
) -> tuple[SFTConfig, Run]:
    """SFT's settings and the run, as if the chosen replies were the demonstrations and the SFT model the base. It is
    held as it is: in few bits, the merged model would be one without SFT."""
    prompts = {prompt.id: prompt for prompt in run.prompts}
    demonstrations = DemonstrationTable.of(Demonstration(prompts[row["id"]], row["completion"]) for row in rows)
    own = replace(run, model=str(run.sft_model), template=OWN, quantise=None, demonstrations=demonstrations)
    chat = own.chat(own.model)
    longest = max(
        len(chat.prompt_ids(row.prompt.messages)) + len(chat.reply_ids(Completion(row.completion)))
        for row in demonstrations
    )
    changed = {"epochs": config.epochs, "learning_rate": config.learning_rate, "max_length": longest}
    # What SFT's section says of its own files and replies is about those.
    return learning.model_copy(update={**changed, "mixture": [], "max_steps": None, "learn": "last"}), own
