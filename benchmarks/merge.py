"""What bfloat16 keeps of an adapter: rounded to the nearest number and at random, in the sampler's copy and in exports.

The policy is the run's SFT model (as bfloat16 holds it) with its PPO adapter, or, with --of sft, the base model with
the SFT adapter; at several sizes. All passes are in float32, so that only the rounding of the merged weights is seen:

- kept: ⟨merged − W, ΔW⟩ / ⟨ΔW, ΔW⟩ over all adapted layers; unchanged: share of their weights that are W again.
- replies are sampled from the merged copy (32 prompts of 16 tokens, 48 new ones). slope: of (sampler − policy) on
  (reference − policy) over their log-probabilities; 0 is the policy, 1 the reference. gap: mean of |sampler − policy|.
- seconds to merge.

Then what it costs SFT: the loss of the run's held-out demonstrations under the base, the unmerged weights and
both merged ones.

And what passes in bfloat16 keep of an adapter that is not merged: the slope, through 0, of (policy − reference) in
bfloat16 on the same in float32, over the log-probabilities of the demonstrations' replies; by PEFT's order of
operations, which adds the adapter to what is rounded already, and by ours.

    python benchmarks/merge.py --run RUN --sizes 1,0.3,0.1,0.03 --json
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import task
from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.data.files import read_demonstrations
from plaudit.guard.sampler import sampler_gap, sampler_slope
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries, resolve
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import pad_right
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.folder import read_recipe
from plaudit.run.provenance import versions

CPU, BF16, FLOAT32 = torch.device("cpu"), torch.bfloat16, torch.float32
REPLIES = 32
ROUNDINGS: dict[str, Rounding | None] = {"nearest": None, "stochastic": Rounding(0, "benchmark")}
Weights = dict[str, Tensor]


def merged(base: str, adapter: Path, size: float) -> tuple[Weights, Weights, dict[str, Weights], dict[str, float]]:
    """(W, exact W + ΔW, the bfloat16 ones by rounding, seconds of each) of the adapted layers; ΔW is `size` times."""
    roles = Roles(load_model(base, BF16, CPU), reward=[adapter])
    for layer in roles._lora_layers:
        layer.scaling["reward"] *= size
    rounded, seconds = {}, {}
    for name, rounding in ROUNDINGS.items():
        started = time.perf_counter()
        rounded[name] = {key: weight.clone() for key, weight in roles.merged_weights("reward", rounding)}
        seconds[name] = time.perf_counter() - started
    held = {f"{name}.weight": layer for name, layer in roles.peft.named_modules() if layer in roles._lora_layers}
    before = {key: held[f"base_model.model.{key}"].get_base_layer().weight.float() for key in rounded["nearest"]}
    exact = dict(roles.to(FLOAT32).merged_weights("reward", None))
    return before, exact, rounded, seconds


def kept(before: Weights, exact: Weights, found: Weights) -> dict[str, float]:
    """The shares of the docstring."""
    products = squares = same = count = 0.0
    for name, weight in before.items():
        delta, got = exact[name].double() - weight.double(), found[name].double() - weight.double()
        products, squares = products + (got * delta).sum().item(), squares + (delta**2).sum().item()
        same, count = same + (got == 0).sum().item(), count + got.numel()
    return {"kept": products / squares, "unchanged": same / count}


def with_weights(model: PreTrainedModel, weights: Weights) -> PreTrainedModel:
    merge_into(model, ((name, weight.float()) for name, weight in weights.items()))
    return model


def policy(source: str, adapter: Path, sizes: list[float]) -> list[dict[str, Any]]:
    tokenizer, rows = load_tokenizer(source), []
    model = load_model(source, BF16, CPU).float()
    prompts = [task.ids_of(tokenizer, text) for text in task.fixed_prompts(tokenizer, task.BATCH, task.PROMPT_TOKENS)]
    draws = rng.uniforms(0, "benchmark", 0, list(range(len(prompts))), task.REPLY_TOKENS)
    for size in sizes:
        before, exact, rounded, seconds = merged(source, adapter, size)
        for name, weights in rounded.items():
            engine = InProcessEngine(load_model(source, BF16, CPU).float(), eos_id=-1)
            engine.load_weights((key, weight.float()) for key, weight in weights.items())
            replies = engine.generate(prompts, draws)
            engine.close()
            tokens = pad_right(prompts, [reply.ids for reply in replies], 0, CPU)
            sampler_BT, policy_BT, reference_BT = (
                plain_logprobs(with_weights(model, one), tokens, 1.0) for one in (weights, exact, before)
            )
            mask_BT = tokens.mask_BT
            slope = sampler_slope(sampler_BT, policy_BT, reference_BT, mask_BT, noise=0.0)
            rows.append(
                {"size": size, "rounding": name, **kept(before, exact, weights)}
                | {"slope": slope and slope.value, "slope_se": slope and slope.error, "seconds": seconds[name]}
                | {
                    "gap": sampler_gap(sampler_BT, policy_BT, mask_BT)[0],
                    "reference_gap": sampler_gap(reference_BT, policy_BT, mask_BT)[0],
                }
            )
    return rows


def sft(run: Path) -> list[dict[str, Any]]:
    recipe = read_recipe(run)
    source = resolve(recipe["model"])
    chat = ChatFormat(load_tokenizer(str(run / "sft/model")), recipe["data"].get("system"))
    read = read_demonstrations(recipe["data"]["demonstrations"])
    rows = list(read.where(read.splits == "test"))
    prompts = [chat.prompt_ids(row.prompt.messages) for row in rows]
    replies = [chat.tokenizer(row.completion, add_special_tokens=False)["input_ids"] + [chat.eos_id] for row in rows]
    tokens = pad_right(prompts, replies, chat.pad_id, CPU)
    before, exact, rounded, _ = merged(source, run / "sft/adapter", 1.0)
    model = load_model(source, BF16, CPU).float()

    def loss(weights: Weights) -> float:
        return -float(plain_logprobs(with_weights(model, weights), tokens, 1.0)[tokens.mask_BT].mean())

    told = {"before": loss(before), "unmerged": loss(exact)}
    return [
        {"rounding": name, **kept(before, exact, weights), "loss": loss(weights), **told}
        for name, weights in rounded.items()
    ]


def passes(run: Path, source: str, adapter: Path, sizes: list[float]) -> list[dict[str, Any]]:
    recipe = read_recipe(run)
    chat = ChatFormat(load_tokenizer(str(run / "sft/model")), recipe["data"].get("system"))
    read = list(read_demonstrations(recipe["data"]["demonstrations"]))[:REPLIES]
    prompts = [chat.prompt_ids(row.prompt.messages) for row in read]
    replies = [chat.tokenizer(row.completion, add_special_tokens=False)["input_ids"] for row in read]
    tokens = pad_right(prompts, replies, chat.pad_id, CPU)

    def moved(roles: Roles) -> Tensor:
        """log π − log π_ref of every reply token, [N]."""
        plain = roles.peft.get_base_model()
        found = []
        for name in ("reward", None):
            roles._activate(name)
            found.append(plain_logprobs(plain, tokens, 1.0)[tokens.mask_BT])
        return found[0] - found[1]

    rows = []
    for size in sizes:
        by: dict[str, Tensor] = {}
        for order, libraries in (("peft", "1"), ("plaudit", "0")):
            os.environ["PLAUDIT_PLAIN"] = libraries
            roles = Roles(load_model(source, BF16, CPU), reward=[adapter])
            for layer in roles._lora_layers:
                layer.scaling["reward"] *= size
            by[order] = moved(roles)
        by["exact"] = moved(roles.to(FLOAT32))
        squares = by["exact"].square().sum()
        for order in ("peft", "plaudit"):
            share = (by[order] @ by["exact"] / squares).item()
            error = ((by[order] - share * by["exact"]).square().mean() / squares).sqrt().item()
            rows.append({"size": size, "order": order, "kept": share, "kept_se": error, "tokens": len(by["exact"])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--of", choices=("ppo", "sft"), default="ppo")
    parser.add_argument("--sizes", default="1,0.3,0.1,0.03")
    parser.add_argument("--passes", action="store_true", help="only what passes keep")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    quiet_libraries()
    run, of = arguments.run, arguments.of
    source = str(run / "sft/model") if of == "ppo" else resolve(read_recipe(run)["model"])
    adapter, sizes = run / of / "adapter", [float(size) for size in arguments.sizes.split(",")]
    found = {"workload": "merge", "passes": passes(run, source, adapter, sizes)}
    if not arguments.passes:
        found |= {"policy": policy(source, adapter, sizes), "sft": sft(run)}
    found["versions"] = versions()
    task.finish(found, None, arguments.json)


if __name__ == "__main__":
    main()
