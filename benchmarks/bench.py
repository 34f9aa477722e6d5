"""Ours and the peer in turn, one after the other on an idle machine, and their ratios: `make bench`.

Every pair runs the peer, then ours; the ratio of a pair is of two runs minutes apart, and what is printed is the
median over the pairs, so that a slow hour of the machine touches both sides. A peer whose environment is not given is
left out (their files say how to make it).

    python benchmarks/bench.py --model FOLDER --trl112 venv-trl112/bin/python --pairs 5 --json out.json
    python benchmarks/bench.py --model FOLDER --only rollout --vllm venv-vllm/bin/python
    python benchmarks/bench.py --model FOLDER --only reward sft --trl venv-trl/bin/python --pairs-data pairs/wrm \
        --sft-data sft_messages.jsonl.gz
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from plaudit.data.files import write_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contest:
    """A peer's command against ours, and where the number that is compared stands; less is better for seconds."""

    name: str
    peer: list[str]
    ours: list[str]
    key: str

    def number(self, found: dict[str, Any]) -> float:
        """Higher is better."""
        value = found[self.key]
        # The first update is longer by what is made once: caches.
        return 1 / median(value[1:] or value) if isinstance(value, list) else float(value)


def contests(given: argparse.Namespace) -> list[Contest]:
    """What can be run with what was given."""
    model, own = ["--model", given.model, "--json"], sys.executable
    found = []
    if given.trl112:
        peer = [given.trl112, "peers/trl_ppo.py", *model, "--updates", "3"]
        ours = [own, "ppo.py", *model, "--updates", "4", *given.ours]
        found.append(Contest("ppo", peer, ours, "seconds_per_update"))
    rollout = [own, "rollout.py", *model]
    found.append(Contest("rollout", [own, "peers/generate.py", *model], rollout, "new_tokens_per_second"))
    if given.vllm:
        for name, flags in (("rollout-vllm-eager", ["--eager"]), ("rollout-vllm-compiled", [])):
            peer = [given.vllm, "peers/vllm_rollout.py", *model, *flags]
            found.append(Contest(name, peer, rollout, "new_tokens_per_second"))
    if given.trl and given.pairs_data:
        data = ["--data", str(given.pairs_data.resolve()), *(["--limit", "64"] if given.quick else [])]
        peer, ours = [given.trl, "peers/trl_reward.py", *model, *data], [own, "reward.py", *model, *data]
        found.append(Contest("reward", peer, ours, "pairs_per_second"))
    if given.trl and given.sft_data:
        data = ["--data", str(given.sft_data.resolve()), *(["--steps", "16"] if given.quick else [])]
        peer, ours = [given.trl, "peers/trl_sft.py", *model, *data, "--packing"], [own, "sft.py", *model, *data]
        found.append(Contest("sft", peer, ours, "tokens_per_second"))
    return [contest for contest in found if not given.only or contest.name.split("-")[0] in given.only]


def run(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line of what a benchmark prints."""
    script = [command[0], str(HERE / command[1]), *command[2:]]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(script)} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compete(contest: Contest, pairs: int) -> dict[str, Any]:
    """Both sides' numbers, and the median ratios of speed (ours to theirs) and of peak memory."""
    rows = []
    for number in range(pairs):
        peer, ours = run(contest.peer), run(contest.ours)
        rows.append({"peer": peer, "ours": ours})
        speed, memory = contest.number(ours) / contest.number(peer), ours["peak_rss_mb"] / peer["peak_rss_mb"]
        print(
            f"{contest.name}, pair {number + 1}: {speed:.2f} × the speed, {memory:.2f} × the memory of the peer;"
            f" {contest.key} {peer[contest.key]} against {ours[contest.key]}",
            file=sys.stderr,
            flush=True,
        )
    speeds = [contest.number(row["ours"]) / contest.number(row["peer"]) for row in rows]
    memory = [row["ours"]["peak_rss_mb"] / row["peer"]["peak_rss_mb"] for row in rows]
    return {
        "contest": contest.name,
        "times_the_speed": round(median(speeds), 3),
        "times_the_memory": round(median(memory), 3),
        "speeds": [round(speed, 3) for speed in speeds],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--pairs", type=int, default=3, help="how often both sides run")
    parser.add_argument("--only", nargs="*", choices=("ppo", "rollout", "reward", "sft"), help="all that can be run")
    parser.add_argument("--trl112", help="the python of an environment with TRL 1.12, for W-PPO")
    parser.add_argument("--trl", help="the python of an environment with TRL 1.16, for W-RM and W-SFT")
    parser.add_argument("--vllm", help="the python of an environment with vLLM, for W-ROLL")
    parser.add_argument("--pairs-data", type=Path, help="a folder of pairs.py, for W-RM")
    parser.add_argument("--sft-data", type=Path, help="a file of messages, for W-SFT")
    parser.add_argument("--quick", action="store_true", help="W-RM with 64 pairs, W-SFT with 16 steps: a quarter")
    parser.add_argument("--ours", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys for our W-PPO")
    parser.add_argument("--json", type=Path, help="write everything here")
    given = parser.parse_args()
    given.model = str(Path(given.model).resolve())
    found = [compete(contest, given.pairs) for contest in contests(given)]
    if given.json:
        write_json(given.json, found)
    print(json.dumps([{name: value for name, value in row.items() if name != "rows"} for row in found]))


if __name__ == "__main__":
    main()
