"""Commands that look at runs and models: chat, export, reward-report, doctor, inspect, lesson, worked-example."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from plaudit.cli.data import FormatOption
from plaudit.run.display import Step, console, error_console, print_json, progress

commands = typer.Typer()

DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, or auto: as saved, or as the machine has it.")]


@commands.command()
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
        text = console.input("you> ").strip()
    except EOFError:
        return ""
    # Half a surrogate pair, as a terminal may paste it, is no text: no tokenizer takes it.
    return text.encode(errors="replace").decode()


@commands.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to create.")],
    role: Annotated[str, typer.Option(help="policy or reward.")] = "policy",
) -> None:
    """Copy the merged policy (or reward model) of a run as a plain Hugging Face checkpoint."""
    from plaudit.stages.export import export_role

    console.print(f"Wrote {export_role(folder, role, to)}", soft_wrap=True)


@commands.command("reward-report")
def reward_report(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, reward model's folder, or Hub id of a classifier.")
    ],
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rankings or preferences: a file, folder or hub:...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the card as a page, with plots and texts to read.")] = None,
    format: FormatOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """The report card of any reward model on any file of rankings: how good, resting on what, what is suspicious."""
    from plaudit.data.files import write_text
    from plaudit.view.card.reward_report import reward_report as report
    from plaudit.view.card.table import print_card

    def bar(total: int) -> AbstractContextManager[Step]:
        return progress("Scoring", total, "reply", error_console)

    def say(line: str) -> None:
        error_console.print(line, soft_wrap=True)

    card = report(model, source, format=format, dtype=dtype, progress=bar, say=say)
    if html is not None:
        from plaudit.view.card.plots import card_page

        write_text(html, card_page(card))
    if as_json:
        print_json(card)
        return
    print_card(card)
    if html is not None:
        console.print(f"Page: {html}", soft_wrap=True)


@commands.command()
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
        print_json(report)
    else:
        print_examination(report)
    if found.faults:
        raise typer.Exit(1)


@commands.command()
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
        from plaudit.view.inspect.whole import as_json
        from plaudit.view.studio.alone import reply_page

        write_text(html, reply_page(as_json(folder, found)))
        console.print(f"Page: {html}", soft_wrap=True)


@commands.command()
def lesson(
    run: Annotated[
        Path | None, typer.Option("--run", help="Take its replies; left out, those that are shipped.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="File to write.")] = Path("lesson.html"),
) -> None:
    """The lesson: PPO with sliders, as one page that needs no network."""
    from plaudit.data.files import write_text
    from plaudit.view.lesson.write import lesson_page

    write_text(to, lesson_page(run))
    console.print(f"Page: {to}", soft_wrap=True)


@commands.command("worked-example")
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
