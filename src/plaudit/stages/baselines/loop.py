"""Baselines: is PPO worth it? Best-of-n of the SFT model, rejection sampling and DPO beside it, on the prompts and by
the measures of evaluate, at equal KL and equal labels.

    best of n:   E[value of the best by proxy of n replies], over all subsets of a pool, at KL ≤ ln n − (n − 1)/n
    a method:    mean value of its replies, at its measured KL; its difference to best-of-n at the same KL, by prompt

The value is gold where there is an annotator's, else the proxy, which is what chooses the best of n.
Leaves baselines/pool.jsonl, baselines/replies.jsonl (of rejection sampling and DPO) and baselines/summary.json.

    plaudit baselines RECIPE "baselines=[best_of_n, rejection, dpo]"
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.algo.statistics import Floats, best_of_n, best_of_n_kl, bootstrap_interval
from plaudit.data.annotator import Annotator
from plaudit.data.files import read_json, write_rows
from plaudit.errors import UserError
from plaudit.records import Prompt
from plaudit.rewards.config import RewardSource
from plaudit.rewards.sources import RewardSources
from plaudit.run.display import progress
from plaudit.run.folder import CHECKPOINTS
from plaudit.run.metrics import read_metrics
from plaudit.stages.evaluate.config import EvaluateConfig
from plaudit.stages.evaluate.judging import SAMPLED
from plaudit.stages.evaluate.loop import Judged, Scored, judge_model, score_pool
from plaudit.train.run import Run
from plaudit.train.sampling import sample_in_batches
from plaudit.train.saving import Saver, State

POOL = 64
"""Replies of the SFT model to each test prompt: best-of-n is known up to this n, 3.17 nats."""
SHOWN = (1, 2, 4, 8, 16, 32, 64)
"""n of the table."""
Values = dict[str, Floats]
"""proxy and gold, [P] or [P, POOL]; gold is not there when people ranked."""
TRAINED = ("rejection", "dpo")
"""Methods whose policies are sampled here, by the stages that make them."""


def compare(
    methods: Sequence[str],
    config: EvaluateConfig,
    run: Run,
    annotator: Annotator | None,
    paid_by: Sequence[RewardSource] = (),
) -> dict[str, Any]:
    """Sample the pool, judge the other policies as evaluate judged PPO's, put all into a table; returns the summary."""
    if not methods:
        raise UserError(
            'baselines names nothing to compare with; add "baselines=[best_of_n, rejection, dpo]", or some of them'
        )
    test = run.split("test")
    models = {name: run.folder.require(f"{name}/model", name) for name in TRAINED if name in methods}
    pool, others = _sampled(methods, models, config, run, annotator, paid_by, test)
    rows = read_metrics(run.folder.path / "evaluate/replies.jsonl")
    sft = _by_prompt({name: _column(rows, "sft", name) for name in ("proxy", "gold")}, len(test))
    ppo = _by_prompt({name: _column(rows, "ppo", name) for name in ("proxy", "gold")}, len(test))
    found = {"ppo": (ppo, read_json(run.folder.path / "evaluate/summary.json")["kl"])}
    for name, judged in others.items():
        kl = float((judged.logprob_sum - judged.ref_logprob_sum).mean())
        found[name] = _by_prompt({"proxy": judged.proxy, "gold": judged.gold}, len(test)), kl
    measure = "gold" if "gold" in sft else "proxy"
    summary: dict[str, Any] = {"measure": measure, "prompts": len(test), "sft": _means(sft)}
    best: dict[int, Values] = {}
    if pool is not None:
        whole = {"proxy": pool.proxy, "gold": pool.gold}
        wide = {name: x.reshape(len(test), POOL) for name, x in whole.items() if x is not None}
        best = {n: {name: best_of_n(wide["proxy"], x, n) for name, x in wide.items()} for n in range(1, POOL + 1)}
        summary["best_of_n"] = [{"n": n, "kl": best_of_n_kl(n), **_means(best[n])} for n in SHOWN]
    summary["methods"] = {name: _method(values, kl, sft, best, measure) for name, (values, kl) in found.items()}
    gaps = {name: found["ppo"][0][measure] - found[name][0][measure] for name in others}
    summary["ppo_over"] = {
        name: {"difference": float(gap.mean()), "ci": bootstrap_interval(gap)} for name, gap in gaps.items()
    }
    _write(run, pool, others, test, config.replies)
    told = {name: f"{row[measure]:.3f} at {row['kl']:.2f} nats" for name, row in summary["methods"].items()}
    told |= {f"best of {row['n']}": f"{row[measure]:.3f} at {row['kl']:.2f}" for row in summary.get("best_of_n", ())}
    return run.finish("baselines", f"Baselines: {measure}, held-out prompts", summary, (), told)


