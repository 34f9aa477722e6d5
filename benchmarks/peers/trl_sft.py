"""W-SFT with TRL's SFTTrainer, with and without packing: rows, lengths, LoRA and schedule as in benchmarks/sft.py.

TRL lives in a virtual environment of its own, so that its pins do not meet ours:

    python -m venv venv-trl
    venv-trl/bin/pip install torch==2.13.0
    venv-trl/bin/pip install trl==1.16.0 peft==0.21.2
    venv-trl/bin/python benchmarks/peers/trl_sft.py --model FOLDER --data sft_messages.jsonl.gz --json [--packing]

`assistant_only_loss` needs a template with {% generation %} marks; the model's own is ChatML, so an equal one with the
marks is put in. Non-padding tokens are counted from the rows, cut at 256; the time is that of the training loop alone.
"""

import argparse
import gzip
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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

ROWS, WIDTH, BATCH = 512, 256, 8
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Clock(TrainerCallback):
    """Time of the training loop."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def rows_of(path: Path, split: str) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    return [{"messages": row["messages"]} for row in rows if row["split"] == split]


@torch.no_grad()
def loss_per_token(trainer: SFTTrainer) -> float:
    """Held-out nats a completion token, every token counting once. (Trainer's own eval_loss is a mean of the means of
    batches, which is another number.)"""
    nats, count = 0.0, 0
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        logits = trainer.model(input_ids=ids).logits[0, :-1]
        learnt = labels != -100
        logprobs = logits[learnt].float().log_softmax(dim=-1)
        nats -= logprobs.gather(1, labels[learnt][:, None]).sum().item()
        count += int(learnt.sum())
    return nats / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--steps", type=int, default=-1, help="fewer optimiser steps, for a look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    own = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = tokenizer.apply_chat_template(own, tokenize=False)
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.apply_chat_template(own, tokenize=False) == expected, "the template is not the model's own"
    train, test = rows_of(given.data, "train")[:ROWS], rows_of(given.data, "test")
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in train]
    # A packed row is 256 tokens long: as many of them as hold the tokens of 8 rows.
    filled = sum(min(length, WIDTH) for length in lengths) / len(lengths) / WIDTH
    batch = round(BATCH * filled) if given.packing else BATCH
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16)
    clock = Clock()
    with tempfile.TemporaryDirectory() as home:
        config = SFTConfig(
            output_dir=home,
            num_train_epochs=1,
            max_steps=given.steps,
            learning_rate=2e-4,
            max_length=WIDTH,
            lr_scheduler_type="cosine",
            warmup_steps=4,
            max_grad_norm=1.0,
            assistant_only_loss=True,
            seed=given.seed,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=BATCH,
            packing=given.packing,
            eval_packing=False,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(test),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        before = loss_per_token(trainer)
        trainer.train()
        trainer.model.eval()
        after, own = loss_per_token(trainer), trainer.evaluate()["eval_loss"]
    tokens = sum(min(length, WIDTH) for length in lengths)
    if given.steps > 0:
        tokens = tokens * min(1.0, given.steps * batch / len(trainer.train_dataset))  # a look: the share of the rows
    packages = ("trl", "torch", "transformers", "peft", "accelerate")
    found = {
        "workload": "W-SFT",
        "what": "trl, packed" if given.packing else "trl, unpacked",
        "tokens": tokens,
        "seconds": round(clock.seconds, 2),
        "tokens_per_second": round(tokens / clock.seconds, 1),
        "eval_loss_before": before,
        "eval_loss_after": after,
        "trl_eval_loss_after": own,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        "seed": given.seed,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(found) if given.json else found)


if __name__ == "__main__":
    main()
