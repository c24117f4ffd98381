"""Tables in Arrow's formats go in (Parquet, Arrow files, folders that `datasets` saved); numbered rows come out.

Columns that are null or NaN are left out, which is how tables write absent, and so are null keys of objects in lists.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from deft.data.bounds import MAX_ROW_BYTES, Growth, too_long
from deft.errors import UserError

BATCH_ROWS = 32
"""Few, so that even a file made to fill the memory is noticed early."""

NumberedRow = tuple[int, Any]


def parquet_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file.

    Raises:
        UserError: if the file is broken, or holds far more than its size allows.
    """
    import pyarrow.parquet as pq

    growth = Growth(path, path.stat().st_size)
    with explained(growth, "Parquet"), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        growth.check(sum(group.total_byte_size for group in groups))
        growth.check(sum(group.column(n).num_values for group in groups for n in range(group.num_columns)))
        yield from rows_of(file.iter_batches(batch_size=BATCH_ROWS), growth)


def arrow_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of an Arrow file, in the format of streams or of files.

    Raises:
        UserError: if the file is broken.
    """
    growth = Growth(path, path.stat().st_size)
    with explained(growth, "Arrow"):
        yield from rows_of(pieces(opened_arrow(path)), growth)


def saved_rows(folder: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a folder that `save_to_disk` of `datasets` wrote, numbered as `dataset[0]`, … but from 1.

    Raises:
        UserError: if a file that `state.json` names is missing or broken.
    """
    import pyarrow as pa

    state = saved_state(folder)
    data = named_files(folder, state, "_data_files")
    indices = named_files(folder, state, "_indices_data_files")  # older versions wrote which rows are meant
    growth = Growth(folder, sum(path.stat().st_size for path in data))
    with explained(growth, "Arrow"):
        table = pa.concat_tables([opened_arrow(path) for path in data]) if data else pa.table({})
        if indices:
            order = pa.concat_tables([opened_arrow(path) for path in indices]).column(0)
            batches = (table.take(order.slice(start, BATCH_ROWS)) for start in range(0, len(order), BATCH_ROWS))
            yield from rows_of(batches, growth)
        else:
            yield from rows_of(pieces(table), growth)


def saved_state(folder: Path) -> dict[str, Any]:
    """Return what `state.json` says of a saved data set.

    Raises:
        UserError: if it is damaged.
    """
    file = folder / "state.json"
    fix = "save the data set again with save_to_disk"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("the saved data set is damaged", got=str(error), where=str(file), fix=fix) from error
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise UserError("the saved data set names no files", where=str(file), fix=fix)
    return state


def named_files(folder: Path, state: dict[str, Any], key: str) -> list[Path]:
    """Return the files that the state names under `key`, in their order.

    Raises:
        UserError: if one is named otherwise than by a name in the folder, or is missing.
    """
    files = []
    for entry in state.get(key) or ():
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            fix = "copy the whole folder again, or save it again with save_to_disk"
            raise UserError("a file of the saved data set is missing", got=name, where=f"{folder}/state.json", fix=fix)
        files.append(folder / name)
    return files


def opened_arrow(path: Path) -> Any:
    """Return the table of an Arrow file; its bytes stay on the disk until they are used."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()


def pieces(table: Any) -> Iterator[Any]:
    """Yield a table a few rows at a time."""
    return (table.slice(start, BATCH_ROWS) for start in range(0, table.num_rows, BATCH_ROWS))


@contextmanager
def explained(growth: Growth, kind: str) -> Iterator[None]:
    """Tell what Arrow says of a broken file as an error of the user's."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's fault, not the file's
        where = f"{growth.path}:{growth.num_rows + 1}"
        raise UserError(f"cannot read the {kind} file", got=str(error), where=where, fix="write it again") from error


def rows_of(batches: Iterator[Any], growth: Growth) -> Iterator[NumberedRow]:
    """Yield the rows of batches with JSON values, numbered from 1."""
    import pyarrow as pa

    for batch in batches:
        batch.validate(full=True)  # a damaged file could lead anywhere in memory
        whole = batch
        for place, column in enumerate(batch.schema):
            if pa.types.is_dictionary(column.type):  # its size says nothing until it is written out
                whole = whole.set_column(place, column.name, whole.column(place).cast(column.type.value_type))
        growth.add(whole.nbytes)
        for record in whole.to_pylist():
            growth.num_rows += 1
            yield growth.num_rows, table_row(record)


def table_row(record: dict[str, Any]) -> Any:
    """Return a table's row with JSON values, with a `UserError` in the place of one that has none."""
    row: dict[str, Any] = {}
    for column, value in record.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, str) and len(value) > MAX_ROW_BYTES:
            return too_long(f"cell of column `{column}`")
        try:
            row[column] = without_nulls(json_value(value)) if isinstance(value, list) else json_value(value)
        except TypeError as error:  # only if the column counts, which is known later
            fix = f"leave the column out of the file, or make it text, or --ignore-fields {column}"
            row[column] = UserError(f"column `{column}` holds {error}, which JSON cannot", fix=fix)
    return row


def without_nulls(value: Any) -> Any:
    """Return a list of objects without the keys that the table filled up because objects of other rows have them."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def json_value(value: Any) -> Any:
    """Return a value of a table as JSON has it: dates, times and decimals become text.

    Raises:
        TypeError: for anything else that JSON lacks, such as bytes.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    raise TypeError(type(value).__name__)
