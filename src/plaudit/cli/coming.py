"""`plaudit init --from-trl`: a recipe from another trainer's script or configuration."""

from pathlib import Path

from rich.table import Table

from plaudit.errors import UserError
from plaudit.run.display import console


def write_from_trl(files: list[Path], to: Path, stage: str | None) -> None:
    """Write the recipe of a TRL run to `to`, and print of every field what it became, or why nothing. `stage`: what
    fields configure that are plain, without their class."""
    from plaudit.data.files import write_text
    from plaudit.data.formats.rows import shown
    from plaudit.recipes.coming.trl import STAGES, from_trl
    from plaudit.stages.recipe import recipe_of

    if stage is not None and stage not in STAGES.values():
        raise UserError(f"--as {stage!r}: one of {', '.join(STAGES.values())}")
    if to.exists():
        raise UserError(f"--to {to}: the file is there already; choose another name")
    found = from_trl(files, stage)
    recipe_of(found.recipe, to.resolve().parent)
    write_text(to, found.text())
    table = Table("TRL", "value", "Plaudit", "", title=f"{', '.join(map(str, files))} -> {to}", title_justify="left")
    for name, value, key, how in found.rows:
        table.add_row(name, shown(value, 40), key or "none", how)
    console.print(table)
    console.print(f"Wrote {to}. Look at its model and its files of data, then: plaudit check {to}", soft_wrap=True)
