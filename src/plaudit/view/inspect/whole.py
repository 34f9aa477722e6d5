"""One reply token by token as JSON, with the sums of its update beside what the log says of it: what the microscope
shows, in the studio and on the page of `plaudit inspect`."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.algo.masked import masked_mean
from plaudit.algo.statistics import explained_variance
from plaudit.guard.arithmetic import BEHAVIOUR
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.run.metrics import read_metrics
from plaudit.view.inspect.tokens import Inspection, inspect_run
from plaudit.view.names import name_of


def whole_reply(folder: Path, update: int, sample: int) -> dict[str, Any]:
    """Reply `sample` (from 1) of an update as JSON; UserError where there is none."""
    return as_json(folder, inspect_run(folder, update, sample))


def as_json(folder: Path, inspected: Inspection) -> dict[str, Any]:
    """What was inspected, the number of the token to work by hand, and the sums."""
    log = folder / "ppo/metrics.jsonl"
    rows = read_metrics(log) if log.is_file() else []
    logged = next((row for row in rows if row["update"] == inspected.update), {})
    sums = sums_of(read_rollout(stored_rollouts(folder)[inspected.update]))
    return {
        **asdict(inspected),
        "telling": inspected.telling.number,
        "sums": {
            name: {"called": name_of(name), "here": here, "logged": logged.get(name)} for name, here in sums.items()
        },
    }


def sums_of(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """What the log says of an update, from its tokens: every one of these is a row's entry of the same name."""
    mask_BT = tensors["mask_BT"]
    # Of the policy that sampled: with `rollout.lag: 1` that is not the old one.
    behaviour_BT = tensors.get(BEHAVIOUR, tensors["old_logprobs_BT"])
    k1_BT = torch.where(mask_BT, behaviour_BT - tensors["ref_logprobs_BT"], 0.0)
    gap_BT = (tensors["sampler_logprobs_BT"] - behaviour_BT).abs()
    found = {
        "kl": k1_BT.sum(dim=1).mean().item(),
        "kl_per_token": masked_mean(k1_BT, mask_BT).item(),
        "entropy": masked_mean(tensors["old_entropy_BT"], mask_BT).item(),
        "length": mask_BT.sum(dim=1).float().mean().item(),
        "eos": tensors["finished_B"].float().mean().item(),
        "sampler_gap_mean": masked_mean(gap_BT, mask_BT).item(),
    }
    if "values_BT" in tensors and "returns_BT" in tensors:
        found["explained_variance"] = explained_variance(tensors["values_BT"][mask_BT], tensors["returns_BT"][mask_BT])
    return {name: value for name, value in found.items() if math.isfinite(value)}
