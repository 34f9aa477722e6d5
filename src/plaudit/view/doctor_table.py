"""What `plaudit doctor` found, for a person: each finding with its evidence and the setting to change."""

from collections.abc import Mapping
from typing import Any

from plaudit.run.display import console


def print_examination(found: Mapping[str, Any]) -> None:
    """The examination of guard/doctor.py, as a mapping."""
    rollouts = ", ".join(map(str, found["rollouts"])) or "none"
    console.print(
        f"Looked at {_count(found['updates'], 'update')}, {_count(found['evaluations'], 'evaluation')}, and did the "
        f"arithmetic again for the stored rollouts of updates {rollouts}.",
        soft_wrap=True,
    )
    for finding in found["findings"]:
        style = "bold red" if finding["level"] == "fault" else "bold yellow"
        console.print()
        console.print(f"{finding['level']}: {finding['name']}", style=style, soft_wrap=True)
        console.print(f"  {finding['says']}", soft_wrap=True)
        console.print(f"  Evidence: {finding['evidence']}", soft_wrap=True)
        console.print(f"  To change: {finding['change']}", soft_wrap=True)
    symptoms = len(found["findings"]) - found["faults"]
    if found["findings"]:
        console.print()
        console.print(f"{_count(found['faults'], 'fault')}, {_count(symptoms, 'symptom')}")
    else:
        console.print("Nothing is wrong that can be seen from here.")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
