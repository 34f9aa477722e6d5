"""The tiny recipe in several shapes, one seed: the SHA-256 of every file that their manifests name, as JSON.

For changes that must change nothing: run it before and after on one machine, and compare.

    PYTHONPATH=tests python benchmarks/golden.py --json before.json
    PYTHONPATH=tests python benchmarks/golden.py --against before.json [--only base,own]

Times (`times.jsonl`, `seconds*`, memory) and HTML are left out, since they differ from run to run. A difference is
printed by shape and file, and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from conftest import TINY, make_model, make_tokenizer, tiny_rows, write_lines
from plaudit.run.folder import finished_stages
from plaudit.stages.pipeline import run_pipeline
from plaudit.stages.recipe import load_recipe
from plaudit.stages.reward import loop as reward

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "base": {},
    "own": {
        "reward": {"members": 2, "aggregate": "mean_minus_std"},
        "ppo": {
            "critic": "own",
            "missing_eos": "bootstrap",
            "missing_eos_penalty": 0.0,
            "value_clip": 0.2,
        },
    },
    "rloo": {
        "reward": {"loss": "plackett_luce", "members": 2, "aggregate": "weight_averaged"},
        "ppo": {"advantages": "rloo", "replies_per_prompt": 2, "kl_penalty": "loss", "ptx_coef": 0.1, "ptx_rows": 2},
    },
    "grpo": {
        "lora": {"stages": {"sft": None, "reward": None}},
        "ppo": {"advantages": "grpo", "replies_per_prompt": 2, "sigmoid_centred": True, "length_penalty": 0.1},
    },
    "reinforce": {
        "reward": {"loss": "davidson", "members": 3, "aggregate": "pessimistic"},
        "ppo": {"advantages": "reinforce_pp", "kl_penalty": "k3", "kl_target": 2.0, "epochs": 3, "target_kl": 0.05},
    },
    "plain": {"ppo": {"critic_warmup": 1, "critic": "head", "entropy_coef": 0.01, "dual_clip": 3.0}},
    "bfloat16": {"ppo": {"score_scale": "running"}},
}
"""What each shape changes; `plain` runs without packing and fused products, `bfloat16` in that format."""
TIMED = ("second", "peak_rss_mb", "peak_gpu_mb")
"""Parts of keys that hold times or memory."""


def stable(file: Path) -> bytes:
    """A file's content without times; JSON and JSON lines with their keys in order."""
    if file.suffix not in (".json", ".jsonl"):
        return file.read_bytes()
    text = file.read_text(encoding="utf-8")
    rows = [json.loads(text)] if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return json.dumps([without_times(row) for row in rows], sort_keys=True).encode()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not any(part in key for part in TIMED)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file in the manifest that a run of the same code leaves alike, and not what
    it was made of: that names places and the code."""
    named = [file for stage in finished_stages(folder).values() for file in stage["files"]]
    left = [file for file in named if not file.endswith((".html", ".svg", ".png", "times.jsonl", "inputs.json"))]
    return {file: hashlib.sha256(stable(folder / file)).hexdigest() for file in sorted(left)}


def run(home: Path, shape: str) -> dict[str, str]:
    """One whole run in a folder of its own."""
    tokenizer = make_tokenizer()
    model = home / "model"
    if not model.exists():
        make_model("llama", len(tokenizer)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    prompts, demonstrations = tiny_rows()
    write_lines(home / "prompts.jsonl", prompts)
    write_lines(home / "demonstrations.jsonl", demonstrations)
    values: dict[str, Any] = {**TINY, "model": "model", "folder": str(home / shape)}
    values["sampling"] = {**values["sampling"], "stages": {"sft": {"max_new_tokens": 48}}}
    values["dtype"] = "bfloat16" if shape == "bfloat16" else "float32"
    for section, changes in SHAPES[shape].items():
        values[section] = {**values[section], **changes}
    if values["ppo"].get("advantages", "gae") != "gae":
        del values["ppo"]["critic_learning_rate"]  # it would do nothing, and is refused
    recipe = home / f"{shape}.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    os.environ["PLAUDIT_PLAIN"] = "1" if shape == "plain" else ""
    return hashes(run_pipeline(load_recipe(recipe)))


reward.NORMALISE_ON = 32  # fewer than the tiny recipe's replies, so that the choice of them counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the hashes here")
    parser.add_argument("--against", type=Path, help="compare with the hashes in this file")
    parser.add_argument("--only", default=",".join(SHAPES), help="shapes, separated by commas")
    parser.add_argument("--keep", type=Path, help="run in this folder and leave it")
    chosen = parser.parse_args()
    for name in ("json", "against", "keep"):
        setattr(chosen, name, getattr(chosen, name) and getattr(chosen, name).resolve())
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None  # stages ask for one a core; sums would round otherwise elsewhere
    with tempfile.TemporaryDirectory() as scratch:
        home = chosen.keep or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        os.chdir(home)  # so that no path differs from run to run
        found = {shape: run(Path("."), shape) for shape in chosen.only.split(",")}
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(map(len, found.values()))} files of {len(found)} runs")
    if chosen.against:
        before = json.loads(chosen.against.read_text(encoding="utf-8"))
        differ = [
            f"{shape}/{file}"
            for shape, files in found.items()
            for file in sorted({*files, *before[shape]})
            if files.get(file) != before[shape].get(file)
        ]
        print("\n".join(differ) or "equal")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
