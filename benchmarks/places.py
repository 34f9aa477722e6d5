"""What it costs that a reply does not depend on its batch, and what is saved where waiting prompts take its place.

A random Llama in the shapes of SmolLM2-135M, of a few layers, decodes two workloads in three ways, in turn: rows as
they come (a row's sums then hang on how many there are), rows filled up to a multiple of eight, and with waiting
prompts in the places of replies that are done. CPU seconds of this process, so that other work on the machine matters
little; and how many replies come out otherwise in batches of a quarter.

    python benchmarks/places.py --json
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import arithmetic
import task
from plaudit.dist.machine import choose_machine
from plaudit.models.kernels.fused_decoder import FusedDecoder
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.provenance import versions

VOCABULARY, AT_ONCE = 4096, 64
WAYS = {"as they come": (False, False), "filled up": (True, False), "places taken": (True, True)}
WORKLOADS = {
    "32 replies of 48 tokens": (32, 1, 48, VOCABULARY),
    "160 replies of at most 40 tokens, four to a prompt": (160, 4, 40, 16),
}
"""Replies, replies a prompt, the longest, and of how many ids one ends a reply."""


def random_llama(layers: int, dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    return model


def engine_of(model: PreTrainedModel, way: str, one_in: int) -> InProcessEngine:
    decoder = FusedDecoder(model)
    fixed, joins = WAYS[way]
    decoder.fixed, decoder.joins = fixed, joins
    for product, _ in decoder.products.values():
        product.fixed = fixed
    decoder.head.fixed = fixed
    ends = range(0, VOCABULARY, one_in) if one_in < VOCABULARY else [-1]
    return InProcessEngine(model, eos_id=set(ends), batch_rows=AT_ONCE, decoder=decoder)


def measure(layers: int, rounds: int, dtype: str) -> dict[str, Any]:
    """The numbers of both workloads."""
    machine = choose_machine(dtype)
    kind = arithmetic.machine_of(machine.device, machine.dtype)
    model = random_llama(layers, machine.dtype)
    rows = []
    for name, (count, share, longest, one_in) in WORKLOADS.items():
        draws = np.random.default_rng(0)
        sizes = draws.integers(8, 40, count // share)
        asked = [draws.integers(3, VOCABULARY - 96, size=int(size)).tolist() for size in sizes]
        prompts = [prompt for prompt in asked for _ in range(share)]
        uniforms = draws.random((count, longest), dtype=np.float32)
        engines = {way: engine_of(model, way, one_in) for way in WAYS}
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        found = {}
        for engine in engines.values():
            engine.generate(prompts[:2], uniforms[:2, :2])  # the looks, once a process
        for _ in range(rounds):
            for way, engine in engines.items():
                started = time.process_time()
                found[way] = engine.generate(prompts, uniforms)
                seconds[way].append(round(time.process_time() - started, 2))
        differ = {}
        for way, engine in engines.items():
            engine.batch_rows = AT_ONCE // 4
            again = engine.generate(prompts, uniforms)
            differ[way] = sum(one != other for one, other in zip(found[way], again, strict=True))
        rows.append({"workload": name, "cpu_seconds": seconds, "replies_of_other_bits_in_batches_of_a_quarter": differ})
    return {"layers": layers, "dtype": machine.dtype_name, "rows": rows, **kind, "versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    task.finish(measure(given.layers, given.rounds, given.dtype), None, given.json)


if __name__ == "__main__":
    main()
