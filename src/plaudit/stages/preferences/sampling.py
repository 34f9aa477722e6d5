"""Who writes the replies that are ranked, and to which prompts.

In round 1 the SFT model answers. In a later round the policy that the round before kept writes most of them, and the
SFT model and the policies before it a share (`rounds.earlier`), so that the reward model goes on knowing the ground
that it has left. Training prompts are those that no round has had yet, as far as there are some.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plaudit import rng
from plaudit.data.files import read_rankings
from plaudit.label.queue.active import distinct
from plaudit.records import Completion, Prompt, Ranking
from plaudit.rewards.saved import file_hashes, weights_and_rules
from plaudit.run.display import console, progress
from plaudit.run.folder import CHECKPOINTS, finished_model
from plaudit.stages.preferences.config import PreferencesConfig
from plaudit.train.run import Run
from plaudit.train.sampling import sample_in_batches
from plaudit.train.saving import Saver, State

AT_ONCE = 64
"""Replies sampled at once: it changes speed and memory, not what is sampled (beyond rounding)."""


@dataclass(frozen=True)
class Group:
    """Replies to one prompt, which are ranked against each other, and who wrote each."""

    prompt: Prompt
    replies: tuple[Completion, ...]
    sources: tuple[str, ...]


def earlier_rankings(run: Run) -> list[Ranking]:
    """Of the rounds before this one, in their order."""
    files = [folder / "preferences" / "rankings.jsonl" for folder in run.before]
    return [ranking for file in files for ranking in read_rankings(file)]


def voices(run: Run) -> dict[str, Path]:
    """Who can answer, by name, the last policy last."""
    policies = {f"round {n}": finished_model(folder, "ppo/model") for n, folder in enumerate(run.before, start=1)}
    return {"sft": run.sft_model, **policies}


def voice_hashes(run: Run) -> dict[str, str]:
    """Voice/file -> SHA-256 of what their replies depend on."""
    each = {name: file_hashes(model, weights_and_rules(model)) for name, model in voices(run).items()}
    return {f"{name}/{file}": found for name, files in each.items() for file, found in files.items()}


def prompts_of_round(config: PreferencesConfig, run: Run, earlier: Sequence[Ranking]) -> list[Prompt]:
    """`train_prompts` training prompts in seeded order, in a later round first those that have no ranking yet (or
    with rounds.prompts=same none of this), then every held-out one."""
    train = run.split("train")
    order = [train[i] for i in rng.permutation(run.seed, "preferences/prompts", 0, len(train))]
    if run.rounds.prompts == "new":
        had = {ranking.prompt.messages for ranking in earlier}
        fresh = [prompt for prompt in order if prompt.messages not in had]
        if run.before and len(fresh) < min(config.train_prompts, len(order)):
            console.print(f"{len(fresh)} training prompts have no ranking yet; the others of this round had some")
        order = fresh + [prompt for prompt in order if prompt.messages in had]
    return order[: config.train_prompts] + run.split("validation", "test")


def dealt(run: Run, total: int) -> np.ndarray:
    """Which of the `voices` writes each of `total` replies."""
    last = len(run.before)
    generator = rng.generator(run.seed, "preferences/voices", last, 0)
    earlier = generator.random(total) < run.rounds.earlier
    return np.where(earlier & (last > 0), generator.integers(0, max(last, 1), total), last)


def sampled(config: PreferencesConfig, run: Run) -> tuple[list[Group], float]:
    """K replies to every prompt of the round, in a later round without those that nearly say what is there already;
    and the share of them whose text becomes other ids than were sampled: ranked and learnt from are the texts."""
    earlier = earlier_rankings(run)
    prompts = prompts_of_round(config, run, earlier)
    chat, who = run.chat(run.sft_model), voices(run)
    total = len(prompts) * config.replies
    ids = [chat.prompt_ids(prompt.messages) for prompt in prompts for _ in range(config.replies)]
    uniforms = rng.uniforms(run.seed, "preferences", len(run.before), list(range(total)), run.sampling.max_new_tokens)
    places, found, done = dealt(run, total), [list[int]()] * total, 0
    inputs = voice_hashes(run) if run.before else {}
    with Saver.open(run, "preferences", inputs) as saver, progress("Preferences", total, "reply") as advance:
        logs = [saver.log(f"{CHECKPOINTS}/replies{f'-{n}' if n else ''}.jsonl") for n in range(len(who))]
        for number, model in enumerate(who.values()):
            rows = np.flatnonzero(places == number)
            if not len(rows):
                continue
            engine = run.engine(model, chat, AT_ONCE)
            written = sample_in_batches(
                engine,
                [ids[i] for i in rows],
                uniforms[rows],
                AT_ONCE,
                ranks=run.ranks,
                saver=saver,
                log=logs[number],
                done=done,
                state=State(),
                advance=advance,
            )
            engine.close()
            done += -(-len(rows) // run.ranks.rows(AT_ONCE, len(rows)))
            for i, reply in zip(rows, written, strict=True):
                found[i] = reply
    names, groups = [*who], list[Group]()
    for number, prompt in enumerate(prompts):
        own = range(number * config.replies, (number + 1) * config.replies)
        groups.append(
            Group(prompt, tuple(chat.completion(found[i]) for i in own), tuple(names[places[i]] for i in own))
        )
    return _new_ones(groups, earlier) if run.before else groups, chat.changed_share(found)


def _new_ones(groups: Sequence[Group], earlier: Sequence[Ranking]) -> list[Group]:
    """Without replies that nearly say what another one of their prompt says, in this round or before; and without the
    prompts that have fewer than two then."""
    said: dict[tuple[object, ...], list[str]] = {}
    for ranking in earlier:
        said.setdefault(ranking.prompt.messages, []).extend(reply.text for reply in ranking.replies)
    found = []
    for group in groups:
        kept = distinct([reply.text for reply in group.replies], said.get(group.prompt.messages, ()))
        if len(kept) > 1:
            replies, sources = tuple(group.replies[i] for i in kept), tuple(group.sources[i] for i in kept)
            found.append(Group(group.prompt, replies, sources))
    return found
