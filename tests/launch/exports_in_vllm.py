"""An export in vLLM, offline, in an environment without Plaudit: the policy's greedy replies or the reward model's
scores, as a line of JSON. Its argument is JSON: `role` (policy or reward), `model` (a folder), `prompts`, `length`."""

import json
import sys
from typing import Any

from vllm import LLM, PoolingParams, SamplingParams

END = 2


def main() -> None:
    asked = json.loads(sys.argv[1])
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20}
    runner = "generate" if asked["role"] == "policy" else "pooling"
    llm = LLM(model=asked["model"], runner=runner, **settings)
    print(json.dumps(written(llm, asked) if asked["role"] == "policy" else scored(llm, asked)), flush=True)


def written(llm: LLM, asked: dict[str, Any]) -> list[list[int]]:
    greedy = SamplingParams(temperature=0.0, max_tokens=asked["length"])
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, greedy, use_tqdm=False)]


def scored(llm: LLM, asked: dict[str, Any]) -> list[float]:
    ended = [{"prompt_token_ids": [*ids, END]} for ids in asked["prompts"]]
    found = llm.classify(ended, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [one.outputs.probs[0] for one in found]


if __name__ == "__main__":
    main()
