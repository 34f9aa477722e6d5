"""The doctor: what is wrong with a PPO run, finished or going on, from what it left. Which fault, on what evidence, and
which setting to change.

It reads ppo/metrics.jsonl, ppo/evaluations.jsonl, some of ppo/rollouts, the recipe and the manifest. Nothing is loaded
into a model and nothing is changed, so it may run beside the training. Limits are in limits.py, what is recomputed in
arithmetic.py; what needs the model is checked inside the run (invariants.py).

    plaudit doctor RUN
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.data.hashes import sha256
from plaudit.errors import UserError
from plaudit.guard import arithmetic
from plaudit.guard.arithmetic import Stored
from plaudit.guard.limits import Row
from plaudit.guard.symptoms import Finding, symptoms
from plaudit.rollout.stored import read_rollout, stored_rollouts
from plaudit.run.folder import finished_stages, read_recipe, stage_settings
from plaudit.run.metrics import read_metrics

ROLLOUTS = 12
"""Updates whose rollout is recomputed: the first, the last, and others evenly between."""
FROZEN = {
    "sft": ("reference changed", "the reference, which is the base of every role, is not the one that this run made"),
    "reward": ("reward model changed", "the reward model is not the one that this run trained"),
}


@dataclass(frozen=True)
class Examination:
    """What was looked at, and what was found: faults first, then symptoms."""

    updates: int
    evaluations: int
    rollouts: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> int:
        return sum(finding.level == "fault" for finding in self.findings)


def examine(folder: Path) -> Examination:
    """Look at the run in `folder`; UserError where there is no run, or one whose PPO stage has not logged anything."""
    recipe = read_recipe(folder)
    settings = {**stage_settings(recipe, "ppo"), "rounds": recipe.get("rounds", {})}
    metrics, evaluations = folder / "ppo/metrics.jsonl", folder / "ppo/evaluations.jsonl"
    rows = read_metrics(metrics) if metrics.is_file() else []
    if not rows:
        raise UserError(f"{metrics} is missing or empty: PPO has not finished an update here; there is nothing to see")
    looks = read_metrics(evaluations) if evaluations.is_file() else []
    files = stored_rollouts(folder)
    chosen = _spread(list(files), ROLLOUTS)
    by_update: dict[int, Row] = {int(row["update"]): row for row in rows}
    stored = [Stored(n, read_rollout(files[n]), settings, by_update.get(n, {})) for n in chosen]
    # A run that was stopped in an update has left its rollout and no row.
    by_update |= {one.update: {**arithmetic.measured(one), **one.row} for one in stored}
    logged = [by_update[update] for update in sorted(by_update)]
    found = [*_frozen_files(folder), *_recomputed(stored), *symptoms(logged, looks, settings)]
    findings = sorted(found, key=lambda finding: finding.level != "fault")
    return Examination(len(rows), len(looks), tuple(chosen), tuple(findings))


def latest(rows: Sequence[Row], ppo: Mapping[str, Any]) -> str | None:
    """One line for the progress display: the gravest symptom in the metrics so far, and what to change; None when
    there is none. `ppo` is the recipe's section, as a mapping."""
    found = symptoms(rows, (), ppo)
    return f"{found[0].name}: {found[0].change}" if found else None


def _spread(updates: Sequence[int], count: int) -> list[int]:
    if len(updates) <= count:
        return list(updates)
    return [updates[i * (len(updates) - 1) // (count - 1)] for i in range(count)]


def _recomputed(stored: Sequence[Stored]) -> list[Finding]:
    """The faults of all rollouts, each told once: where it was seen first."""
    found = [check(one) for one in stored for check in arithmetic.CHECKS]
    found += [arithmetic.lost_adapter(stored[0], one) for one in stored]
    found += [arithmetic.frozen_critic(stored[0], stored[-1])] if stored else []
    first: dict[str, Finding] = {}
    for finding in found:
        if finding is not None:
            first.setdefault(finding.name, finding)
    return list(first.values())


def _frozen_files(folder: Path) -> list[Finding]:
    """The files of the reference and of the reward model, against the hashes taken when their stages ended."""
    found, ended = [], finished_stages(folder)
    for stage, (name, says) in FROZEN.items():
        known = ended[stage]["files"] if stage in ended else {}
        changed = [file for file in known if not (folder / file).is_file() or sha256(folder / file) != known[file]]
        if changed:
            evidence = f"{len(changed)} files differ from their hash in manifest.json, the first is {changed[0]}"
            change = f"run stage {stage} again, and what follows it (--from {stage})"
            found.append(Finding(name, says, evidence, change, "fault"))
    return found
