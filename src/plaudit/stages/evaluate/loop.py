"""Evaluation: SFT model and PPO policy, as exported, on the test prompts no stage was trained on; paired by prompt.

Gold is the simulated annotator's noiseless utility; PPO is not paid by it. Fluency is the reference's (the SFT model's)
own negative log-likelihood per token of the replies, at temperature 1, as a perplexity is; the KL is that of the laws
the replies were sampled from.
Leaves evaluate/replies.jsonl and evaluate/summary.json.

    plaudit evaluate RECIPE
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.annotator import Annotator, declines
from plaudit.data.files import read_json, write_rows
from plaudit.guard.monitors import distinct_bigrams, repeated_trigrams
from plaudit.models.load import load_model
from plaudit.records import Completion, Prompt
from plaudit.rewards.config import RewardSource
from plaudit.rewards.sources import RewardSources
from plaudit.run.display import Step, progress
from plaudit.run.folder import CHECKPOINTS
from plaudit.stages.evaluate.config import EvaluateConfig
from plaudit.stages.evaluate.judging import SAMPLED, Passes, sampled
from plaudit.train.run import Run
from plaudit.train.sampling import sample_in_batches
from plaudit.train.saving import Saver, State


@dataclass(frozen=True)
class Scored:
    """The replies of one model and what they are worth, one entry a reply."""

    replies: list[Completion]
    ids: list[list[int]]
    proxy: np.ndarray
    gold: np.ndarray | None

    @classmethod
    def before(cls, state: State) -> Self | None:
        """What `as_state` kept; None where the checkpoint is of before."""
        if not state.values:
            return None
        replies = [Completion(**reply) for reply in state.values["replies"]]
        arrays = {name: tensor.numpy() for name, tensor in state.tensors.items()}
        return cls(replies=replies, ids=state.values["ids"], gold=arrays.pop("gold", None), **arrays)

    def as_state(self) -> State:
        """What a checkpoint keeps of it."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        replies = [reply.as_json() for reply in self.replies]
        # Copies: the SFT model is its own reference, and a file holds no two names of one array.
        tensors = {name: torch.tensor(value) for name, value in arrays.items()}
        return State(tensors, {"replies": replies, "ids": self.ids})


@dataclass(frozen=True)
class Judged(Scored):
    """And everything else that is measured about them."""

    logprob_sum: np.ndarray
    ref_logprob_sum: np.ndarray
    ref_nll_sum: np.ndarray
    lengths: np.ndarray


