"""Two finished runs beside each other: what their recipes say otherwise, their numbers, and the differences between
their policies' replies to the same test prompts, with intervals over prompts as the evaluation has them."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from plaudit.algo.statistics import bootstrap_interval
from plaudit.data.files import read_json
from plaudit.errors import UserError
from plaudit.run.display import console, format_value, readable
from plaudit.run.folder import SUMMARY, read_recipe
from plaudit.run.metrics import read_metrics
from plaudit.run.provenance import differences

NUMBERS = {
    "reward": ("pairs_train", "accuracy", "accuracy_ci", "length_baseline_accuracy"),
    "ppo": ("updates", "kept_update"),
    "evaluate": (
        *("gold_sft", "gold_ppo", "gold_gain", "gold_gain_ci", "win_rate", "win_rate_ci", "proxy_sft", "proxy_ppo"),
        *("kl", "length_sft", "length_ppo", "eos_ppo", "ref_nll_sft", "ref_nll_ppo", "declines_ppo"),
    ),
}
"""What is shown of every stage's summary, where it is there."""
MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "gold score of PPO": lambda row: row["ppo"]["gold"],
    "gold score gained over SFT": lambda row: (
        None if row["ppo"]["gold"] is None else row["ppo"]["gold"] - row["sft"]["gold"]
    ),
    "PPO's replies that end": lambda row: float(row["ppo"]["finished"]),
    "characters a PPO reply": lambda row: float(len(row["ppo"]["text"])),
}
"""Of one row of evaluate/replies.jsonl. The proxies are left out: each run is paid by a reward of its own."""


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Numbers of both, and `other` − `one` of every measure; UserError where one has not ended."""
    summaries = [_summary(folder) for folder in (one, other)]
    told = differences(read_recipe(one), read_recipe(other))
    changed = [text for key, text in told.items() if key not in ("name", "folder")]
    numbers = {
        f"{stage}: {readable(name)}": [summary.get(stage, {}).get(name) for summary in summaries]
        for stage, names in NUMBERS.items()
        for name in names
        if any(name in summary.get(stage, {}) for summary in summaries)
    }
    numbers["minutes"] = [sum(summary["seconds"].values()) / 60 for summary in summaries]
    return {"runs": [str(one), str(other)], "recipe": changed, "numbers": numbers, **paired(one, other)}


def _summary(folder: Path) -> dict[str, Any]:
    if not (folder / SUMMARY).is_file():
        read_recipe(folder)
        raise UserError(f"{folder}: the run has not ended ({SUMMARY} is missing); plaudit status {folder} says how far")
    found: dict[str, Any] = read_json(folder / SUMMARY)
    return found


def paired(one: Path, other: Path) -> dict[str, Any]:
    """The mean of each prompt's replies against that in the other run, over the prompts that both answered."""
    means = [_by_prompt(read_metrics(folder / "evaluate/replies.jsonl")) for folder in (one, other)]
    shared = [prompt for prompt in means[0] if prompt in means[1]]
    found = {}
    for name in MEASURES:
        pairs = [(means[0][prompt][name], means[1][prompt][name]) for prompt in shared]
        gaps = [b - a for a, b in pairs if a is not None and b is not None]
        if gaps and len(gaps) == len(pairs):
            found[name] = {"difference": float(np.mean(gaps)), "ci": bootstrap_interval(gaps)}
    return {"prompts": len(shared), "differences": found}


def _by_prompt(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[repr(row["prompt"])].append(row)
    found = {}
    for prompt, own in groups.items():
        values = {name: [measure(row) for row in own] for name, measure in MEASURES.items()}
        found[prompt] = {name: _mean(of_name) for name, of_name in values.items()}
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def print_comparison(found: Mapping[str, Any]) -> None:
    """As tables."""
    for text in found["recipe"]:
        console.print(f"recipe: {text}", soft_wrap=True)
    table = Table("", *found["runs"])
    for name, values in found["numbers"].items():
        table.add_row(name, *("" if value is None else format_value(value) for value in values))
    console.print(table)
    if not found["differences"]:
        console.print("No test prompt is in both, so nothing can be paired.")
        return
    title = f"The second minus the first, on {found['prompts']} test prompts of both"
    paired = Table("", "difference", "95 % interval", title=title, title_justify="left")
    for name, one in found["differences"].items():
        paired.add_row(name, format_value(one["difference"]), format_value(one["ci"]))
    console.print(paired)
