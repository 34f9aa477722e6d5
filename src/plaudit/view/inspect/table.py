"""One reply token by token, in the terminal: good is green, bad is red, and what the clip cut is marked."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.run.display import console
from plaudit.view.inspect.tokens import Inspection
from plaudit.view.page import words
from plaudit.view.text import number


def print_inspection(found: Inspection, to: Console = console) -> None:
    """The numbers behind the page, as far as a terminal is wide enough."""
    update = f"update {found.update} (of {found.updates[0]} to {found.updates[1]})"
    to.print(f"{found.run}: {update}, reply {found.sample} of {found.samples}", style="bold", soft_wrap=True)
    to.print(words("terminal/inspect.txt.j2", "above", found), soft_wrap=True)
    if not found.has_new:
        before = "this is how the update looked before its first step"
        said = f"The log-probabilities after the update's steps are not stored, so r is 1: {before}."
        to.print(said, soft_wrap=True, style="yellow")
    to.print(_table(found))
    to.print(words("terminal/inspect.txt.j2", "below", found), soft_wrap=True)


def _table(found: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("token", overflow="fold")
    for name in ("log π_old", "log π", "r", "KL", "R", "V", "Â", "L_CLIP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("side", no_wrap=True)
    for row in found.rows:
        good = "green" if row.advantage > 0 else "red" if row.advantage < 0 else ""
        where = f"{row.side}, cut" if row.cut else row.side
        marked = "bold magenta" if row.cut else "" if row.side == "inside" else "magenta"
        logprobs = (_number(row.old_logprob), _number(row.new_logprob), _number(row.ratio, 3))
        rewards = (_number(row.kl), _number(row.reward), _number(row.value), Text(_number(row.advantage), style=good))
        cells = (*logprobs, *rewards, _number(row.l_clip, 3), Text(where, style=marked))
        table.add_row(str(row.number), Text(row.text, style=good), *cells)
    return table


def _number(value: float | None, digits: int = 2) -> str:
    """With the minus of a keyboard; nothing for None."""
    return "" if value is None else number(value, digits).replace("−", "-")
