"""The command line. A mistake of the user's is one line and exit code 2, a guard's stop one line and 3, Ctrl-C 130,
SIGTERM 143."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from plaudit.cli.label_transfer import commands as label_commands
from plaudit.errors import RankLost, RunStopped, UserError
from plaudit.run.display import console
from plaudit.run.stopping import Interrupted, signals_heard

app = typer.Typer(
    help="Classic RLHF: supervised fine-tuning, a reward model from rankings, and PPO, on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

data = typer.Typer(help="What is in data files, and what is wrong with it, line by line.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(label_commands, name="label")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, for example ppo.updates=10."),
]


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback for every error (anywhere on the line).")
    ] = False,
) -> None:
    # `main` takes --debug out of the line before typer sees it; it is declared here for --help.
    ...


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole pipeline on the embedded default (about twelve minutes on two cores)."""
    from plaudit.run.folder import free_folder
    from plaudit.stages.pipeline import run_pipeline
    from plaudit.stages.recipe import load_recipe

    with as_file(files("plaudit.recipes")) as home:
        recipe = load_recipe(home / "demo.yaml", overrides or ())
        if recipe.folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "folder: several processes share one run, and the demo would look for a free one: folder=PATH"
            )
        if recipe.folder is None:
            recipe = recipe.model_copy(update={"folder": free_folder(recipe.run_folder)})
        run_pipeline(recipe)


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and those after it again.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped, from the last checkpoint of that stage.")
    ] = False,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="With --resume: also with other code, versions or another machine.")
    ] = False,
) -> None:
    """Run a recipe: sft, preferences, reward, ppo, evaluate, report."""
    from plaudit.run.folder import STAGES
    from plaudit.stages.pipeline import run_pipeline
    from plaudit.stages.recipe import load_recipe

    if start is not None and start not in STAGES:
        raise UserError(f"--from {start!r}: not a stage; the stages are {', '.join(STAGES)}")
    if inexact and (start is not None or not resume):
        raise UserError("--inexact says how --resume goes on; it does nothing without that, or beside --from")
    stages = () if start is None else STAGES[STAGES.index(start) :]
    read = load_recipe(recipe, overrides or ())
    run_pipeline(read, resume=resume and start is None, stages=stages, inexact=inexact)


def _stage_command(name: str, text: str) -> None:
    def command(recipe: RecipePath, overrides: Overrides = None) -> None:
        from plaudit.stages.pipeline import run_pipeline
        from plaudit.stages.recipe import load_recipe

        run_pipeline(load_recipe(recipe, overrides or ()), stages=(name,))

    app.command(name, help=text)(command)


_stage_command("sft", "Stage 1: fine-tune the model on demonstrations.")
_stage_command("preferences", "Stage 2: sample replies from the SFT model and rank them.")
_stage_command("reward", "Stage 3: train the reward model on the rankings.")
_stage_command("ppo", "Stage 4: train the policy against the reward model.")
_stage_command("evaluate", "Stage 5: compare SFT and PPO on held-out prompts.")
_stage_command("report", "Stage 6: write summary.json and report.html.")


FormatOption = Annotated[str | None, typer.Option("--format", help="Format of the rows; left out, it is detected.")]


@data.command("check")
def data_check(
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders or hub:OWNER/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures lengths; else words.")] = None,
    format: FormatOption = None,
) -> None:
    """Count, measure and find what is wrong. Exit code 1 when there are errors, 0 with warnings or none."""
    from plaudit.data.audit.audit import Audit
    from plaudit.view.audit_table import print_report

    audit = Audit(_token_counter(tokenizer) if tokenizer else None)
    for source in sources:
        # On stderr, and only on a terminal: --json has stdout to itself.
        with Console(stderr=True, markup=False, highlight=False).status(f"Reading {source}") as status:
            audit.add(source, format, _follow(status, source))
    report = audit.report()
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_report(report)
    if report["errors"]:
        raise typer.Exit(1)


def _follow(status: Status, source: str) -> Callable[[int], None]:
    started = time.monotonic()

    def update(rows: int) -> None:
        rate = rows / max(time.monotonic() - started, 1e-9)
        status.update(f"Reading {source}: {rows:,} rows, {rate:,.0f} rows/s")

    return update


def _token_counter(model: str) -> Callable[[Sequence[str]], list[int]]:
    from plaudit.models.load import load_tokenizer, quiet_libraries, resolve

    quiet_libraries()
    tokenizer = load_tokenizer(resolve(model))
    return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


@data.command("convert")
def data_convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file, a folder or hub:OWNER/NAME.")],
    to: Annotated[Path, typer.Option("--to", help="JSONL file to write.")],
    format: FormatOption = None,
    on_bad_row: Annotated[str, typer.Option(help="stop, or quarantine: set bad rows aside.")] = "stop",
) -> None:
    """Write the rows as canonical JSON lines."""
    from plaudit.data.convert import convert

    if on_bad_row not in ("stop", "quarantine"):
        raise UserError(f"--on-bad-row {on_bad_row!r}: write stop or quarantine")
    done = convert(source, to, format=format, quarantine=on_bad_row == "quarantine")
    console.print(done.described, soft_wrap=True)
    aside = f", {done.quarantined:,} in {done.quarantine}" if done.quarantined else ""
    console.print(f"{done.rows:,} rows: {done.written:,} in {to}{aside}", soft_wrap=True)


