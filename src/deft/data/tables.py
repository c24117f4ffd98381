"""A table as text (CSV, TSV and their kin) goes in; its rows come out, every cell a text, each with its line.

Encoding, separator and quoting are found from the content. The first record names the columns.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deft.data.bounds import MAX_ROW_BYTES, too_long
from deft.data.encodings import table_encoding
from deft.errors import UserError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SAMPLE_CHARACTERS = 1 << 18
EXCEL_HINT = re.compile(r"sep=(.)\r?\n")
"""The first line with which some programs tell Excel the separator."""
NAME = re.compile(r"\w[\w .()/:（）-]{0,60}")

NumberedRow = tuple[int, Any]


class Dialect(csv.excel):
    """How the table is written."""

    strict = True


def table_rows(path: Path, opened: Callable[[], Any], remark: Callable[[str], None]) -> Iterator[NumberedRow]:
    """Yield `(line, row)` of every record but the first; a record with too many or too few cells is a `UserError`.

    Raises:
        UserError: if the encoding cannot be found, the columns have no clear names, or a quote is never closed.
    """
    encoding = table_encoding(path)
    if encoding == "gb18030":
        remark("GB18030")
    with opened() as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
        sample = text.read(SAMPLE_CHARACTERS)
    dialect = find_dialect(sample, path)
    with opened() as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
        csv.field_size_limit(MAX_ROW_BYTES)
        lines = text_lines(path, text)
        num_skipped = len(list(itertools.islice(lines, 1))) if EXCEL_HINT.match(sample) else 0
        header: Sequence[str] | None = None
        for line, cells in numbered_records(path, csv.reader(lines, dialect), num_skipped):
            if header is None:
                header = column_names(cells, f"{path}:{line}")
            else:
                yield line, record_row(header, cells)


def text_lines(path: Path, text: io.TextIOBase) -> Iterator[str]:
    """Yield the lines of a text with their ends.

    Raises:
        UserError: if one is too long.
    """
    number = 0
    while line := text.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise too_long("line").at(f"{path}:{number}")
        yield line


def numbered_records(path: Path, reader: Any, num_skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that hold anything, each with the line on which it begins.

    Raises:
        UserError: where the quotes go wrong, because nothing shows where the next record begins.
    """
    while True:
        line = reader.line_num + num_skipped + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what, fix = "the quoting of the table is broken", 'a quote inside a quoted cell is written twice: ""'
            if "end of data" in str(error):
                what, fix = "a quote that opens in this record is never closed", f"close it; {fix}"
            raise UserError(what, got=str(error), where=f"{path}:{line}", fix=fix) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def find_dialect(sample: str, path: Path) -> type[csv.Dialect]:
    """Find the separator and the quoting of a table from its beginning.

    The separator is the one that gives the most records as many cells as the first has; a name ending in `.tsv` puts
    tabs first. Quotes are plain characters where only so all records have as many cells as the first.
    """
    if hint := EXCEL_HINT.match(sample):
        return made_dialect(hint[1])
    is_cut = len(sample) == SAMPLE_CHARACTERS
    whole = sample[: sample.rfind("\n") + 1] if is_cut else sample
    order = sorted(SEPARATORS, key=lambda one: one != "\t") if ".tsv" in path.name.lower() else SEPARATORS
    scores = {separator: agreement(whole, made_dialect(separator), is_cut) for separator in order}
    best = max(scores, key=lambda one: scores[one])
    plain = made_dialect(best, quoting=csv.QUOTE_NONE)
    if best == "\t" and scores[best][0] < 1 and agreement(whole, plain, is_cut)[0] == 1:
        return plain
    first = whole.partition("\n")[0]
    is_spaced = 0 < first.count(best) == first.count(f"{best} ") and f'{best} "' in whole  # else quotes would be text
    return made_dialect(best, skipinitialspace=is_spaced)


def made_dialect(separator: str, **options: Any) -> type[csv.Dialect]:
    """Return the dialect with this separator."""
    return type("Found", (Dialect,), {"delimiter": separator, **options})


def agreement(sample: str, dialect: type[csv.Dialect], is_cut: bool) -> tuple[float, int]:
    """Return the share of the records that have as many cells as the first, if that is over one, and that number."""
    sizes, num_broken = [], 0
    try:
        for cells in csv.reader(io.StringIO(sample, newline=""), dialect):
            sizes += [len(cells)] if any(cells) else []
    except csv.Error as error:
        num_broken = 0 if is_cut and "end of data" in str(error) else 1
    if not sizes or sizes[0] < 2:
        return 0.0, 0
    return sizes.count(sizes[0]) / (len(sizes) + num_broken), sizes[0]


def looks_like_table(head: str) -> bool:
    """Say whether a text begins with a record of at least two column names that a separator keeps apart."""
    first = EXCEL_HINT.sub("", head.lstrip("\ufeff\r\n"), count=1).split("\n", 1)[0].rstrip("\r")
    for separator in SEPARATORS:
        try:
            cells = next(csv.reader([first], made_dialect(separator)), [])
        except csv.Error:
            continue
        named = [cell.strip() for cell in cells if cell.strip()]
        if len(named) >= 2 and all(NAME.fullmatch(cell) for cell in named):
            return True
    return False


def without_end(cells: Sequence[str]) -> list[str]:
    """Return names of columns, those without a name at the end left out."""
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    return names


def column_names(cells: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns, "" for one without.

    Raises:
        UserError: if a name occurs twice, so that nothing says which column is meant.
    """
    names = without_end(cells)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        fix = "give each column a name of its own"
        raise UserError("two columns have the same name", got=", ".join(twice), where=where, fix=fix)
    return names


def record_row(names: Sequence[str], cells: Sequence[str]) -> Any:
    """Return the row of a record, or the `UserError` that says what is wrong with its cells.

    A column without a name may only number the rows, as pandas does it.
    """
    given = list(cells)
    while len(given) > len(names) and not given[-1].strip():
        given.pop()
    if len(given) != len(names):
        fix = (
            "put cells that hold separators or line ends in quotes, write empty cells out, and no title above the names"
        )
        return UserError(f"the record has {len(given)} cells, and the table {len(names)} columns", got=cells, fix=fix)
    row = {}
    for place, (name, cell) in enumerate(zip(names, given, strict=True), start=1):
        if len(cell) > MAX_ROW_BYTES:
            return too_long(f"cell of column `{name}`")
        if name:
            row[name] = cell
        elif cell.strip() and not cell.strip().isdigit():
            return UserError(f"column {place} has text and no name", got=cell, fix="name it in the first record")
    return row
