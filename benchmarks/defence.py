"""Which defence keeps PPO from being paid for a hack? Gold and proxy over the KL, by defence, hack and seed.

    OMP_NUM_THREADS=1 python benchmarks/defence.py --json defence.json --picture docs/images/defence.svg

The task, its three planted hacks, reward models and PPO are letters.py's. Four reward models learn the same labelled
pairs of the SFT model's replies, from one start and in orders of their own; PPO then runs for longer than is good. The
defences, each without and with the KL penalty: none; PAR, σ(r − r of the SFT model's reply); of the four members the
mean, the least, mean − std, the pessimistic mean, or one with the mean of their weights (WARM); a constraint that holds
what the hack counts where the SFT model has it, which only those can set who know the hack. Beside each what PPO's own
looks and watch would have kept of the run, with gold as the held-out score and without one. Fits are those of Gao
et al. 2022 (arXiv:2210.10760), d = √KL: gain of gold d·(α − β·d), and d·(α − β·ln d).
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from letters import HACKS, Policy, Reader, Replies, counted, gold, labelled, learn, train_reader
from plaudit.algo.ensembles import aggregate
from plaudit.algo.names import Aggregation
from plaudit.algo.rewards import Multiplier, move_multiplier, normalise, sigmoid_centred
from plaudit.algo.statistics import bootstrap_interval
from plaudit.guard.gaming import gain_se
from plaudit.guard.limits import WatchConfig
from plaudit.guard.monitors import distinct_bigrams, repeated_trigrams
from plaudit.guard.watch import verdict
from plaudit.run.provenance import versions
from plaudit.stages.ppo.looks import Keeper
from plaudit.train.saving import State
from plaudit.view.plots import STYLE

RULES: dict[str, Aggregation] = {
    "mean": "mean",
    "min": "min",
    "mean - std": "mean_minus_std",
    "pessimistic": "pessimistic",
}
DEFENCES = ("none", "PAR", *RULES, "WARM", "constraint")
MEMBERS, PAIRS, UPDATES, EVERY, LOOKED_AT = 4, 400, 60, 4, 256
KL_COEF = 0.05
"""ppo.kl_coef's default."""


@dataclass
class Payer:
    """What pays, by one defence: scores of replies in std of SFT replies."""

    defence: str
    hack: str
    readers: list[Reader]
    mean_M: Tensor
    std_M: Tensor
    reference: Tensor
    multiplier: Multiplier

    @torch.no_grad()
    def proxy(self, replies: Replies) -> Tensor:
        """One score a reply, before what a defence makes of it."""
        raw_BM = torch.stack([reader(replies) for reader in self.readers], dim=1)
        return aggregate(normalise(raw_BM, self.mean_M, self.std_M).T, RULES.get(self.defence, "mean"))

    def __call__(self, replies: Replies) -> Tensor:
        scores_B = self.proxy(replies)
        if self.defence == "PAR":
            return sigmoid_centred(scores_B, self.reference.expand_as(scores_B))
        if self.defence == "constraint":
            held_B = -torch.tensor([counted(self.hack, said) for said in replies.texts])
            scores_B = scores_B + self.multiplier.value * (held_B - self.multiplier.bound) / self.multiplier.std
            self.multiplier = move_multiplier(self.multiplier, held_B.mean().item())
        return scores_B


def averaged(members: list[Reader]) -> Reader:
    """One reader with the mean of the weights of all, which share their start."""
    mean = Reader(0)
    weights = zip(*(member.state_dict().values() for member in members), strict=True)
    mean.load_state_dict(dict(zip(mean.state_dict(), (torch.stack(w).mean(dim=0) for w in weights), strict=True)))
    return mean.requires_grad_(False)


