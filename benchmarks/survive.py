"""A run that is killed every minute or so, beside one that is not: do both end with the same files and summary?

    python benchmarks/survive.py --folder runs/survive --json                       the demo, a kill every 60 to 90 s
    python benchmarks/survive.py --folder runs/survive --recipe my.yaml ppo.updates=4

Both run by the command line, one after the other. The second is sent SIGKILL 60 to 90 seconds after each start and
then resumed, until it ends. Compared are the SHA-256 of every file that stages leave, logs of seconds aside, and the
summary, times and memory aside. A run that makes no progress between two kills is given up after `--most` of them.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import task
from plaudit import recipes
from plaudit.data.hashes import sha256
from plaudit.run.folder import STAGES
from plaudit.run.provenance import versions

DEMO = Path(recipes.__file__).parent / "demo.yaml"
TIMED = ("times.jsonl", "summary.json")
SECONDS = (
    "seconds",
    "peak_rss_mb",
    "tokens_per_second",
    "seconds_per_member",
    "pairs_per_second",
    "seconds_per_update",
    "megabytes_per_member",  # an adapter's file names the folder of its base
)


def without_times(value: Any) -> Any:
    """A summary without its seconds and megabytes."""
    if not isinstance(value, dict):
        return value
    return {name: without_times(inner) for name, inner in value.items() if name not in SECONDS}


def contents(home: Path, name: str) -> str:
    """Hash of a file; an adapter's configuration names the folder of its base, and reward.json has its hash."""
    if name.endswith("adapter_config.json"):
        return (home / name).read_text(encoding="utf-8").replace(str(home), "RUN")
    if name == "reward/reward.json":
        contract = task.read_json(home / name)
        del contract["sha256"], contract["files"]["adapter/adapter_config.json"]
        return json.dumps(contract)
    return sha256(home / name)


def differences(one: Path, other: Path) -> list[str]:
    """Files in which two finished runs differ."""
    names = {
        str(file.relative_to(home))
        for home in (one, other)
        for stage in STAGES
        for file in (home / stage).rglob("*")
        if file.is_file() and file.name not in TIMED
    }
    found = [n for n in sorted(names) if not all((home / n).is_file() for home in (one, other))]
    found += [n for n in sorted(names - set(found)) if contents(one, n) != contents(other, n)]
    summaries = [without_times(task.read_json(home / "summary.json")) for home in (one, other)]
    return found + (["summary.json"] if summaries[0] != summaries[1] else [])


def run(recipe: Path, arguments: list[str], seconds: float | None) -> int:
    """`plaudit run`, killed after `seconds`; the exit code, negative for a signal."""
    command = [sys.executable, "-c", "from plaudit.cli.main import main; main()", "run", str(recipe), *arguments]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()


def survive(
    recipe: Path, folder: Path, overrides: list[str], between: tuple[float, float], most: int
) -> dict[str, Any]:
    """Both runs; what differs."""
    started = time.monotonic()
    if code := run(recipe, [*overrides, f"folder={folder / 'unbroken'}"], None):
        raise SystemExit(f"the unbroken run ended with exit code {code}")
    unbroken = time.monotonic() - started
    drawn, kills, started = random.Random(0), 0, time.monotonic()
    arguments = [*overrides, f"folder={folder / 'killed'}"]
    while code := run(recipe, [*arguments, *(["--resume"] if kills else [])], drawn.uniform(*between)):
        if code != -signal.SIGKILL:
            raise SystemExit(f"a resumed run ended with exit code {code}")
        kills += 1
        if kills > most:
            raise SystemExit(f"given up after {kills} kills")
    rows = [json.loads(line) for line in (folder / "killed" / "saves.jsonl").read_text().splitlines()]
    return {
        "what": f"{recipe.name}, killed every {between[0]:g} to {between[1]:g} s",
        "kills": kills,
        "differences": differences(folder / "unbroken", folder / "killed"),
        "seconds_unbroken": round(unbroken, 1),
        "seconds_killed": round(time.monotonic() - started, 1),
        "saves": len(rows),
        "seconds_of_saves": round(sum(row["seconds"] for row in rows), 2),
        "largest_save_mb": round(max((row["bytes"] for row in rows), default=0) / 1e6, 1),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for example ppo.updates=2")
    parser.add_argument("--folder", required=True, type=Path, help="both runs go into it; it must be new")
    parser.add_argument("--recipe", type=Path, default=DEMO)
    parser.add_argument("--between", nargs=2, type=float, default=(60.0, 90.0), metavar="S", help="seconds to a kill")
    parser.add_argument("--most", type=int, default=100, help="kills after which it is given up")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = survive(given.recipe, given.folder, given.overrides, tuple(given.between), given.most)
    task.finish(found, None, given.json)
    if found["differences"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
