"""Replies of vLLM, offline, in an environment without Plaudit: by the run's numbers, of a model and its adapters, as a
line of JSON. Its argument is a file of JSON: model, adapters (folders), prompts, draws, length, temperature."""

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

END = 2


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(
        model=asked["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        kv_cache_memory_bytes=64 << 20,
        enable_lora=True,
        max_lora_rank=8,
        max_cpu_loras=2,
        generation_config="vllm",
        logprobs_mode="processed_logits",
        logits_processors=["plaudit_draws.processor:Draws"],
    )
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    params = [_params(draws, asked["length"], asked["temperature"]) for draws in asked["draws"]]
    found = []
    for place, adapter in enumerate([None, *asked["adapters"]]):
        lora = None if adapter is None else LoRARequest(f"policy-{place}", place, adapter)
        outputs = [one.outputs[0] for one in llm.generate(prompts, params, use_tqdm=False, lora_request=lora)]
        found.append([[list(one.token_ids), _told(one)] for one in outputs])
    print(json.dumps(found), flush=True)


def _params(draws: str, length: int, temperature: float) -> Any:
    given = {"plaudit_draws": draws, "plaudit_temperature": temperature}
    common = {"temperature": 0.0, "max_tokens": length, "stop_token_ids": [END], "ignore_eos": True}
    return SamplingParams(**common, logprobs=0, extra_args=given)


def _told(output: Any) -> list[float]:
    return [said[token].logprob for token, said in zip(output.token_ids, output.logprobs, strict=True)]


if __name__ == "__main__":
    main()