@torch.no_grad()
def payer(defence: str, hack: str, members: list[Reader], seed: int) -> Payer:
    """Normalised, centred and bounded by replies of the SFT model."""
    sft = Policy(seed).sample(LOOKED_AT, [seed, 5])
    readers = members if defence in RULES else [averaged(members)] if defence == "WARM" else members[:1]
    raw_BM = torch.stack([reader(sft) for reader in readers], dim=1)
    held = -np.array([counted(hack, said) for said in sft.texts])
    multiplier = Multiplier(bound=float(held.mean()), std=max(float(held.std()), 1e-6))
    found = Payer(defence, hack, readers, raw_BM.mean(0), raw_BM.std(0), torch.zeros(()), multiplier)
    # Prompts are all alike here, so the reference reply is as any: the mean of theirs.
    found.reference = found.proxy(sft).mean()
    return found


def run(defence: str, kl_coef: float, hack: str, seed: int, members: list[Reader]) -> dict[str, Any]:
    """PPO under one defence, longer than is good; a row a look."""
    started = time.perf_counter()
    policy, paying, looks = Policy(seed), payer(defence, hack, members, seed), list[dict[str, Any]]()

    @torch.no_grad()
    def look(update: int) -> None:
        if update % EVERY:
            return
        replies = policy.sample(LOOKED_AT, [seed, 9])
        (own_BT, entropy_BT), (reference_BT, _) = (policy.logprobs(replies, reference=on) for on in (False, True))
        ids = [row[mask].tolist() for row, mask in zip(replies.ids_BT, replies.mask_BT, strict=True)]
        looks.append(
            {
                "update": update,
                "scores": paying.proxy(replies).tolist(),
                "golds": [gold(hack, said) for said in replies.texts],
                "hack": float(np.mean([counted(hack, said) for said in replies.texts])),
                "kl": float((own_BT - reference_BT).sum() / LOOKED_AT),
                "length": float(replies.mask_BT.sum() / LOOKED_AT),
                "entropy": float(entropy_BT.sum() / replies.mask_BT.sum()),
                "repeated_trigrams": float(np.mean([repeated_trigrams(row) for row in ids])),
                "distinct_bigrams": distinct_bigrams(ids),
            }
        )

    learn(policy, paying, kl_coef, UPDATES, seed, look)
    told = {"defence": defence, "kl_coef": kl_coef, "hack": hack, "seed": seed}
    return {**told, "seconds": round(time.perf_counter() - started, 1), **judged(looks)}


