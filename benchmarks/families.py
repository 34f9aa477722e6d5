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
import copy
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
from safetensors.torch import save_file
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
"""Seconds of this process within which a type must be through, and after which it is given up."""
LATENT_EXPERTS = tiny.LATENT | tiny.EXPERTS | tiny.GROUPS | {"head_dim": 4}
INDEXED = LATENT_EXPERTS | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 64}
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = IMAGES | {"image_size": 28, "patch_size": 14}
COMPRESSED = {"hc_lowrank": 8, "ngram_vocab_size_base": 64, "split_ngram_parts": 1, "indexer_n_heads": 2}
COMPRESSED |= {"indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 4}
PYRAMID = {"mlp_layer_types": ["dense"], "adapter_in_dim": 16, "adapter_out_dim": 32}
DRAFTS = tiny.SLIDING | {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
NO_ROPE = {"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
TINY: dict[str, dict[str, Any]] = {
    "axk1": LATENT_EXPERTS,
    "axk2": LATENT_EXPERTS,
    "bailing_hybrid": LATENT_EXPERTS | tiny.HYBRID,
    "blt": {"encoder_hash_byte_group_vocab": 64}
    | {name: {"hidden_size_global": 32} for name in ("encoder_config", "decoder_config")},
    "codegen": {"rotary_dim": 8},
    "cohere2": {"logit_scale": 0.5},
    "cohere_compass_text": tiny.SLIDING | {"rope_parameters": NO_ROPE},
    "deepseek_v2": LATENT_EXPERTS,
    "deepseek_v32": INDEXED,
    "dots1": tiny.EXPERTS | tiny.GROUPS | {"layer_types": ["full_attention", "full_attention"], "max_window_layers": 2},
    "dots3_note": {
        "text_config": INDEXED,
        "vision_config": PATCHES | PYRAMID,
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": INDEXED,
    "gemma3": {"vision_config": PATCHES, "image_token_index": 300},
    "gemma4": {"text_config": tiny.SLIDING | tiny.PER_LAYER | {"global_head_dim": 8}, "vision_config": PATCHES},
    "gemma4_assistant": {"text_config": DRAFTS | {"model_type": "gemma4_text"}, "backbone_hidden_size": 32},
    "gemma4_unified": {
        "text_config": tiny.SLIDING | {"global_head_dim": 8},
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32},
    },
    "gemma4_unified_assistant": {
        "text_config": DRAFTS | {"model_type": "gemma4_unified_text"},
        "backbone_hidden_size": 32,
    },
    "glm4_moe_lite": LATENT_EXPERTS,
    "glm_moe_dsa": INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "hy_v4": INDEXED,
    "inkling_text": tiny.EXPERTS
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 4, "rel_extent": 64},
    "kolibri1": tiny.EXPERTS,
    "lfm2_moe": tiny.EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": LATENT_EXPERTS | {"num_layers": 2, "zero_expert_num": 2, "moe_topk": 2},
    "mimo_v2_flash": tiny.EXPERTS | tiny.SLIDING | {"v_head_dim": 8},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_ffn_dim": 48},
    "qwen3_5": {"text_config": tiny.LINEAR | tiny.HYBRID, "vision_config": PATCHES},
    "qwen3_5_moe": {"text_config": tiny.LINEAR | tiny.HYBRID | tiny.EXPERTS, "vision_config": PATCHES},
    "qwen3_5_moe_text": tiny.LINEAR | tiny.HYBRID | tiny.EXPERTS,
    "qwen4_exp": {"text_config": tiny.LINEAR | tiny.HYBRID | tiny.EXPERTS | COMPRESSED, "vision_config": PATCHES},
    "qwen4_exp_text": tiny.LINEAR | tiny.HYBRID | tiny.EXPERTS | COMPRESSED,
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 16]}
    | {"axial_pos_embds_dim": [8, 24], "attention_head_size": 8, "feed_forward_size": 48},
    "solar_open": tiny.EXPERTS | tiny.GROUPS,
    "youtu": tiny.LATENT | {"head_dim": 4},
    "whisper": {"d_model": 32, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_ffn_dim": 48},
    "xlnet": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "zamba": tiny.SHARED | {"attention_head_dim": 16, "attn_layer_period": 2, "attn_layer_offset": 1},
}
"""What a type needs beside the sizes that all have, where no family of the tests says so."""
BEGIN = "<!-- written by benchmarks/families.py -->"
END = "<!-- to here -->"


def outcome(kind: str) -> tuple[str, str]:
    """(what became of a type, what is to be said of it)."""
    known = {family.kind: family.more for family in (tiny.SLOW | tiny.FAMILIES).values()}
    more = TINY.get(kind, known.get(kind, {}))
    try:
        config = tiny.config_of(CONFIG_MAPPING[kind], more)
    except Exception as error:
        return "NOT TRIED", f"no tiny model: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        make_tokenizer().save_pretrained(folder)
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
            if size > LARGEST:
                return "NOT TRIED", f"its smallest model here has {size:.1e} parameters"
            theirs = tiny.built(tiny.Family(kind, more))
            theirs.save_pretrained(folder)
        except Exception:  # transformers cannot make it of its own settings, so it has to be refused
            config.save_pretrained(folder)
            save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        try:
            check_readable(str(folder))
            said, _ = examine(
                str(folder), choose_machine("float32"), load_chat(str(folder)), [LoraSettings(r=2, alpha=4)]
            )
        except UserError as error:
            return "refused", str(error).replace(f"model: {folder}: ", "").removeprefix("model: ")
        try:
            tiny.check_logprobs(theirs, folder, tiny.ragged_tokens())
            tiny.check_decoding(theirs, folder)
            tiny.check_adapter(folder, tiny.ragged_tokens(), Path(scratch) / "merged")
        except AssertionError as error:
            return "WRONG", " ".join(str(error).split())[:200]
    only = [line for line in said if "reward/model is left out" in line]
    return "adapter only" if only else "works", "; ".join(line for line in said if line not in only)


class OutOfTimeError(BaseException):
    """No `except Exception` on the way takes it for a refusal."""


def give_up(*_: object) -> None:
    raise OutOfTimeError


def try_here(kind: str, told: Connection) -> None:
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        what, said = outcome(kind)
    except OutOfTimeError:
        what, said = "NOT TRIED", f"over {PATIENCE} s on this CPU, for which transformers has no fast kernel of it"
    except Exception as error:
        what, said = "CRASH", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    told.send({"outcome": what, "said": said, "seconds": round(time.process_time() - started, 1)})


def tried(kind: str) -> dict[str, Any]:
    """In a process of its own: one that dies does not end the sweep, and no type leaves anything to the next."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=try_here, args=(kind, theirs))
    child.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        found = {"outcome": "CRASH", "said": "its process died", "seconds": 0.0}
    child.join()
    print(f"{kind:26} {found['outcome']:12} {found['seconds']:5.1f} s  {found['said']}", flush=True)
    return found


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
    signal.signal(signal.SIGPROF, give_up)
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
