"""What the process of a reward function costs: seconds to start, milliseconds a call of 32 replies, memory.

    python benchmarks/reward_function.py --json

The function looks at nothing but the length, so a call is what the process costs; beside it the same call without one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from plaudit.records import Completion, Message, Prompt
from plaudit.rewards.texts.answers import ScoreItem
from plaudit.rewards.texts.function import FunctionScorer

FUNCTION = "def score(items):\n    return {item['id']: len(item['completion']) for item in items}\n"
PROMPT = Prompt("p", (Message("user", "Tell me about the sea, please. " * 7),), "any", "train")


def median_s(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def measure(replies: int = 32, calls: int = 500) -> dict[str, float]:
    items = [ScoreItem(f"p{i}", PROMPT, Completion("word " * 100)) for i in range(replies)]
    names: dict[str, Callable[..., object]] = {}
    exec(FUNCTION, names)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rewards.py"
        file.write_text(FUNCTION, encoding="utf-8")
        start_s = median_s(lambda: FunctionScorer(f"{file}:score"), 5)
        scorer = FunctionScorer(f"{file}:score")
        call_s = median_s(lambda: scorer.score(items), calls)
        status = Path(f"/proc/{scorer.process_id}/status").read_text(encoding="utf-8")
    return {
        "start_s": round(start_s, 3),
        "call_ms": round(1e3 * call_s, 3),
        "call_in_the_run_ms": round(1e3 * median_s(lambda: names["score"]([i.as_json() for i in items]), calls), 3),
        "resident_mb": int(status.split("VmRSS:")[1].split()[0]) / 1e3,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()
    found = measure()
    print(json.dumps(found) if arguments.json else "\n".join(f"{name}: {value:g}" for name, value in found.items()))