def _sampled(
    methods: Sequence[str],
    models: dict[str, Path],
    config: EvaluateConfig,
    run: Run,
    annotator: Annotator | None,
    paid_by: Sequence[RewardSource],
    test: list[Prompt],
) -> tuple[Scored | None, dict[str, Judged]]:
    """The judged pool, where best-of-n is asked for, and the judged replies of each of `models`. The pool is kept in a
    checkpoint when it is there."""
    asked = [prompt for prompt in test for _ in range(config.replies)]
    pooled = [prompt for prompt in test for _ in range(POOL)] if "best_of_n" in methods else []
    rewards = RewardSources(paid_by, run.machine)
    rewards.load(run.folder.require("ppo/model", "ppo").parent)
    with (
        Saver.open(run, "baselines") as saver,
        progress("Baselines", 2 * (len(pooled) + len(models) * len(asked)), "reply") as advance,
    ):

        def sampling(name: str, done: int, state: State) -> Callable[..., list[list[int]]]:
            log = saver.log(f"{CHECKPOINTS}/{name}.jsonl")
            return partial(
                sample_in_batches, ranks=run.ranks, saver=saver, log=log, done=done, state=state, advance=advance
            )

        pool, done = Scored.before(saver.state) if saver.state else None, 0
        if pooled and pool is None:
            draw = sampling("pool", 0, State())
            pool = score_pool(run, annotator, rewards, pooled, draw, advance, "baselines/pool")
            done = -(-len(pooled) // SAMPLED) + 1
            saver.checkpoint(done, pool.as_state)
        elif pooled:
            done = -(-len(pooled) // SAMPLED) + 1
            advance(count=2 * len(pooled))
        state = pool.as_state() if pool else State()
        others = {}
        for name, source in models.items():
            # Evaluate's own random numbers: the replies are paired with those of SFT and PPO.
            draw = sampling(name, done, state)
            others[name] = judge_model(run, annotator, rewards, asked, source, draw, advance)
            done += -(-len(asked) // SAMPLED)
    return pool, others


def _column(rows: Sequence[dict[str, Any]], model: str, name: str) -> Floats | None:
    values = [row[model][name] for row in rows]
    return None if None in values else np.array(values, dtype=np.float64)


def _by_prompt(values: dict[str, Floats | None], prompts: int) -> Values:
    """The mean over each prompt's replies, which are beside each other."""
    return {name: x.reshape(prompts, -1).mean(axis=1) for name, x in values.items() if x is not None}


def _means(values: Values) -> dict[str, float]:
    return {name: float(x.mean()) for name, x in values.items()}


def at_kl(best: dict[int, Values], measure: str, kl: float) -> tuple[Floats, float, float]:
    """(best-of-n's value by prompt at `kl` nats, between two n on a line; the KL it has there; n). At most the whole
    pool's."""
    kls = [best_of_n_kl(n) for n in best]
    kl = min(max(kl, 0.0), kls[-1])
    upper = next(n for n, at in zip(best, kls, strict=True) if at >= kl)
    if upper == 1:
        return best[1][measure], 0.0, 1.0
    share = (kl - kls[upper - 2]) / (kls[upper - 1] - kls[upper - 2])
    return (1 - share) * best[upper - 1][measure] + share * best[upper][measure], kl, upper - 1 + share


def _method(values: Values, kl: float, sft: Values, best: dict[int, Values], measure: str) -> dict[str, Any]:
    """A method's row: its KL, means, gain over SFT, and the difference to best-of-n at the same KL, both by prompt."""
    gain = values[measure] - sft[measure]
    row: dict[str, Any] = {"kl": kl, **_means(values)}
    row |= {"gain": float(gain.mean()), "gain_ci": bootstrap_interval(gain)}
    if best:
        there, at, n = at_kl(best, measure, kl)
        gap = values[measure] - there
        row["over_best_of_n"] = {
            "n": n,
            "kl": at,
            "difference": float(gap.mean()),
            "ci": bootstrap_interval(gap),
        }
    return row


def _write(run: Run, pool: Scored | None, others: dict[str, Judged], test: list[Prompt], replies: int) -> None:
    """The replies of the pool, and of the other methods."""
    folder = run.folder.stage("baselines")
    if pool is not None:
        write_rows(folder / "pool.jsonl", _rows("sft", pool, test, POOL))
    if others:
        each = (_rows(name, judged, test, replies) for name, judged in others.items())
        write_rows(folder / "replies.jsonl", chain.from_iterable(each))


def _rows(model: str, judged: Scored, test: list[Prompt], each: int) -> Iterator[dict[str, Any]]:
    prompts = [prompt for prompt in test for _ in range(each)]
    gold = [None] * len(prompts) if judged.gold is None else judged.gold.tolist()
    for p, reply, proxy, value in zip(prompts, judged.replies, judged.proxy.tolist(), gold, strict=True):
        yield {"id": p.id, "model": model, **reply.as_json(), "proxy": proxy, "gold": value}
