"""What a person sees while a stage works: one bar with a rate and an estimate, then one small table."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class _Console(Console):
    """rich's, but for a closed pipe: rich would end the process, and a run could not say how it goes on."""

    def on_broken_pipe(self) -> None:
        raise


# No markup: what is printed may hold brackets of a path, a prompt or a reply.
console = _Console(highlight=False, markup=False)
# For what must not stand between a command's own output, such as JSON on stdout.
error_console = _Console(stderr=True, highlight=False, markup=False)
_LINE_EVERY_S = 20.0


def print_json(value: object) -> None:
    """On standard output, for a program: what its encoding cannot hold stands there as JSON's own escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)


class Step(Protocol):
    """Advance the bar by `count`, showing `note` beside it."""

    def __call__(self, note: str = "", count: int = 1) -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str, to: Console | None = None) -> Iterator[Step]:
    """A progress bar over `total` units of work; on a pipe or in CI a line every 20 s instead."""
    to = console if to is None else to
    started = printed = time.monotonic()
    done = 0
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=to, transient=True, disable=not to.is_terminal) as bar:
        task = bar.add_task(label, total=total, note="", rate="")

        def step(note: str = "", count: int = 1) -> None:
            nonlocal done, printed
            done += count
            now = time.monotonic()
            per_second = done / max(now - started, 1e-9)
            rate = f"{per_second:.2g} {unit}/s"
            bar.update(task, advance=count, note=note, rate=rate)
            if not to.is_terminal and now - printed >= _LINE_EVERY_S:
                printed = now
                left = (total - done) / per_second if done else 0.0
                to.print(f"{label}: {done}/{total} {unit}, {rate}, {left:.0f} s left {note}".rstrip(), soft_wrap=True)

        yield step


def stage_table(title: str, rows: Mapping[str, object]) -> None:
    """The small table a stage ends with."""
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 1)
    )
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(readable(name), format_value(value))
    console.print(table)


_READ = {
    "sft": "SFT",
    "ppo": "PPO",
    "kl": "KL",
    "eos": "EOS rate",
    "nll": "NLL",
    "ece": "ECE",
    "ref": "reference",
    "eval": "held-out",
    "mb": "MB",
}


def readable(name: str) -> str:
    """A number's key as a person reads it: gold_gain_ci is the gold gain's 95 % interval."""
    whole = name.removesuffix("_ci")
    if "_" not in name and name not in _READ:
        return name
    said = " ".join(_READ.get(word, word) for word in whole.split("_"))
    return said if whole == name else f"{said}, 95 % interval"


def format_value(value: object) -> str:
    """Numbers as a person reads them: 3 decimals, intervals in brackets."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return str(value)
