"""Labels as a spreadsheet: one label a row, as CSV that opens in a spreadsheet program and runs nothing there."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from plaudit.label.db.ledger import ItemRow, Label
from plaudit.label.kinds import said_by

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection")."""


def label_rows(
    labels: Sequence[Label], items: Mapping[str, ItemRow], names: Mapping[int, str | None]
) -> list[dict[str, Any]]:
    """A row a label. Of each reply, in the item's order, its source, text, rank and flags; times are UTC."""
    widest = max((len(items[label.item].replies) for label in labels), default=0)
    return [_row(label, items[label.item], names[label.person], widest) for label in labels]


def _row(label: Label, item: ItemRow, name: str | None, widest: int) -> dict[str, Any]:
    row = {
        "seq": label.seq,
        "time": datetime.fromtimestamp(label.created, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "person": name,
        "seconds": round(label.seconds, 1),
        "active_seconds": None if label.active is None else round(label.active, 1),
        "task": item.task,
        "purpose": label.purpose,
        "late": "yes" if label.late else "no",
        "corrected": "no" if label.supersedes is None else "yes",
        "verdict": said_by(label),
        "strength": label.strength,
        "reason": label.reason,
        "written": label.text,
        "item": item.number,
        "prompt_id": item.prompt_id,
        "kind": item.kind,
        "split": item.split,
        "file": item.source_file,
        "guidelines": label.guidelines,
        "prompt": "\n\n".join(f"{turn.role}: {turn.content}" for turn in item.messages),
    }
    for at in range(widest):
        reply = item.replies[at] if at < len(item.replies) else None
        row[f"source_{at + 1}"] = reply and reply.source
        row[f"reply_{at + 1}"] = reply and reply.text
        row[f"rank_{at + 1}"] = label.ranks[at] if reply and label.ranks else None
        row[f"flags_{at + 1}"] = "; ".join(label.flags[at]) if at < len(label.flags) else None
    return row


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a CSV file, with its header. A text that a spreadsheet would run as a formula begins with an
    apostrophe; the mark before the first line tells spreadsheets that it is UTF-8."""
    for at, cells in enumerate([list(rows[0]), *(list(row.values()) for row in rows)] if rows else []):
        line = io.StringIO()
        csv.writer(line).writerow([_harmless(cell) for cell in cells])
        yield ("" if at else "\ufeff") + line.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
