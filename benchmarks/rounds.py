"""Three rounds against one at equal labels: gold of the last policy, on the language of letters.py.

    OMP_NUM_THREADS=1 python benchmarks/rounds.py --json rounds.json

One round: so many labelled pairs of the SFT model's replies, a reward model, PPO. Three rounds: a third of the labels
each; after the first they are of the policy that the round before made, but for a quarter of the SFT model's
(`rounds.earlier`). Every reward model learns from all labels so far, and PPO starts at the SFT model again. All else is
alike, PPO's updates and KL penalty too. The annotator has noise and no weakness: what rounds can mend is that a reward
model does not know where the policy goes, not what people get wrong. Differences are paired by seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letters import Pairs, Policy, Reader, Replies, gold, labelled, learn, train_reader
from plaudit.algo.statistics import bootstrap_interval
from plaudit.run.provenance import versions

TOTALS, ROUNDS, LOOKED_AT = (100, 200, 400, 800), (1, 3), 512
EARLIER = 4
"""One pair in so many is the SFT model's, after round 1."""
FAIR = "none"


def pays(reader: Reader, sft: Replies) -> Any:
    """The score in std of SFT replies."""
    reference_B = reader(sft)

    @torch.no_grad()
    def paid(replies: Replies) -> Tensor:
        return (reader(replies) - reference_B.mean()) / reference_B.std()

    return paid


def last_policy(seed: int, total: int, rounds: int, kl_coef: float, updates: int) -> dict[str, Any]:
    """The gold of every round's policy, and how far the last one went."""
    sft, pairs = Policy(seed), list[Pairs]()
    policy, golds, apart = sft, list[float](), list[float]()
    replies = sft.sample(LOOKED_AT, [seed, 9])
    for number in range(rounds):
        own = total // rounds
        old = own // EARLIER if number else 0
        pairs.append(labelled(FAIR, policy, own - old, [seed, total, rounds, number]))
        apart.append(apart_in_gold(pairs[-1]))
        pairs += [labelled(FAIR, sft, old, [seed, total, rounds, number, 1])] if old else []
        reader = train_reader(sum(pairs[1:], pairs[0]), seed, 0)
        policy = Policy(seed)
        learn(policy, pays(reader, replies), kl_coef, updates, seed)
        written = policy.sample(LOOKED_AT, [seed, 9])
        golds.append(float(np.mean([gold(FAIR, said) for said in written.texts])))
    with torch.no_grad():
        logprobs, reference = (policy.logprobs(written, reference=on)[0].sum().item() for on in (False, True))
    start = float(np.mean([gold(FAIR, said) for said in replies.texts]))
    kl = (logprobs - reference) / LOOKED_AT
    told = {"seed": seed, "labels": total, "rounds": rounds, "sft": start, "golds": golds, "kl": kl}
    return {**told, "apart": apart}


def apart_in_gold(pairs: Pairs) -> float:
    """Mean difference of the gold of a pair's replies: next to the noise, how much a label says."""
    both = zip(pairs.better.texts, pairs.worse.texts, strict=True)
    return float(np.mean([abs(gold(FAIR, one) - gold(FAIR, other)) for one, other in both]))


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a number of labels: both gains over SFT, and the paired difference with its 95 % interval over seeds."""
    rows = []
    for total in dict.fromkeys(run["labels"] for run in runs):
        own = {n: [r for r in runs if (r["labels"], r["rounds"]) == (total, n)] for n in ROUNDS}
        one, three = (np.array([r["golds"][-1] - r["sft"] for r in own[n]]) for n in ROUNDS)
        row = {"labels": total, "one": float(one.mean()), "three": float(three.mean())}
        row |= {"difference": float((three - one).mean()), "ci": bootstrap_interval(three - one) or [np.nan, np.nan]}
        row |= {f"kl_{n}": float(np.mean([r["kl"] for r in own[n]])) for n in ROUNDS}
        rows.append({**row, "apart": np.mean([r["apart"] for r in own[3]], axis=0).tolist()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--labels", type=int, nargs="+", default=TOTALS)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(asked.seeds):
        for total in asked.labels:
            for rounds in ROUNDS:
                runs.append(last_policy(seed, total, rounds, asked.kl_coef, asked.updates))
                print(runs[-1], flush=True)
        if asked.json:  # what there is so far
            found = {**vars(asked), "json": None, "table": table(runs), "runs": runs, "versions": versions()}
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
    for row in table(runs):
        print(row)


if __name__ == "__main__":
    main()
