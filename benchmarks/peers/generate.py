"""W-ROLL with transformers' `generate`: new tokens a second, with and without the log-probs computed afterwards.

32 prompts of 16 tokens, exactly 48 new tokens each, temperature 1, bfloat16, in one batch; a LoRA adapter of r=16 whose
B is not zero is merged into the model. `generate` gives no log-probs of the unscaled law without keeping all scores, so
they are computed from the finished rows in one pass, as a trainer would. Runs in Plaudit's own environment:

    PYTHONPATH=benchmarks python benchmarks/peers/generate.py --model FOLDER --json
"""

import argparse
import importlib.metadata
import resource
import time
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import task

PACKAGES = ("torch", "transformers", "peft")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def merged(folder: str) -> Any:
    """The model with an adapter merged into it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=DEVICE).eval()
    lora = LoraConfig(r=task.LORA_R, lora_alpha=task.LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.001 * torch.randn(parameter.shape, generator=generator))
    return adapted.merge_and_unload()


@torch.no_grad()
def logprobs(model: Any, ids_BT: torch.Tensor, new: int) -> torch.Tensor:
    """log π of the last `new` tokens of every row, float32 [B, new]."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], logits_to_keep=new).logits.float()
    return torch.log_softmax(logits_BTV, dim=-1).gather(2, ids_BT[:, -new:, None]).squeeze(2)


def measure(folder: str, rounds: int, rows: int, tokens: int) -> dict[str, Any]:
    """The workload's numbers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), merged(folder)
    prompts = [task.ids_of(tokenizer, text) for text in task.fixed_prompts(tokenizer, rows, task.PROMPT_TOKENS)]
    ids_BT = torch.tensor(prompts, device=DEVICE)
    generating, scoring = [], []
    for number in range(rounds + 1):
        torch.manual_seed(number)
        started = time.perf_counter()
        found = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        generated = time.perf_counter()
        assert found.shape == (rows, task.PROMPT_TOKENS + tokens)
        assert logprobs(model, found, tokens).isfinite().all()
        generating.append(generated - started)
        scoring.append(time.perf_counter() - generated)
    both = [rows * tokens / (a + b) for a, b in zip(generating[1:], scoring[1:], strict=True)]
    return {
        "workload": "W-ROLL",
        "what": f"transformers generate, {rows} replies of {tokens} tokens",
        "new_tokens_per_second": round(median(both), 1),
        "without_logprobs": round(rows * tokens / median(generating[1:]), 1),
        "rounds": [round(rate, 1) for rate in both],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        **({"peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)} if DEVICE == "cuda" else {}),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=task.BATCH)
    parser.add_argument("--tokens", type=int, default=task.REPLY_TOKENS)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    task.finish(measure(given.model, given.rounds, given.rows, given.tokens), None, given.json)


if __name__ == "__main__":
    main()
