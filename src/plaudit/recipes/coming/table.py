"""What the settings of other trainers are called here: the tables in trl.yaml and others.yaml."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Entry:
    """A field of another trainer: our `key`, or None and the reason; `how` says what is converted or to be known."""

    key: str | None
    how: str = ""


@cache
def tables(name: str) -> dict[str, dict[str, Entry]]:
    """Of "trl" or "others": {class or trainer: {field: entry}}, in the order of the file."""
    text = files("plaudit.recipes.coming").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return {part: dict(_entries(rows)) for part, rows in yaml.safe_load(text).items()}


def _entries(rows: dict[str, Any]) -> list[tuple[str, Entry]]:
    none = rows.pop("none", {})
    found = [(field, Entry(row) if isinstance(row, str) else Entry(**row)) for field, row in rows.items()]
    return found + [(field, Entry(None, why)) for why, fields in none.items() for field in fields]
