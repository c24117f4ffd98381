"""A file goes in; its rows come out as JSON values, each with its line (in Parquet: its row), counted from 1.

Whether a file is Parquet, one JSON array or JSON Lines is decided from its content. A row that cannot be read comes
out as the `UserError` that says why; what spoils the file as a whole is raised.
"""

import math
import re
import shlex
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO

from deft.data.files import cannot_read
from deft.errors import UserError

UTF8_MARK = b"\xef\xbb\xbf"
FOREIGN_STARTS = {
    b"\x1f\x8b": ("the file is compressed", "unpack it first: gunzip {file}"),
    b"\x28\xb5\x2f\xfd": ("the file is compressed", "unpack it first: unzstd {file}"),
    b"PK\x03\x04": ("the file is compressed", "unpack it first: unzip {file}"),
    b"version https://git-lfs": ("the file is a Git LFS pointer, not the data", "fetch the data: git lfs pull"),
}
WIDE_MARKS = {  # in this order: the first mark of UTF-32 begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
SPACE = re.compile(r"[ \t\r\n]*")
PARQUET_BATCH_ROWS = 1024
JSON_SHAPES = "a file is one JSON array of rows, or has one JSON row on each line"

RawRow = tuple[int, Any]


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Yield `(line, value)` of every row; `value` is a `UserError` where the row cannot be read.

    Raises:
        UserError: if the file cannot be read as a whole: rights, encoding, a broken array, a broken Parquet file.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
            stream.seek(0)
            for mark, (what, fix) in FOREIGN_STARTS.items():
                if start.startswith(mark):
                    raise UserError(what, where=str(path), fix=fix.format(file=shlex.quote(str(path))))
            wide = next((name for mark, name in WIDE_MARKS.items() if start.startswith(mark)), None)
            if wide or b"\0" in start[:4]:
                raise wrong_encoding(path, 1, wide or "UTF-16")
            yield from parquet_rows(path) if start.startswith(b"PAR1") else json_rows(path, stream)
    except OSError as error:
        raise cannot_read(path, error) from error


def json_rows(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """Yield the rows of an array, of one object written over many lines, or of JSON Lines."""
    number, first = next(significant_lines(stream), (1, b""))
    first = first.lstrip()
    stream.seek(0)
    if first.startswith(b"["):
        yield from array_rows(path, decoded(path, 1, stream.read()))
        return
    if first.startswith(b"{") and not first.endswith(b"}"):
        value = parsed(decoded(path, 1, stream.read()))
        if not isinstance(value, UserError):
            yield number, value
            return
        stream.seek(0)
    yield from line_rows(path, stream)


def significant_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of the lines that are not empty, without a byte order mark."""
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(UTF8_MARK).rstrip()
        if content:
            yield number, content


def line_rows(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """Yield the rows of JSON Lines; empty lines hold none."""
    for number, line in significant_lines(stream):
        yield number, parsed(decoded(path, number, line))


def array_rows(path: Path, text: str) -> Iterator[RawRow]:
    """Yield the rows of one JSON array, one at a time, each with the line on which it begins.

    Raises:
        UserError: where the array is broken, because nothing says where the next row would begin.
    """
    decoder, lines = RowDecoder(), LineCounter(text)
    position = skip_space(text, skip_space(text, 0) + 1)
    closed = text.startswith("]", position)
    while not closed:
        line = lines.at(position)
        try:
            value, position = decoder.row_at(text, position)
        except (ValueError, RecursionError) as error:
            raise in_array(path, getattr(error, "lineno", line), json_fault(error)) from error
        yield line, value
        position = skip_space(text, position)
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                fault = UserError("not valid JSON: a row of the array is not followed by ',' or ']'")
                raise in_array(path, lines.at(position), fault)
            position = skip_space(text, position + 1)
    rest = skip_space(text, position + 1)
    if rest < len(text):
        fault = UserError("not valid JSON: something follows the end of the array", got=text[rest : rest + 40])
        raise in_array(path, lines.at(rest), fault)


class LineCounter:
    """Tells the line, counted from 1, of positions in a text that only grow."""

    def __init__(self, text: str) -> None:
        self.text, self.line, self.position = text, 1, 0

    def at(self, position: int) -> int:
        """Return the line of a position that is no smaller than the last one asked for."""
        self.line += self.text.count("\n", self.position, position)
        self.position = position
        return self.line


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not JSON white space."""
    found = SPACE.match(text, position)
    return found.end() if found else position


def in_array(path: Path, line: int, error: UserError) -> UserError:
    """Return the error for an array that breaks off, which cannot be passed over as one row can."""
    fix = "mend the file there; --skip-broken cannot help, as nothing shows where the next row of the array begins"
    return UserError(error.what, got=error.got, where=f"{path}:{line}", fix=fix)


def parsed(text: str) -> Any:
    """Return the value of one JSON text, or the `UserError` that says why it has none."""
    decoder = RowDecoder()
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        return json_fault(error)
    return decoder.fault or value


class RowDecoder(JSONDecoder):
    """Decodes JSON and notices an object that names a key twice, of which JSON would keep the last without a word."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self.object_of)
        self.fault: UserError | None = None

    def object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return the object that has these keys and values."""
        found = dict(pairs)
        if len(found) < len(pairs) and self.fault is None:
            seen: set[str] = set()
            key = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            self.fault = UserError(
                f"`{key}` stands twice in one object", got=[v for k, v in pairs if k == key], fix=ONE_KEY
            )
        return found

    def row_at(self, text: str, position: int) -> tuple[Any, int]:
        """Return the value that begins at a position, or the `UserError` that refuses it, and where it ends."""
        self.fault = None
        value, end = self.raw_decode(text, position)
        return self.fault or value, end


ONE_KEY = "take one of the two out: nothing says which is meant"


def json_fault(error: ValueError | RecursionError) -> UserError:
    """Say in a user's words why JSON could not be read."""
    if isinstance(error, RecursionError):
        return UserError("the JSON is nested too deeply", fix="a row is an object of texts, numbers and short lists")
    if isinstance(error, JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return UserError(
            f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}", got=near, fix=JSON_SHAPES
        )
    return UserError("a number has too many digits", fix="put long numbers in quotes")


def decoded(path: Path, line: int, data: bytes) -> str:
    """Decode UTF-8 that begins at a line of a file, without the byte order mark that may begin the file.

    Raises:
        UserError: naming the line and the command that converts the file.
    """
    try:
        return data.removeprefix(UTF8_MARK).decode("utf-8") if line == 1 else data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        if error.reason == "unexpected end of data" and not data.endswith(b"\n"):
            fix = "the file ends inside a character: it was cut short; fetch it again"
            raise UserError("not valid UTF-8", where=f"{path}:{line}", fix=fix) from error
        begin = data.rfind(b"\n", 0, error.start) + 1
        end = data.find(b"\n", error.start)
        raise wrong_encoding(path, line, guess_encoding(data[begin : None if end < 0 else end])) from error


def guess_encoding(line: bytes) -> str | None:
    """Guess the encoding of a line that is not UTF-8: GB18030, which GBK and GB2312 are parts of, or None."""
    try:
        line.decode("gb18030")
    except UnicodeDecodeError:
        return None
    return "GB18030"


def wrong_encoding(path: Path, line: int, encoding: str | None) -> UserError:
    """Return the error for a file that is not UTF-8."""
    what = f"not valid UTF-8; it looks like {encoding}" if encoding else "not valid UTF-8"
    name, target = shlex.quote(str(path)), shlex.quote(f"{path.with_suffix('')}.utf8{path.suffix}")
    fix = f"convert it: iconv -f {encoding or 'ENCODING'} -t UTF-8 {name} > {target}"
    return UserError(what, where=f"{path}:{line}", fix=fix)


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, columns that are null or NaN left out, which is how tables write absent.

    Raises:
        UserError: if the file is broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, table_row(record)
    except (pa.ArrowException, ValueError) as error:
        where = f"{path}:{number + 1}"
        raise UserError("cannot read the Parquet file", got=str(error), where=where, fix="write it again") from error


def table_row(record: dict[str, Any]) -> Any:
    """Return a table's row with JSON values, or the `UserError` that names the column that has none."""
    row = {}
    for column, value in record.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        try:
            row[column] = json_value(value)
        except TypeError:
            what = f"column `{column}` holds {type(value).__name__}, which JSON cannot"
            return UserError(what, fix="leave the column out of the file, or make it text")
    return row


def json_value(value: Any) -> Any:
    """Return a value of a table as JSON has it: dates, times and decimals become text.

    Raises:
        TypeError: for anything else that JSON lacks, such as bytes.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    raise TypeError(type(value).__name__)
