"""A workbook (XLSX) goes in; the rows of its sheets come out, every cell a text, each with its row number.

Read are the first visible sheet that holds anything, and every other with the same columns. The rest is named.
"""

import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import Any

from deft.data.bounds import Growth
from deft.data.tables import column_names, record_row, without_end
from deft.errors import UserError

MOST_ROWS = 1_048_576
CHUNK_BYTES = 1 << 20
MERGED = re.compile(rb"""<(?:\w+:)?mergeCell\s+ref=["']([A-Z]+\d+:[A-Z]+\d+)["']""")
MERGED_BYTES = 80
"""More than one match may take."""
Range = tuple[int, int, int, int]
"""The first column, the first row, the last column and the last row, from 1."""
Leave = Callable[[str, str], None]
"""Told the name of something in a file that is not read, and why."""
DAMAGE = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, AttributeError, IndexError, EOFError)
MORE_DAMAGE = (SyntaxError, NotImplementedError, RuntimeError, AssertionError)
"""What openpyxl and the readers of ZIP and XML raise where a workbook is damaged or protected."""


def is_workbook(path: Path) -> bool:
    """Say whether a ZIP archive is an XLSX workbook."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return path.suffix.lower() == ".xlsx"  # a damaged one is told as such


def sheet_rows(path: Path, leave: Leave) -> Iterator[tuple[int | str, Any]]:
    """Yield `(place, row)`; the place is the number of the row, in further sheets `SHEET!NUMBER`.

    Raises:
        UserError: if the workbook is damaged, protected, or holds far more than its size allows.
    """
    with explained(path):
        import openpyxl

        with path.open("rb") as first, path.open("rb") as second:  # streams: by name, openpyxl looks at the suffix
            with zipfile.ZipFile(first) as archive:
                Growth(path, path.stat().st_size).check(sum(entry.file_size for entry in archive.infolist()))
            values = openpyxl.load_workbook(first, read_only=True, data_only=True)
            formulas = openpyxl.load_workbook(second, read_only=True)
            yield from book_rows(path, values, formulas, leave)


def book_rows(path: Path, values: Any, formulas: Any, leave: Leave) -> Iterator[tuple[int | str, Any]]:
    """Yield the rows of the sheets that are read; `values` and `formulas` are the same workbook opened twice."""
    names: Sequence[str] | None = None
    for sheet in values.worksheets:
        label = f"{path}, sheet {sheet.title}"
        if sheet.sheet_state != "visible":
            leave(label, "hidden")
            continue
        records = filled_records(sheet, formulas[sheet.title])
        number, header = next(records, (0, None))
        if header is None:
            continue
        is_first = names is None
        if names is None:
            if isinstance(header, UserError):
                raise header.at(f"{path}:{number}")
            names = column_names(header, f"{path}:{number}")
        elif isinstance(header, UserError) or without_end(header) != names:
            leave(label, "other columns than the first sheet")
            continue
        for number, cells in records:
            place = number if is_first else f"{sheet.title}!{number}"
            if not isinstance(cells, UserError):
                cells.extend([""] * (len(names) - len(cells)))  # a sheet stores no empty cells at the end
            yield place, cells if isinstance(cells, UserError) else record_row(names, cells)


def filled_records(values: Any, formulas: Any) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a sheet that hold anything, as texts, or as the `UserError` about one of the cells."""
    for sheet in (values, formulas):
        sheet.reset_dimensions()  # what the file says of its size may be wrong
    merged = merged_ranges(values)
    held: list[tuple[Range, str]] = []
    for number, (row, sources) in enumerate(zip(values.iter_rows(), formulas.iter_rows(), strict=True), start=1):
        if number > MOST_ROWS:
            raise UserError("the sheet has more rows than a sheet may have", fix="save it again as .xlsx or .csv")
        cells: list[str] = []
        fault = None
        for cell, source in zip(row, sources, strict=True):
            where = getattr(source, "coordinate", "")
            if cell.data_type == "e":
                fault = UserError(f"cell {where} holds an error", got=cell.value, fix="repair the formula in the sheet")
            elif cell.value is None and source.value is not None:
                fix = "open the workbook in a spreadsheet program, save it, and so store the results"
                fault = UserError(f"cell {where} holds a formula without a result", got=source.value, fix=fix)
            cells.append(cell_text(cell.value))
        held = [(area, text) for area, text in held if number <= area[3]]
        held += [(area, "".join(cells[area[0] - 1 : area[0]])) for area in merged.pop(number, ())]
        for (left, top, right, _), text in held:
            if text.strip() and min(right, len(cells)) > left - (number > top):
                fix = "split the merged cells in the sheet, and write the text into each"
                fault = fault or UserError(
                    "a cell is merged with others, and one alone holds its text", got=text, fix=fix
                )
        if not any(text.strip() for text in cells):
            continue
        if fault is not None:
            yield number, fault
        else:
            yield number, cells


def merged_ranges(sheet: Any) -> dict[int, list[Range]]:
    """Return the merged ranges of a sheet by their first row; openpyxl does not give them in read-only mode."""
    from openpyxl.utils import range_boundaries

    found: dict[int, list[Range]] = {}
    with sheet._get_source() as stream:
        before = b""
        while data := stream.read(CHUNK_BYTES):
            for reference in MERGED.findall(before + data):
                area = range_boundaries(reference.decode())
                if area not in found.setdefault(area[1], []):
                    found[area[1]].append(area)
            before = data[-MERGED_BYTES:]
    return found


def cell_text(value: Any) -> str:
    """Return the value of a cell as the sheet shows it: whole numbers without a point, days without a time of day."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, date | time):
        return value.isoformat().removesuffix("T00:00:00")
    return str(value)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell what goes wrong in a workbook as an error of the user's; warnings about its looks are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError as error:
            raise error.at(str(path)) from error
        except (*DAMAGE, *MORE_DAMAGE) as error:
            fix = "open it in a spreadsheet program and save it again, without a password, or as CSV"
            raise UserError("cannot read the workbook", got=str(error) or None, where=str(path), fix=fix) from error
