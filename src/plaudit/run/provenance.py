"""What a run was made with (versions, code, machine), and how two such records differ."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("plaudit", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def differences(old: Any, new: Any, key: str = "") -> dict[str, str]:
    """Dotted key -> "key: old -> new" of every place where two nested values differ; key[i] in lists of one length."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [(old.get(name), new.get(name), f"{key}.{name}" if key else name) for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [(*both, f"{key}[{place}]") for place, both in enumerate(zip(old, new, strict=True))]
    else:
        return {} if old == new else {key: f"{key}: {old!r} -> {new!r}"}
    return {name: text for parts in inner for name, text in differences(*parts).items()}


def is_among(key: str, names: Iterable[str]) -> bool:
    """Whether a key of `differences` is one of `names` or stands below one; a name says nothing of places in lists."""
    key = re.sub(r"\[\d+\]", "", key)
    return any(key == name or key.startswith(f"{name}.") for name in names)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


@cache
def code_sha256() -> str:
    """Hash of Plaudit's own source files: a version number says less while it is being worked on. Taken once: what is
    edited later is not what this process runs."""
    home = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        whole.update(f"{file.relative_to(home)}\0".encode() + file.read_bytes())
    return whole.hexdigest()


def environment() -> dict[str, Any]:
    """What the run ran on: versions, machine, command, git revision of the working directory where there is one."""
    git = None
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git.stdout.strip() if git and git.returncode == 0 else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
