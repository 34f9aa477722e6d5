"""W-PPO with TRL 1.12's PPOTrainer, the last release that has one: seconds an update and peak memory.

32 prompts of 16 tokens, exactly 48 new tokens each, temperature 1, 4 epochs, 2 minibatches of 16, micro-batch 8, LoRA
r=16 and alpha=32 on all linear layers of the policy, bfloat16. TRL knows no other critic and reward model than whole
models of their own: both are made of the same base here. TRL lives in a virtual environment of its own, so that its
pins do not meet ours:

    python -m venv venv-trl112
    venv-trl112/bin/pip install torch==2.13.0
    venv-trl112/bin/pip install trl==1.12.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 vaderSentiment==3.3.2
    PYTHONPATH=benchmarks venv-trl112/bin/python benchmarks/peers/trl_ppo.py --model FOLDER --json

What is done for TRL's sake:

- gradient checkpointing, on by default, is off: it would cost time and the memory is there;
- its optimiser would step once an epoch whatever `num_mini_batches` says, since it accumulates over
  `gradient_accumulation_steps` micro-batches and those are the whole batch; the accelerator is told to step after each
  minibatch. Prompts are repeated, since at the last batch of a pass over the data it steps after every micro-batch;
- the pad token is `task.NEVER`, which cannot be sampled: TRL takes the first pad in a reply for its end.
"""

import argparse
import importlib.metadata
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

import task

PACKAGES = ("trl", "torch", "transformers", "peft", "accelerate")


class Clock(TrainerCallback):
    """Seconds of every update; what `between` does before the first and after each is not in them."""

    def __init__(self, between: Callable[[int], None] | None = None):
        self.between = between
        self.seconds: list[float] = []
        self.started = 0.0

    def _pause(self, update: int) -> None:
        if self.between is not None:
            self.between(update)
        self.started = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._pause(0)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        self._pause(len(self.seconds))


def tokenizer_of(model: str) -> Any:
    """The model's tokenizer, padding on the left with `task.NEVER`."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    task.add_never(tokenizer)
    tokenizer.pad_token = task.NEVER
    return tokenizer


def scalar_model(model: str, dtype: torch.dtype) -> Any:
    """A whole model with a scalar head, for the critic or for a reward model."""
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=dtype)


def build(
    given: argparse.Namespace,
    tokenizer: Any,
    prompts: list[list[int]],
    clock: Clock,
    home: str,
    reward: Any,
    critic: Any,
    **settings: Any,
) -> PPOTrainer:
    """The trainer of both workloads; `settings` are those of PPOConfig that they do not share."""
    torch.manual_seed(given.seed)
    mini = given.batch // (task.BATCH // task.MINIBATCH)
    micro = min(task.MICRO_BATCH, mini)
    config = PPOConfig(
        output_dir=home,
        total_episodes=given.updates * given.batch,
        num_ppo_epochs=task.EPOCHS,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=given.batch // micro,
        num_mini_batches=given.batch // mini,
        local_rollout_forward_batch_size=given.batch,
        cliprange=task.CLIP_RANGE,
        gamma=task.GAMMA,
        lam=task.LAM,
        vf_coef=task.VALUE_COEF,
        temperature=task.TEMPERATURE,
        whiten_rewards=False,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=given.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=given.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **settings,
    )
    rows = prompts * -(-(given.updates + 1) * given.batch // len(prompts))
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        ref_model=None,
        reward_model=reward,
        value_model=critic,
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rows]),
        callbacks=[clock],
        peft_config=LoraConfig(
            r=task.LORA_R, lora_alpha=task.LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.accelerator.gradient_accumulation_steps = mini // micro
    return trainer


def peaks() -> dict[str, float]:
    """Peak memory in MB: the process's, and that of the tensors on a GPU where there is one."""
    found = {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)}
    if torch.cuda.is_available():
        found["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def arguments(text: str | None, updates: int) -> argparse.ArgumentParser:
    """What both scripts ask for."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--updates", type=int, default=updates)
    parser.add_argument("--batch", type=int, default=task.BATCH, help="fewer replies an update, for a look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser


def command_line() -> argparse.ArgumentParser:
    """What W-PPO asks for."""
    parser = arguments(__doc__, updates=4)
    parser.add_argument("--tokens", type=int, default=task.REPLY_TOKENS, help="shorter replies, for a look")
    return parser


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The workload's numbers; `given` is what `command_line` read."""
    tokenizer = tokenizer_of(given.model)
    texts = task.fixed_prompts(tokenizer, given.batch, task.PROMPT_TOKENS)
    prompts = [task.ids_of(tokenizer, text) for text in texts]
    clock, dtype = Clock(), getattr(torch, given.dtype)
    with tempfile.TemporaryDirectory() as home:
        trainer = build(
            given,
            tokenizer,
            prompts,
            clock,
            home,
            scalar_model(given.model, dtype),
            scalar_model(given.model, dtype),
            response_length=given.tokens,
            learning_rate=task.LEARNING_RATE,
        )
        trainer.train()
    return {
        "workload": "W-PPO",
        "what": f"trl, {given.batch} replies of {given.tokens} tokens",
        "seconds_per_update": [round(seconds, 2) for seconds in clock.seconds],
        **peaks(),
        "seed": given.seed,
        "versions": versions(),
    }


def main() -> None:
    given = command_line().parse_args()
    task.finish(measure(given), None, given.json)


if __name__ == "__main__":
    main()
