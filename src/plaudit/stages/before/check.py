"""`plaudit check`: everything short of training, and all that is wrong at once.

Files, splits, chat template, rewards, folder and model are looked at by the very checks that a run begins with; then
lengths, time and memory are told. Nothing is written.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from plaudit.data.examples import Encoder
from plaudit.data.formats.rows import SPLITS, Row
from plaudit.dist.machine import memory_mb
from plaudit.dist.ranks import ALONE
from plaudit.errors import Mistakes, UserError
from plaudit.run.display import console
from plaudit.run.folder import finished_stages
from plaudit.stages.before.estimate import measure, seconds_of, spoken
from plaudit.stages.lengths import Lengths, cut_short, lengths_of, spaced
from plaudit.stages.plan import NOTHING_ASKED, plan_of
from plaudit.stages.prepare import Looked, look
from plaudit.stages.recipe import Recipe
from plaudit.stages.run_data import RunData, read_data

SHOWN = 5
"""Bad rows of a file that are shown one by one."""
MOST = 20_000
"""Demonstrations whose length is held against sft.max_length."""


def check(recipe: Recipe, *, estimate: bool = True) -> list[str]:
    """Look at everything, print what was found; returns what is wrong, in the order of a run."""
    mistakes = Mistakes(gather=True)
    data = read_data(recipe, mistakes)
    if recipe.data.on_bad_row == "stop":
        mistakes.found += _bad_rows(data.bad)
    elif data.bad:
        console.print(f"{len(data.bad)} bad rows will be set aside (data.on_bad_row)")
    plan = plan_of(recipe, set(), set(), NOTHING_ASKED)
    if (how := recipe.distributed.shard) != "none":
        console.print(
            f"distributed.shard={how}: a run of it needs several ranks (docs/distributed.md); here one process holds "
            "the base whole, and time and memory are its own",
            soft_wrap=True,
        )
    # What takes long is told before it begins: on a slow machine it is a minute without another word.
    console.print("Trying the model as the stages will")
    found = look(recipe, plan, ALONE, data, True, mistakes)
    if found is None:
        return mistakes.found
    with mistakes:
        _check_fit(recipe, found, data)
    with mistakes:
        lengths = lengths_of(found.chat, data)
        _print_rows(recipe, data, lengths)
        if said := cut_short(recipe, lengths):
            console.print(f"Warning: {said}", soft_wrap=True)
        if estimate and not mistakes.found:
            _print_estimate(recipe, found, data, lengths)
    if ended := finished_stages(recipe.run_folder):
        console.print(f"{recipe.run_folder} holds this run already: {', '.join(ended)} ended", soft_wrap=True)
    return mistakes.found


def _bad_rows(bad: Sequence[Row]) -> list[str]:
    """The problems of bad rows, file by file; one that stands in many rows is told once, with their number."""
    found: dict[str, list[str]] = {}
    counts = Counter(_said(row) for row in bad)
    for row in bad:
        of_file = found.setdefault(row.place.rpartition(":")[0], [])
        if counts[_said(row)] > 0 and len(of_file) < SHOWN:
            more = f" (and in {counts[_said(row)] - 1} more rows)" if counts[_said(row)] > 1 else ""
            of_file.append(f"{row.problem}{more}")
        counts[_said(row)] = 0
    totals = Counter(row.place.rpartition(":")[0] for row in bad)
    return [
        line
        for name, lines in found.items()
        for line in ([f"{name}: {totals[name]} bad rows, the first:", *lines] if totals[name] > len(lines) else lines)
    ]


def _said(row: Row) -> tuple[str, str]:
    """The file of a bad row, and its problem without its place."""
    return row.place.rpartition(":")[0], str(row.problem).removeprefix(f"{row.place}: ")


def _check_fit(recipe: Recipe, found: Looked, data: RunData) -> None:
    """UserError for a demonstration that SFT would refuse for its length."""
    if not recipe.sft.skip:
        encoder = Encoder(found.chat, recipe.sft.max_length, recipe.sft.too_long, recipe.sft.learn)
        for table in (data.demonstrations, *data.mixed.values()):
            for row in spaced(table, MOST):
                encoder.encode(row)
        if count := encoder.dropped + encoder.truncated:
            console.print(f"sft.too_long: {encoder.dropped} of {count} longer demonstrations dropped, the rest cut")


def _print_rows(recipe: Recipe, data: RunData, lengths: Lengths) -> None:
    table = Table(
        "rows", *SPLITS, "tokens: half", "95 %", "most", title="Rows", title_justify="left", title_style="bold"
    )
    replies: list[tuple[str, Counter[str], list[int]]] = [
        ("prompts", Counter(prompt.split for prompt in data.prompts), lengths.prompts),
        ("ideal replies", Counter(map(str, data.demonstrations.splits)), lengths.demonstrations),
        ("rankings (tokens: replies)", Counter(r.prompt.split for r in data.rankings or ()), lengths.ranked),
        ("labels (tokens: replies)", Counter(one.prompt.split for one in data.labels or ()), lengths.labelled),
    ]
    for name, splits, tokens in replies:
        if tokens:
            quantiles = (f"{np.quantile(tokens, q):.0f}" for q in (0.5, 0.95, 1.0))
            table.add_row(name, *(f"{splits[split]:,}" for split in SPLITS), *quantiles)
    console.print(table)


def _print_estimate(recipe: Recipe, found: Looked, data: RunData, lengths: Lengths) -> None:
    console.print("Timing a batch of it on this machine (--quick leaves this out)")
    speed = measure(found.model, recipe, found.machine, found.chat, data.prompts)
    seconds = seconds_of(recipe, data, lengths, speed)
    parts = ", ".join(f"{stage} {spoken(spent)}" for stage, spent in seconds.items())
    console.print(f"Time: about {spoken(sum(seconds.values()))} on this machine ({parts})", soft_wrap=True)
    if recipe.preferences.annotator == "human":
        console.print("The time that people take to rank is not in it.")
    memory, there = speed.peaks["peak_rss_mb"], memory_mb()
    gpu = f", {speed.peaks['peak_gpu_mb'] / 1000:.1f} GB of the GPU's" if "peak_gpu_mb" in speed.peaks else ""
    console.print(f"Memory: at least {memory / 1000:.1f} GB{gpu}; {found.need_mb / 1000:.1f} GB of disk")
    if memory > there:
        raise UserError(
            f"memory: the run needs at least {memory / 1000:.1f} GB, and there are {there / 1000:.1f} GB; take a "
            "smaller model"
        )
