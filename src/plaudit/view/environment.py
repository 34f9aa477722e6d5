"""What Plaudit runs on, as text to paste into an issue: versions, machine, extras; no path and no name is in it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from re import match

from plaudit.dist.machine import choose_machine, describe, has_bf16, memory_mb
from plaudit.label.extra import missing_packages
from plaudit.run.provenance import PACKAGES, versions


def environment_text() -> str:
    """A line a fact."""
    machine = choose_machine("auto")
    found = describe(machine)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    units = "has" if has_bf16(machine.device) else "has no"
    lines = [
        *(f"{name} {text}" for name, text in versions().items()),
        f"system {platform.system()} {platform.release()}, {platform.machine()}",
        f"device {found['device']} ({found['cpu']}), {cores} cores, {found['threads']} threads",
        f"memory {memory_mb() / 1000:.1f} GB",
        f"dtype auto is {machine.dtype_name}: the device {units} bfloat16 units",
        f"extra label: {'missing ' + ', '.join(missing_packages()) if missing_packages() else 'installed'}",
        f"extra excel: {'installed' if find_spec('openpyxl') else 'missing openpyxl'}",
        "other packages: " + ", ".join(_others()),
    ]
    return "\n".join(lines)


def _others() -> list[str]:
    """Of the packages that the core asks for, those that no result depends on, with their versions."""
    asked = (match(r"[\w.-]+", text) for text in requires("plaudit") or [] if "extra ==" not in text)
    said = []
    for name in (found[0] for found in asked if found and found[0] not in PACKAGES):
        try:
            said.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            said.append(f"{name} missing")
    return said
