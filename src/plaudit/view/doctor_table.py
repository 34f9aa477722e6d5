"""What `plaudit doctor` found, for a person: each finding with its evidence and the setting to change."""

from collections.abc import Mapping
from typing import Any

from plaudit.run.display import console
from plaudit.view.page import words


def print_examination(found: Mapping[str, Any]) -> None:
    """The examination of guard/doctor.py, as a mapping."""
    console.print(words("terminal/doctor.txt.j2", "looked", found), soft_wrap=True)
    for finding in found["findings"]:
        style = "bold red" if finding["level"] == "fault" else "bold yellow"
        console.print(f"\n{finding['level']}: {finding['name']}", style=style, soft_wrap=True)
        console.print(words("terminal/doctor.txt.j2", "finding", finding), soft_wrap=True)
    console.print(words("terminal/doctor.txt.j2", "result", found), soft_wrap=True)
