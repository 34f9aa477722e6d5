"""Workbooks: .xlsx through openpyxl, where it is installed; every other kind is refused with what to click."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any

from plaudit.data.formats.columns import Columns
from plaudit.data.formats.rows import Row
from plaudit.data.formats.table_rows import Line, cut_by_excel, table_rows
from plaudit.errors import UserError

SHEETS = (".xls", ".xlsb", ".ods", ".numbers", ".docx", ".doc", ".pdf")
_CLICK = "open it and choose File, Save as (or Download), CSV UTF-8; then give that .csv file"


def refuse_sheet(path: Path) -> None:
    raise UserError(f"{path}: a {path.suffix.lower()} file cannot be read; {_CLICK}")


def excel_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of the one sheet that is shown and has a header: then an example a row. Cells are texts, as in CSV."""
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.escape import unescape
    except ImportError as error:
        raise UserError(
            f"{path}: an Excel workbook needs openpyxl, which is not installed: pip install 'plaudit[excel]', or "
            f"{_CLICK}"
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        for sheet in sheets:
            sheet.reset_dimensions()  # some programs write a size that is too small, and what lies beyond it were lost
    # openpyxl raises what zipfile, its XML reader and itself raise, of a dozen classes: all mean a damaged workbook.
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as an Excel workbook: {' '.join(str(error).split())}; {_CLICK}"
        ) from error
    sheets = [sheet for sheet in sheets if any(any(line) for line in sheet.iter_rows(max_row=1, values_only=True))]
    if not sheets:
        raise UserError(f"{path}: no sheet of the workbook has a header in its first row; delete what stands above it")
    if len(sheets) != 1:
        names = "".join(f", {sheet.title!r}" for sheet in sheets)
        raise UserError(
            f"{path}: the workbook has {len(sheets)} sheets with a header{names}; save the one you mean as CSV UTF-8"
        )
    columns.said.append(f"Excel workbook, sheet {sheets[0].title!r}")
    yield from table_rows(path, _lines_of(path, sheets[0], unescape), columns)


def _lines_of(path: Path, sheet: Any, unescape: Callable[[str], str]) -> Iterator[Line]:
    """Lines as wide as the first one, or wider: a row of the file ends with its last cell that was ever touched."""
    width = 0
    for at, line in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_text(cell, unescape) for cell in line]
        width = width or len(cells)
        cells += [""] * (width - len(cells))
        problem = cut_by_excel(f"{path}:{at}", cells)
        cells = [cell.replace("\r\n", "\n") for cell in cells]
        yield f"{path}:{at}", cells, json.dumps(cells).encode(), problem


def _text(cell: Any, unescape: Callable[[str], str]) -> str:
    """A cell as Excel would write it into a CSV: 3 and not 3.0, a day and not its midnight, a line end and not the
    `_x000D_` that stands for a part of it in the file."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return unescape(cell)
    if isinstance(cell, datetime) and cell.time() == time():
        return str(cell.date())
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