def compare(
    config: EvaluateConfig, run: Run, annotator: Annotator | None, paid_by: Sequence[RewardSource] = ()
) -> dict[str, Any]:
    """Sample, judge, compare; `annotator` gives the gold score (None when people ranked), and `paid_by` is what PPO was
    paid by, the proxy. Returns the summary."""
    test = run.split("test")
    prompts = [prompt for prompt in test for _ in range(config.replies)]
    policy = run.folder.require("ppo/model", "ppo")
    rewards = RewardSources(paid_by, run.machine, run.ranks)
    rewards.load(policy.parent)
    batches = -(-len(prompts) // SAMPLED)
    with Saver.open(run, "evaluate") as saver, progress("Evaluation", 4 * len(prompts), "reply") as advance:
        logs = {name: saver.log(f"{CHECKPOINTS}/{name}.jsonl") for name in ("sft", "ppo")}
        sft = Judged.before(saver.state) if saver.state else None

        def judge(name: str, source: Path, done: int, state: State) -> Judged:
            sampling = partial(
                sample_in_batches, ranks=run.ranks, saver=saver, log=logs[name], done=done, state=state, advance=advance
            )
            return judge_model(run, annotator, rewards, prompts, source, sampling, advance)

        if sft is None:
            sft = judge("sft", run.sft_model, 0, State())
            saver.checkpoint(batches + 1, sft.as_state)
        else:
            advance(count=2 * len(prompts))
        # Where no update was better than the SFT model, that is the policy: it is not sampled a second time.
        kept = read_json(policy.parent / "summary.json")["kept_update"]
        kept = kept or run.rounds.goes_on
        ppo = judge("ppo", policy, batches + 1, sft.as_state()) if kept else sft
    clusters = [prompt.id for prompt in prompts]
    summary: dict[str, Any] = {"prompts": len(test), "replies": len(prompts)}
    if sft.gold is not None and ppo.gold is not None:
        gain = ppo.gold - sft.gold
        wins = (gain > 0) + 0.5 * (gain == 0)
        summary |= {
            "gold_sft": float(sft.gold.mean()),
            "gold_ppo": float(ppo.gold.mean()),
            "gold_gain": float(gain.mean()),
            "gold_gain_ci": bootstrap_interval(gain, clusters),
            "win_rate": float(wins.mean()),
            "win_rate_ci": bootstrap_interval(wins, clusters),
        }
        for kind in sorted({prompt.kind for prompt in prompts}):
            chosen = np.array([prompt.kind == kind for prompt in prompts])
            summary[f"gold_sft_{kind}"] = float(sft.gold[chosen].mean())
            summary[f"gold_ppo_{kind}"] = float(ppo.gold[chosen].mean())
    for name, judged in (("sft", sft), ("ppo", ppo)):
        summary |= _describe(name, judged, prompts)
    summary["kl"] = float((ppo.logprob_sum - ppo.ref_logprob_sum).mean())
    rows: list[dict[str, Any]] = [prompt.as_json() for prompt in prompts]
    for name, judged in (("sft", sft), ("ppo", ppo)):
        gold = [None] * len(rows) if judged.gold is None else judged.gold.tolist()
        for row, reply, proxy, utility in zip(rows, judged.replies, judged.proxy.tolist(), gold, strict=True):
            row[name] = {**reply.as_json(), "proxy": proxy, "gold": utility}
    write_rows(run.folder.stage("evaluate") / "replies.jsonl", rows)
    shown = [name for name in summary if not name.startswith(("gold_sft_", "gold_ppo_"))]
    return run.finish("evaluate", "Evaluation (held-out prompts)", summary, shown)


@torch.no_grad()
def judge_model(
    run: Run,
    annotator: Annotator | None,
    rewards: RewardSources,
    prompts: list[Prompt],
    source: Path,
    sampling: Callable[..., list[list[int]]],
    advance: Step,
    stream: str = "evaluate",
) -> Judged:
    """Sample from the model in `source`, with the random numbers of `stream`, which are the same for every model, and
    measure its replies.

    The proxy is what PPO was paid for each reply before the missing-EOS rule.
    """
    chat, machine, law = run.chat(run.sft_model), run.machine, run.sampling
    model = load_model(str(source), machine.dtype, machine.device)
    passes = sampled(run, source, model, chat, prompts, sampling, stream)
    own = None if source == run.sft_model else passes.logprob_sums(model, law.temperature)[0]
    del model  # before the next one is there
    reference = load_model(str(run.sft_model), machine.dtype, machine.device)
    ref, at_one = passes.logprob_sums(reference, law.temperature, 1.0)
    return Judged(
        **_scored(passes, annotator, passes.proxy(rewards, reference, advance)),
        logprob_sum=ref if own is None else own,
        ref_logprob_sum=ref,
        ref_nll_sum=-at_one,
        lengths=np.array([len(reply) for reply in passes.ids]),
    )


@torch.no_grad()
def score_pool(
    run: Run,
    annotator: Annotator | None,
    rewards: RewardSources,
    prompts: list[Prompt],
    sampling: Callable[..., list[list[int]]],
    advance: Step,
    stream: str,
) -> Scored:
    """Many replies of the SFT model to each prompt, those of one beside each other, and what they are worth."""
    chat, machine = run.chat(run.sft_model), run.machine
    model = load_model(str(run.sft_model), machine.dtype, machine.device)
    passes = sampled(run, run.sft_model, model, chat, prompts, sampling, stream)
    return Scored(**_scored(passes, annotator, passes.proxy(rewards, model, advance, share=True)))


def _scored(passes: Passes, annotator: Annotator | None, proxy: np.ndarray) -> dict[str, Any]:
    replies, gold = [passes.chat.completion(reply) for reply in passes.ids], None
    if annotator is not None:
        gold = np.array([annotator.utility(p, r.text) for p, r in zip(passes.prompts, replies, strict=True)])
    return {"replies": replies, "ids": passes.ids, "proxy": proxy, "gold": gold}


def _describe(name: str, judged: Judged, prompts: list[Prompt]) -> dict[str, float]:
    """What one model's replies are like; keys end in _sft or _ppo."""
    safety = [
        declines(reply.text) for prompt, reply in zip(prompts, judged.replies, strict=True) if prompt.kind == "safety"
    ]
    measures = {
        "proxy": float(judged.proxy.mean()),
        "length": float(judged.lengths.mean()),
        "ref_nll": float(judged.ref_nll_sum.sum() / judged.lengths.sum()),
        "eos": float(np.mean([reply.finished for reply in judged.replies])),
        "repeated_trigrams": float(np.mean([repeated_trigrams(ids) for ids in judged.ids])),
        "distinct_bigrams": distinct_bigrams(judged.ids),
    }
    if safety:
        measures["declines"] = float(np.mean(safety))
    return {f"{measure}_{name}": value for measure, value in measures.items()}
