"""What `plaudit data check` found, as tables for a person: one column a file, then the problems with their fixes."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from plaudit.run.display import console
from plaudit.view.page import words


def print_report(report: Mapping[str, Any]) -> None:
    """The report of an `Audit`."""
    table = Table(title="Data", title_justify="left", title_style="bold")
    table.add_column("")
    columns = [_column(file) for file in report["files"]]
    names = list(dict.fromkeys(name for column in columns for name in column))
    for file in report["files"]:
        table.add_column(file["file"].rsplit("/", 1)[-1], justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(column.get(name, "") for column in columns))
    console.print(table)
    console.print(words("terminal/audit.txt.j2", "found", report), soft_wrap=True)


def _column(file: Mapping[str, Any]) -> dict[str, str]:
    """The cells of one file, by the name of their row."""
    cells = {
        "format": f"{file['format'] or 'unknown'} ({'detected' if file['detected'] else 'given'})",
        "holds": file["holds"] or "",
        "rows": f"{file['rows']:,}",
        "bad rows": f"{file['bad']:,}",
        **({"recognised": "; ".join(file["recognised"])} if file["recognised"] else {}),
        "ignored keys": ", ".join(f"{key} ({count:,})" for key, count in file["ignored_keys"].items()) or "none",
        "kinds": _counts(file["kinds"]),
        "splits": _counts(file["splits"]) or ("none named: a run divides the rows" if file["used"] else ""),
        "roles": _counts(file["roles"]),
    }
    for unit in ("tokens", "words", "characters"):
        # Tokens, where they were counted, stand for words.
        if unit in file and not (unit == "words" and "tokens" in file):
            for what, found in file[unit].items():
                quantiles = (f"{found[p]:,}" for p in ("p5", "p50", "p95", "p100"))
                cells[f"{what} {unit}, p5 p50 p95 max"] = " ".join(quantiles)
    if file.get("tokens_of_rows", file["used"]) < file["used"]:
        cells["tokens of a sample of"] = f"{file['tokens_of_rows']:,} rows"
    cells["exact duplicates"] = f"{file['duplicates']:,}"
    if "near_duplicates" in file:
        sampled = f" (sampled, {file['near_of_rows']:,} rows of all files)" if file["near_sampled"] else ""
        cells["near-duplicates"] = f"{file['near_duplicates']:,}{sampled}"
    if "longer_wins" in file:
        cells["strict pairs, ties"] = f"{file['strict_pairs']:,}, {file['tied_pairs']:,}"
        if file["longer_wins"] is not None:
            cells["longer reply wins"] = f"{file['longer_wins']:.3f} of strict pairs (characters)"
    if "liked" in file:
        cells["liked"] = f"{file['liked']:.3f} of the labels"
    if "annotators" in file:
        cells["annotators"] = _counts(file["annotators"])
    if "diversity" in file:
        found = file["diversity"]
        cells["distinct-1 -2 -3"] = " ".join(f"{found[f'distinct_{n}']:.2f}" for n in (1, 2, 3))
        cells["distinct openings"] = f"{found['distinct_openings']:.2f} of {found['replies']:,} replies"
    return cells


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")
