"""How long `plaudit data check` takes on a large file, and how much memory: a million synthetic rows, about 1 GB.

    python benchmarks/data_check.py [--rows N] [--format messages|pairs] [--tokenizer MODEL] [--json]

The rows are drawn from a seed into a temporary folder (about 1 GB of disk) with one exact duplicate in a hundred rows,
one near-duplicate in a hundred and one leak in a thousand. The check runs in a process of its own, whose peak memory is
reported.
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
from typing import Any

WORDS = [
    a + b + c
    for a in ("ba", "de", "ki", "lo", "mu", "ra", "se", "ti")
    for b in ("n", "r", "st", "lm", "ck", "")
    for c in ("a", "el", "ing", "o", "ure", "y", "ion", "ed", "er", "ous")
]


def sentence(random: random.Random, words: int) -> str:
    return " ".join(random.choices(WORDS, k=words)).capitalize() + "."


def row(random: random.Random, number: int, format: str, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """A new row, or now and then one that was seen before: the same, nearly the same, or in another split."""
    if seen and number % 50 == 49:
        old = random.choice(seen)
        if number % 100 == 99:
            return old
        changed = json.loads(json.dumps(old))
        target = changed["messages"][-1] if format == "messages" else changed["chosen"][0]
        target["content"] += " Quite so."
        return changed | ({"split": "test"} if number % 1000 == 549 else {})
    asked, reply = sentence(random, 30), " ".join(sentence(random, 14) for _ in range(9))
    kind = ("instruction", "domain", "safety")[number % 3]
    user, assistant = {"role": "user", "content": asked}, {"role": "assistant", "content": reply}
    if format == "messages":
        return {"messages": [user, assistant], "kind": kind, "split": "train"}
    other = {"role": "assistant", "content": sentence(random, 60)}
    return {"prompt": [user], "chosen": [assistant], "rejected": [other], "kind": kind, "split": "train"}


def generate(path: Path, rows: int, format: str) -> None:
    draw = random.Random(0)
    seen: list[dict[str, Any]] = []
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            made = row(draw, number, format, seen)
            if number % 97 == 0 and len(seen) < 2000:
                seen.append(made)
            handle.write(json.dumps(made) + "\n")


def measure(path: Path, tokenizer: str | None) -> dict[str, Any]:
    """Run the check; its time, its peak memory and what it found."""
    command = [sys.executable, "-c", "from plaudit.cli.main import main; main()", "data", "check", str(path), "--json"]
    command += ["--tokenizer", tokenizer] if tokenizer else []
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    report = json.loads(out)
    (file,) = report["files"]
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1024),
        "rows": file["rows"],
        "bad": file["bad"],
        "megabytes": round(path.stat().st_size / 1e6),
        "exit_code": process.returncode,
        "near_of_rows": file["near_of_rows"],
        "problems": {problem["kind"]: problem["count"] for problem in report["problems"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("messages", "pairs"), default="messages")
    parser.add_argument("--tokenizer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "rows.jsonl"
        generate(path, options.rows, options.format)
        found = measure(path, options.tokenizer)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