@app.command()
def chat(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.", min=0.01)] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0)] = 0,
) -> None:
    """Talk to the SFT model and the PPO policy side by side; an empty line ends it."""
    from plaudit.view.chat import SideBySide

    both = SideBySide(folder, max_new_tokens, temperature, seed)
    console.print("Type a message; an empty line ends the chat. Each message is answered by itself.")
    while text := _ask():
        table = Table("SFT", "PPO", expand=True)
        table.add_row(*both.replies(text))
        console.print(table)


def _ask() -> str:
    try:
        return console.input("you> ").strip()
    except EOFError:
        return ""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to create.")],
    role: Annotated[str, typer.Option(help="policy or reward.")] = "policy",
) -> None:
    """Copy the merged policy (or reward model) of a run as a plain Hugging Face checkpoint."""
    from plaudit.view.export_role import export_role

    console.print(f"Wrote {export_role(folder, role, to)}", soft_wrap=True)


@app.command("reward-report")
def reward_report(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, reward model's folder, or Hub id of a classifier.")
    ],
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rankings or preferences: a file, folder or hub:...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the card as a page, with plots and texts to read.")] = None,
    format: FormatOption = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: as saved, or as the machine has it.")
    ] = "auto",
) -> None:
    """The report card of any reward model on any file of rankings: how good, resting on what, what is suspicious."""
    from plaudit.data.files import write_text
    from plaudit.run.display import error_console, progress
    from plaudit.view.card.reward_report import reward_report as report
    from plaudit.view.card.table import print_card

    card = report(
        model, source, format=format, dtype=dtype,
        progress=lambda total: progress("Scoring", total, "reply", error_console),
        say=lambda line: error_console.print(line, soft_wrap=True),
    )  # fmt: skip
    if html is not None:
        from plaudit.view.card.page import card_page

        write_text(html, card_page(card))
    if as_json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
        return
    print_card(card)
    if html is not None:
        console.print(f"Page: {html}", soft_wrap=True)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or going on.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """What is wrong with the training, and which setting to change. Exit code 1 for faults, 0 for symptoms or none."""
    from dataclasses import asdict

    from plaudit.guard.doctor import examine
    from plaudit.view.doctor_table import print_examination

    found = examine(folder)
    report = {**asdict(found), "faults": found.faults}
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_examination(report)
    if found.faults:
        raise typer.Exit(1)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with stored rollouts.")],
    step: Annotated[int | None, typer.Option(help="Update; left out, the last one.", min=1)] = None,
    sample: Annotated[int, typer.Option(help="Reply of that update, from 1.", min=1)] = 1,
    html: Annotated[Path | None, typer.Option(help="Write it as a page.")] = None,
) -> None:
    """One reply, token by token: log-probability, ratio, KL, value, reward, advantage, clipped or not."""
    from plaudit.data.files import write_text
    from plaudit.view.inspect.table import print_inspection
    from plaudit.view.inspect.tokens import inspect_run

    found = inspect_run(folder, step, sample)
    print_inspection(found)
    if html is not None:
        from plaudit.view.inspect.page import inspection_page

        write_text(html, inspection_page(found))
        console.print(f"Page: {html}", soft_wrap=True)


@app.command("worked-example")
def worked_example() -> None:
    """The design's worked example of one PPO step, computed by the library's own functions."""
    from plaudit.algo.worked import worked_example as compute

    numbers = compute()
    rows = (
        ("value V(s)", "given", numbers.value),
        ("reward R", "given, on the reply's last token", numbers.reward),
        ("discount γ", "given; unused, since no state follows", numbers.gamma),
        ("advantage Â", "R + γ·0 − V", numbers.advantage),
        ("ratio r", f"π/π_old = {numbers.probability:.2f}/{numbers.old_probability:.2f}", numbers.ratio),
        ("unclipped", "r·Â", numbers.unclipped),
        ("clipped", f"clip(r, 1−{numbers.clip_range:g}, 1+{numbers.clip_range:g})·Â", numbers.clipped),
        ("L_CLIP", "min(unclipped, clipped)", numbers.l_clip),
    )
    table = Table("quantity", "how", "number", title="One token of PPO, worked", title_justify="left")
    table.columns[2].justify = "right"
    for name, how, number in rows:
        table.add_row(name, how, f"{number:.4g}")
    console.print(table)


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    with signals_heard():
        try:
            app()
        except (UserError, RunStopped, RankLost, OSError, Interrupted) as error:
            if debug:
                raise
            code, text = _outcome(error)
            rank = os.environ.get("RANK", "0")  # of several processes of one run (docs/distributed.md)
            print(text if rank == "0" else f"Rank {rank}: {text}", file=sys.stderr)
            sys.exit(code)


def _outcome(error: BaseException) -> tuple[int, str]:
    go_on = "checkpoints and the stages that ended are kept; go on with `plaudit run FOLDER/recipe.yaml --resume`"
    if isinstance(error, Interrupted):
        return error.exit_code, f"Stopped: {error.saved}." if error.saved else f"Stopped. If a run was going, {go_on}."
    if isinstance(error, RankLost):
        return 4, f"Stopped: {error}"
    if isinstance(error, RunStopped):
        return 3, f"Stopped by a guard: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 2, f"Error: no space left on the disk ({error}); free some: {go_on}"
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG):
        return 2, f"Error: the disk cannot be written or read ({error}); {go_on}"
    return 2, f"Error: {error}"


if __name__ == "__main__":
    main()
