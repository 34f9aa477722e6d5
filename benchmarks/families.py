"""Every causal language model type of transformers as a tiny random model: works, adapter only, or refused because.

    PYTHONPATH=tests:tests/models python benchmarks/families.py [--only llama,opt] [--part 1/4] --json found.json
    PYTHONPATH=tests:tests/models python benchmarks/families.py --table found.json --page docs/models.md

A type goes first through what `prepare` asks of a model. One that is taken must give transformers' own
log-probabilities (padded and packed), decode as whole passes, and merge, save and read again its adapter
(tests/models/tiny_families.py). A difference is WRONG, an error that is no refusal is a CRASH; with one of them, or a
type that takes over 30 s, the exit code is 1. Types that need more than their sizes to be tiny are in TINY; one whose
smallest model is too large to try, or cannot be made, is NOT TRIED, with the reason. `--json` adds to the file.
"""

import argparse
import json
import re
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tiny_families import (
    EXPERTS,
    FAMILIES,
    GROUPS,
    LATENT,
    SLOW,
    Family,
    built,
    check_adapter,
    check_decoding,
    check_logprobs,
    config_of,
    ragged_tokens,
)
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from conftest import make_tokenizer
from plaudit.dist.machine import choose_machine
from plaudit.errors import UserError
from plaudit.models.config import LoraSettings
from plaudit.models.examine import examine
from plaudit.models.load import check_readable, load_chat, quiet_libraries

LARGEST = 30_000_000
"""Parameters of a model that is still tried."""
LONGEST, PATIENCE = 30.0, 60
"""Seconds within which a type must be through, and after which it is given up."""
LATENT_EXPERTS = LATENT | EXPERTS | GROUPS | {"head_dim": 4}
INDEXED = LATENT_EXPERTS | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 64}
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY: dict[str, dict[str, Any]] = {
    "axk2": LATENT_EXPERTS,
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": LATENT_EXPERTS,
    "deepseek_v32": INDEXED,
    "dots1": EXPERTS | GROUPS | {"layer_types": ["full_attention", "full_attention"], "max_window_layers": 2},
    "gemma3": {"vision_config": IMAGES | {"image_size": 28, "patch_size": 14}, "image_token_index": 300},
    "glm4_moe_lite": LATENT_EXPERTS,
    "glm_moe_dsa": INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "youtu": LATENT | {"head_dim": 4},
    "whisper": {"d_model": 32, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_ffn_dim": 48},
}
"""What a type needs beside the sizes that all have, where no family of the tests says so."""
BEGIN = "<!-- written by benchmarks/families.py -->"
END = "<!-- to here -->"


def outcome(kind: str) -> tuple[str, str]:
    """(what became of a type, what is to be said of it)."""
    known = {family.kind: family.more for family in (SLOW | FAMILIES).values()}
    more = TINY.get(kind, known.get(kind, {}))
    try:
        with torch.device("meta"):
            size = sum(
                p.numel() for p in AutoModelForCausalLM.from_config(config_of(CONFIG_MAPPING[kind], more)).parameters()
            )
        if size > LARGEST:
            return "NOT TRIED", f"its smallest model here has {size:.1e} parameters"
        theirs = built(Family(kind, more))
    except Exception as error:
        return "NOT TRIED", f"no tiny model: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        theirs.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        try:
            check_readable(str(folder))
            said, _ = examine(
                str(folder), choose_machine("float32"), load_chat(str(folder)), [LoraSettings(r=2, alpha=4)]
            )
        except UserError as error:
            return "refused", str(error).replace(f"model: {folder}: ", "")
        try:
            check_logprobs(theirs, folder, ragged_tokens())
            check_decoding(theirs, folder)
            check_adapter(folder, ragged_tokens(), Path(scratch) / "merged")
        except AssertionError as error:
            return "WRONG", " ".join(str(error).split())[:200]
    only = [line for line in said if "reward/model is left out" in line]
    return "adapter only" if only else "works", "; ".join(line for line in said if line not in only)


def give_up(*_: object) -> None:
    raise TimeoutError


def tried(kind: str) -> dict[str, Any]:
    started = time.perf_counter()
    signal.alarm(PATIENCE)
    try:
        what, said = outcome(kind)
    except TimeoutError:
        what, said = "NOT TRIED", f"over {PATIENCE} s on this CPU, for which transformers has no fast kernel of it"
    except Exception as error:
        what, said = "CRASH", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    signal.alarm(0)
    seconds = time.perf_counter() - started
    print(f"{kind:26} {what:12} {seconds:5.1f} s  {said}", flush=True)
    return {"outcome": what, "said": said, "seconds": round(seconds, 1)}


MARKS = {"sampling reads every row anew": "¹", "; without ": "²"}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The page's tables: the types that are taken, marked with what is said of them; the others by the reason."""
    taken: dict[str, list[str]] = {"works": [], "adapter only": []}
    reasons: dict[tuple[str, str], list[str]] = {}
    for kind, one in sorted(found.items()):
        name, said = f"`{kind}`", one["said"]
        if one["outcome"] in taken:
            taken[one["outcome"]].append(name + "".join(mark for part, mark in MARKS.items() if part in said))
        else:
            why = re.sub(r" \(.*|;.*|: .*| '[^']*'", "", said)
            why = re.sub(r"[\d.e+]+ parameters", f"over {LARGEST:,} parameters", why)
            reasons.setdefault((one["outcome"].lower(), why), []).append(name)
    rows = ["| outcome | types |", "| --- | --- |"]
    rows += [f"| {outcome} | {', '.join(names)} |" for outcome, names in taken.items()]
    rows += ["", "| outcome | reason | types |", "| --- | --- | --- |"]
    return "\n".join(
        rows + [f"| {what} | {why} | {', '.join(names)} |" for (what, why), names in sorted(reasons.items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="types, separated by commas")
    parser.add_argument("--part", default="1/1", help="the n-th of m parts of all types")
    parser.add_argument("--json", type=Path, help="add what was found to this file")
    parser.add_argument("--table", type=Path, help="write the table of this file instead of trying anything")
    parser.add_argument("--page", type=Path, help="the page whose table it is")
    asked = parser.parse_args()
    if asked.table:
        text = asked.page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        found = json.loads(asked.table.read_text(encoding="utf-8"))
        asked.page.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        return
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, give_up)
    quiet_libraries()
    torch.set_num_threads(1)
    part, parts = map(int, asked.part.split("/"))
    kinds = sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})
    kinds = asked.only.split(",") if asked.only else kinds[part - 1 :: parts]
    found = {}
    for kind in kinds:
        found[kind] = tried(kind)
        if asked.json:
            before = json.loads(asked.json.read_text(encoding="utf-8")) if asked.json.is_file() else {}
            asked.json.write_text(json.dumps(before | found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    slow = [kind for kind, one in found.items() if one["outcome"] != "NOT TRIED" and one["seconds"] > LONGEST]
    bad = [kind for kind, one in found.items() if one["outcome"] in ("WRONG", "CRASH")] + slow
    print(f"{len(found)} types, {len(bad)} not as they must be: {', '.join(bad)}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