def judged(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The looks without what is of single replies, as the watch reads them; the gold of the last and of the best."""
    first, rows = looks[0], list[dict[str, Any]]()
    for one in looks:
        row = {name: value for name, value in one.items() if name not in ("scores", "golds")}
        row |= {"score": float(np.mean(one["scores"])), "held_out_score": float(np.mean(one["golds"]))}
        if one is not first:
            row |= gain_se("score", one["scores"], first["scores"]) | gain_se("held_out", one["golds"], first["golds"])
        rows.append({**row, "gold": row["held_out_score"]})
    return {"looks": rows, "final": rows[-1]["gold"], "peak": max(row["gold"] for row in rows)}


def kept(looks: list[dict[str, Any]], *, blind: bool) -> tuple[float, bool]:
    """(gold of the policy that `ppo` keeps by its defaults, whether the watch stops the run), with gold as the held-out
    score or, `blind`, without any."""
    config, seen = WatchConfig(), list[dict[str, Any]]()
    keeper = Keeper(None, config.patience, None)
    for row in looks:
        seen.append({name: value for name, value in row.items() if not (blind and name.startswith("held_out"))})
        keeper.add(seen[-1], State())
        if verdict(seen, config) is not None:
            return float(keeper.kept(stopped=True)[0]["gold"]), True
    return float(keeper.kept(stopped=False)[0]["gold"]), False


def fits(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """(α, β, share of the variance that is explained) of both forms, over the looks after the first."""
    points = [
        (float(np.sqrt(max(look["kl"], 0.0))), look["gold"] - run["looks"][0]["gold"])
        for run in runs
        for look in run["looks"][1:]
    ]
    d, gain = np.array([point for point in points if point[0] > 0.05]).T
    found = {}
    for name, beside in (("d(a - b d)", d * d), ("d(a - b ln d)", d * np.log(d))):
        design = np.stack([d, -beside], axis=1)
        fitted, *_ = np.linalg.lstsq(design, gain, rcond=None)
        left = ((gain - design @ fitted) ** 2).sum() / ((gain - gain.mean()) ** 2).sum()
        found[name] = [*map(float, fitted), float(1 - left)]
    return found


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a defence, without and with the KL penalty, over hacks and seeds: gold at the end and at its peak, and the
    shares of the peak, a run at a time, of the end and of what would have been kept; all with 95 % intervals."""
    rows = []
    for defence, coef in dict.fromkeys((run["defence"], run["kl_coef"]) for run in runs):
        own = [run for run in runs if (run["defence"], run["kl_coef"]) == (defence, coef)]
        peaks = np.array([run["peak"] for run in own])
        row: dict[str, Any] = {"defence": defence, "kl_coef": coef, "runs": len(own), "peak": float(peaks.mean())}
        ends = {"final": [run["final"] for run in own]}
        for name, blind in (("kept", False), ("kept_blind", True)):
            found = [kept(run["looks"], blind=blind) for run in own]
            ends[name], row[f"{name}_stops"] = [one for one, _ in found], sum(stopped for _, stopped in found)
        for name, golds in ends.items():
            share = np.array(golds) / peaks
            row |= {name: float(np.mean(golds)), f"{name}_share": float(share.mean())}
            row[f"{name}_share_ci"] = bootstrap_interval(share) or [np.nan, np.nan]
        row |= {hack: float(np.mean([r["final"] / r["peak"] for r in own if r["hack"] == hack])) for hack in HACKS}
        rows.append({**row, "kl": float(np.mean([run["looks"][-1]["kl"] for run in own])), "fits": fits(own)})
    return rows


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """Gold and proxy over √KL, a line a defence (dashed: with the KL penalty): means over the seeds at each look."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6), layout="constrained")
        panels = figure.subplots(2, len(HACKS), sharex="col")
        for column, hack in enumerate(HACKS):
            for defence, coef in dict.fromkeys((run["defence"], run["kl_coef"]) for run in runs):
                own = [r["looks"] for r in runs if (r["defence"], r["kl_coef"], r["hack"]) == (defence, coef, hack)]
                d = np.sqrt(np.maximum([[look["kl"] for look in looks] for looks in own], 0)).mean(axis=0)
                for line, name in enumerate(("gold", "score")):
                    panels[line][column].plot(
                        d,
                        np.mean([[look[name] for look in looks] for looks in own], axis=0),
                        color=f"C{DEFENCES.index(defence)}",
                        linestyle="--" if coef else "-",
                        linewidth=1,
                        label=defence if not coef and column == line == 0 else None,
                    )
            panels[0][column].set(title=f"hack: {hack}", ylabel="" if column else "gold")
            panels[1][column].set(xlabel="√KL", ylabel="" if column else "proxy, std of SFT replies")
        figure.legend(loc="outside lower center", ncols=len(DEFENCES))
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--parts", type=Path, nargs="*", default=[], help="JSON files of other seeds, for one table")
    parser.add_argument("--defences", nargs="+", default=DEFENCES, choices=DEFENCES)
    parser.add_argument("--kl-coefs", type=float, nargs="+", default=[0.0, KL_COEF])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    started, parts = time.process_time(), [json.loads(path.read_text()) for path in asked.parts]
    runs = [run for part in parts for run in part["runs"]]
    for seed in asked.seeds:
        for number, hack in enumerate(HACKS):
            pairs = labelled(hack, Policy(seed), PAIRS, [seed, number])
            members = [train_reader(pairs, seed, order) for order in range(MEMBERS)]
            for defence in asked.defences:
                for coef in asked.kl_coefs:
                    runs.append(run(defence, coef, hack, seed, members))
                    print({name: value for name, value in runs[-1].items() if name != "looks"}, flush=True)
    rows = table(runs)
    for row in rows:
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    seconds = round(time.process_time() - started + sum(part["seconds_of_a_core"] for part in parts))
    print(f"{seconds} s of a core")
    if asked.json:
        found = {"seconds_of_a_core": seconds, "table": rows, "runs": runs, "versions": versions()}
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    if asked.picture:
        picture(runs, asked.picture)


if __name__ == "__main__":
    main()
