"""The benchmarks of a GPU in one process, one after the other: for a machine that is there for minutes.

Llama shapes with random weights (shapes.py): W-ROLL by ours and by `generate`, W-PPO by ours and, where TRL can be
imported, by TRL, one micro-batch in several sizes, padded and packed, and W-ROLL of a second, larger shape. A part that
would not be done by `--limit` is left out; each is written to a file of `--out` as soon as it is there. Runs on a CPU
with `tiny` too, to see that it does.

    PYTHONPATH=benchmarks python benchmarks/gpu.py --tokenizer FOLDER --shape 0.5b --large 8b --out results
"""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import packing
import ppo
import rollout
import shapes
import task
from plaudit.cli.main import main as plaudit
from plaudit.dist.machine import choose_machine, peak_rss_mb, start_peaks
from plaudit.models.config import LoraSettings
from plaudit.models.kernels.attention import use_packed_attention
from plaudit.models.load import load_model
from plaudit.models.roles import Roles

sys.path.insert(0, str(Path(__file__).with_name("peers")))
SIZES = {"8 rows of 64": ((16,) * 8, (48,) * 8), "32 rows of 64": ((16,) * 32, (48,) * 32)}
SIZES["32 rows of 256"] = ((128,) * 32, (128,) * 32)


def stage(name: str, path: Path, overrides: list[str]) -> float:
    """What ppo.py starts a process for, so that it has a peak of its own: here that is the GPU's, and what is returned
    the peak of everything so far."""
    gc.collect()
    before, sys.argv = sys.argv, ["plaudit", name, str(path), *overrides]
    try:
        plaudit()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"plaudit {name} ended with exit code {end.code}") from end
    finally:
        sys.argv = before
    return round(peak_rss_mb(), 1)


def trl(model: Path) -> dict[str, Any]:
    """W-PPO by TRL."""
    import trl_ppo as peer

    return peer.measure(peer.command_line().parse_args(["--model", str(model), "--updates", "3"]))


def generate(model: Path) -> dict[str, Any]:
    """W-ROLL by transformers."""
    import generate as peer

    return peer.measure(str(model), 3, task.BATCH, task.REPLY_TOKENS)


def passes(model: Path, rounds: int = 7) -> dict[str, Any]:
    """Milliseconds of a forward and backward pass: of several sizes padded, then padded and packed."""
    machine = choose_machine("auto")
    base = load_model(str(model), machine.dtype, machine.device)
    lora = LoraSettings(r=task.LORA_R, alpha=task.LORA_ALPHA)
    roles = Roles(base, trained="policy", lora=lora, value_gradient=True)
    refused = use_packed_attention(base)
    packing.roles_module.PACKED_BELOW = 10.0
    every = {name: packing.Shape(0, *lengths) for name, lengths in SIZES.items()} | packing.SHAPES
    found: dict[str, Any] = {} if refused is None else {"refused": refused}
    for name, shape in every.items():
        tokens = shape.tokens(base.config.vocab_size, machine.device)
        ways = (False, True) if refused is None and name not in SIZES else (False,)
        taken = {packs: sorted(packing.seconds_of(roles, tokens, packs) for _ in range(rounds)) for packs in ways}
        found[name] = [round(1000 * seconds[rounds // 2], 1) for seconds in taken.values()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a Hugging Face folder; only its tokenizer is used")
    parser.add_argument("--shape", default="0.5b", help=f"one of {', '.join(shapes.SHAPES)}")
    parser.add_argument("--large", help="another one, for the rollout alone")
    parser.add_argument("--limit", type=float, default=3600, help="seconds in all")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        run(given, Path(home) / "model", Path(home) / "large")


def run(given: argparse.Namespace, model: Path, large: Path) -> None:
    """All parts that there is time for; the models are made in the folders `model` and `large`."""
    started = time.monotonic()

    def roll(folder: Path) -> dict[str, Any]:
        return rollout.measure(str(folder), 3, task.BATCH, task.REPLY_TOKENS, task.PROMPT_TOKENS, "auto")

    # About how many seconds each took on an H100, and what it does.
    parts: dict[str, tuple[float, Callable[[], Any]]] = {
        "shape": (0, lambda: shapes.make(given.shape, given.tokenizer, model)),
        "rollout": (10, lambda: roll(model)),
        "generate": (15, lambda: generate(model)),
        "ppo": (45, lambda: ppo.measure(str(model), 3, 0, "auto", [])),
        **({"trl": (40, lambda: trl(model))} if find_spec("trl") else {}),
        "passes": (25, lambda: passes(model)),
        **(
            {"large": (60, lambda: (shapes.make(given.large, given.tokenizer, large), roll(large))[1])}
            if given.large
            else {}
        ),
    }
    ppo.stage = stage
    for name, (needed, part) in parts.items():
        begun = time.monotonic() - started
        if begun + needed > given.limit:
            print(f"{name}: left out, {begun:.0f} s are gone", flush=True)
            continue
        gc.collect()
        start_peaks(choose_machine("auto").device)
        with contextlib.redirect_stdout(sys.stderr):
            found = part()
        (given.out / f"{name}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        print(f"{name}, {time.monotonic() - started - begun:.0f} s: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
