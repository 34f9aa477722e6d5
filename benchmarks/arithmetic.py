"""What the parts of a PPO update must multiply, and how fast this machine multiplies: where the time goes.

Counted are the products with weights, two operations a multiply-add: the trunk's linear layers, the LoRA matrices and
the LM head, which is applied to reply tokens alone. Attention, norms and the optimiser are not counted; they are what
keeps the share of the peak below 1, together with everything that waits.
"""

import os
import time
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = (512, 576, 1536)
"""Rows, inputs and outputs of the product whose speed is a machine's peak on docs/benchmarks.md."""


def kind_of(device: torch.device) -> str:
    """Which kind of machine this is, as docs/benchmarks.md has them: figures of two kinds are not compared."""
    if device.type == "cuda":
        return f"GPU, {torch.cuda.get_device_name(device)}"
    has = torch.cpu.get_capabilities()
    units = next((name for key, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if has.get(key)), None)
    return units or f"{torch.backends.cpu.get_cpu_capability()}, float32 only"


def machine_of(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a benchmark says of the machine it ran on: its kind, how many threads, how busy it was, and its peak."""
    return {
        "machine": kind_of(device),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "peak_gflops": round(product_gflops(*SHAPE, dtype, device), 1),
    }


def linear_sizes(model: str, r: int) -> tuple[int, int, int]:
    """Weights of the trunk's linear layers, of LoRA matrices of rank `r` on all of them, and of the LM head."""
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = shape.get_output_embeddings().weight
    layers = [m for m in shape.modules() if isinstance(m, nn.Linear) and m.weight is not head]
    lora = sum(r * (layer.in_features + layer.out_features) for layer in layers)
    return sum(layer.weight.numel() for layer in layers), lora, head.numel()


def gflop_of_an_update(model: str, r: int, rows: int, prompt: int, reply: int, epochs: int) -> dict[str, float]:
    """Part -> 10⁹ operations. Scoring passes through policy, reference and reward model; backward needs no product for
    a frozen weight's own gradient, and the LM head's gradient is taken in the forward pass (models/logprobs.py)."""
    trunk, lora, head = linear_sizes(model, r)
    tokens, replies = rows * (prompt + reply), rows * reply
    found = {
        "rollout": 2 * trunk * tokens + 2 * head * replies,
        "scoring": 2 * (3 * trunk + 2 * lora) * tokens + 2 * 2 * head * replies,
        "training": epochs * ((4 * trunk + 6 * lora) * tokens + 4 * head * replies),
    }
    return {part: count / 1e9 for part, count in found.items()}


def peak_gflops(model: str, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """10⁹ operations a second of one product of the MLP's shape over `tokens` rows, repeated in warm caches."""
    config = AutoConfig.from_pretrained(model)
    return product_gflops(tokens, config.hidden_size, config.intermediate_size, dtype, device)


def product_gflops(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> float:
    """The same of a product of any shape."""
    x = torch.randn(rows, inputs, dtype=dtype, device=device)
    w = torch.randn(outputs, inputs, dtype=dtype, device=device)
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        x @ w.T
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * rows * w.numel() / median(seconds[10:]) / 1e9


def gflop_of_a_token(model: str, r: int, *, learnt: bool, head: bool) -> float:
    """10⁹ operations of a token that is passed through, or learnt from by an adapter of rank `r` on every layer."""
    trunk, lora, top = linear_sizes(model, r)
    return ((4 * trunk + 6 * lora if learnt else 2 * trunk) + 2 * top * head) / 1e9


def profile(gflop: dict[str, float], seconds: dict[str, float], peak: float) -> list[dict[str, Any]]:
    """One row a part: its seconds, its operations and which share of the peak it reaches."""
    rows = [(part, seconds[part], gflop[part]) for part in gflop]
    rows.append(("all", sum(seconds[part] for part in gflop), sum(gflop.values())))
    return [
        {"part": part, "seconds": round(took, 2), "gflop": round(count), "share_of_peak": round(count / took / peak, 3)}
        for part, took, count in rows
    ]
