"""W-RM with TRL's RewardTrainer: pairs, LoRA and schedule as in benchmarks/reward.py, on the rows that pairs.py wrote.

TRL lives in a virtual environment of its own (see trl_sft.py). pairs.py has filtered the rows, and this script refuses
to go on when TRL drops one. What decides TRL's memory and speed can be chosen: gradient checkpointing (TRL's own
default, off here as in trl_sft.py unless `--checkpointing`), the pairs of one forward pass (`--micro`, 8 unless told)
and the format that base and head are held in (`--dtype`; TRL's own default is float32, under autocast to bfloat16). The
time is that of the training loop alone.

    python benchmarks/pairs.py --model FOLDER --data alpaca_eval_rankings.jsonl.gz --to pairs/rankings
    venv-trl/bin/python benchmarks/peers/trl_reward.py --model FOLDER --data pairs/rankings --json [--margins trl.json]
"""

import argparse
import hashlib
import importlib.metadata
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

WIDTH, BATCH = 256, 8


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


class Clock(TrainerCallback):
    """Time and peak memory of the training loop."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds, self.peak_mb = time.perf_counter() - self.started, peak_mb()


def rows_of(path: Path, limit: int | None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:limit]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]


def held_out_margins(trainer: RewardTrainer) -> list[float]:
    """r(chosen) − r(rejected) of every held-out pair, in order, computed as the trainer's own evaluation does."""
    found: list[float] = []
    trainer.model.eval()
    for batch in trainer.get_eval_dataloader():
        _, scores, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
        chosen, rejected = scores.float().flatten().chunk(2)
        found += (chosen - rejected).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path, help="the folder that pairs.py wrote")
    parser.add_argument("--micro", type=int, default=BATCH, help="pairs in one forward and backward pass")
    parser.add_argument("--max-length", type=int, default=WIDTH, help="more where the held-out pairs are longer")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing: less memory, more time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of base and head")
    parser.add_argument("--limit", type=int, help="fewer pairs, for a look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--margins", type=Path, help="write the held-out margins here")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    held_out = given.data / "held_out.jsonl"
    train, test = rows_of(given.data / "train.jsonl", given.limit), rows_of(held_out, given.limit)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    # The head is random: its draw is the seed's.
    torch.manual_seed(given.seed)
    dtype = torch.bfloat16 if given.dtype == "bfloat16" else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=1, dtype=dtype)
    clock = Clock()
    with tempfile.TemporaryDirectory() as home:
        config = RewardConfig(
            output_dir=home,
            num_train_epochs=1,
            learning_rate=2e-4,
            max_length=given.max_length,
            lr_scheduler_type="cosine",
            warmup_steps=4,
            max_grad_norm=1.0,
            seed=given.seed,
            per_device_train_batch_size=given.micro,
            gradient_accumulation_steps=BATCH // given.micro,
            per_device_eval_batch_size=BATCH,
            gradient_checkpointing=given.checkpointing,
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(test),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS"
            ),
        )
        kept = (len(trainer.train_dataset), len(trainer.eval_dataset))
        assert kept == (len(train), len(test)), f"TRL kept {kept} of {(len(train), len(test))} pairs"
        trainer.train()
        margins = held_out_margins(trainer)
    if given.margins is not None:
        digest = hashlib.sha256(held_out.read_bytes()).hexdigest()
        given.margins.write_text(json.dumps({"held_out": digest, "margins": margins}), encoding="utf-8")
    right = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    packages = ("trl", "torch", "transformers", "peft", "accelerate")
    found = {
        "workload": "W-RM",
        "what": f"trl, {given.dtype}, {given.micro} pairs a micro-batch"
        + (", checkpointing" if given.checkpointing else ""),
        "pairs": len(train),
        "seconds": round(clock.seconds, 2),
        "pairs_per_second": round(len(train) / clock.seconds, 3),
        "held_out_accuracy": round(sum(right) / len(right), 4),
        "held_out_pairs": len(right),
        "peak_rss_mb": peak_mb(),
        "peak_rss_mb_training": clock.peak_mb,
        "seed": given.seed,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(found) if given.json else found)


if __name__ == "__main__":
    main()
