"""Whose reward model is right more often, pair by pair: the mean of our seeds minus that of a peer's, on the same
held-out pairs.

Every held-out pair counts 1 when the chosen reply scores higher, ½ when both score the same, else 0. The 95 % interval
is a bootstrap over prompts of the mean difference; what length alone reaches stands beside both. Several seeds of the
peer are averaged as ours are.

    python benchmarks/paired.py --data pairs/hh --ours ours0.json ours1.json ours2.json --peer trl.json --json

The files are those that reward.py and trl_reward.py wrote with `--margins` for the folder `--data` of pairs.py.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import pairs as workload
from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.hashes import sha256


def verdicts(path: Path, digest: str, count: int) -> list[float]:
    """What a file of margins says of every held-out pair; ValueError when it is about other pairs."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["held_out"] != digest or len(found["margins"]) != count:
        raise ValueError(
            f"{path}: {len(found['margins'])} margins of the pairs {found['held_out']}, expected {count} of {digest}; "
            "run it on the same folder, without --limit"
        )
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in found["margins"]]


def compare(data: Path, ours: list[Path], peer: list[Path]) -> dict[str, Any]:
    pairs, digest = workload.read(data), sha256(data / workload.HELD_OUT)
    prompts, count = pairs.prompts(), len(pairs.held_out)
    each, each_peer = (np.array([verdicts(path, digest, count) for path in paths]) for paths in (ours, peer))
    mean, theirs = each.mean(axis=0), each_peer.mean(axis=0)
    length = np.array(pairs.length_verdicts())
    return {
        "held_out_pairs": count,
        "prompts": len(set(prompts)),
        "ours": float(mean.mean()),
        "ours_ci": bootstrap_interval(mean, prompts),
        "ours_by_seed": each.mean(axis=1).tolist(),
        "peer": float(theirs.mean()),
        "peer_ci": bootstrap_interval(theirs, prompts),
        "peer_by_seed": each_peer.mean(axis=1).tolist(),
        "length_only": float(length.mean()),
        "length_only_ci": bootstrap_interval(length, prompts),
        "ours_minus_peer": float((mean - theirs).mean()),
        "ours_minus_peer_ci": bootstrap_interval(mean - theirs, prompts),
        "ours_minus_length": float((mean - length).mean()),
        "ours_minus_length_ci": bootstrap_interval(mean - length, prompts),
        "peer_minus_length_ci": bootstrap_interval(theirs - length, prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="the folder that pairs.py wrote")
    parser.add_argument("--ours", required=True, type=Path, nargs="+", help="our margins, a file a seed")
    parser.add_argument("--peer", required=True, type=Path, nargs="+", help="the peer's margins, a file a seed")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args()
    found = compare(given.data, given.ours, given.peer)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
