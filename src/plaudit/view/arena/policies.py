"""The policies that a run has left, by the name that people see once they have chosen: no model is loaded."""

from pathlib import Path

from plaudit.run.branch import rounds_of
from plaudit.run.folder import BEFORE

MODELS = {"sft": "SFT", "ppo": "PPO", "rejection": "Rejection sampling", "dpo": "DPO"}


def policies_of(folder: Path) -> dict[str, Path]:
    """Name -> checkpoint, in the order in which they were trained: of every round, and of stages that run again those
    of before. SFT is the run's own, all rounds stand on it."""
    found: dict[str, Path] = {}
    for number, own in enumerate(rounds_of(folder), start=1):
        for stage, name in MODELS.items():
            if number > 1 and stage == "sft":
                continue
            called = name if number == 1 else f"{name}, round {number}"
            places = {f"{called}, before": own / BEFORE / stage / "model", called: own / stage / "model"}
            found |= {title: path for title, path in places.items() if (path / "config.json").is_file()}
    return found
