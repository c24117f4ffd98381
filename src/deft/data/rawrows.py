"""A file goes in; its rows come out as JSON values, each with its line (in tables: its row), counted from 1.

What a file holds is found from its content; its name decides only where the content leaves it open. A row that cannot
be read comes out as the `UserError` that says why; what spoils the file as a whole is raised.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deft.data.arrow import arrow_rows, parquet_rows, saved_rows
from deft.data.bounds import UNPACKERS, unpacked
from deft.data.encodings import UTF8_MARK, wide_encoding, wrong_encoding
from deft.data.files import LeftOut, cannot_read, kind_suffix
from deft.data.jsonrows import json_rows
from deft.data.sheets import is_workbook, sheet_rows
from deft.data.tables import looks_like_table, table_rows
from deft.errors import UserError, shorten

UNPACK = "the file is an archive"
FOREIGN_STARTS = {
    b"version https://git-lfs": ("the file is a Git LFS pointer, not the data", "fetch the data: git lfs pull"),
    b"\xd0\xcf\x11\xe0": ("an old or protected Excel file", "save it without a password, as .xlsx or .csv"),
    b"Rar!": (UNPACK, "unpack it first: unrar x {file}"),
    b"7z\xbc\xaf": (UNPACK, "unpack it first: 7z x {file}"),
    b"\x04\x22\x4d\x18": ("the file is compressed with LZ4", "unpack it first: lz4 -d {file}"),
    b"%PDF": ("the file is a PDF", "give the rows as JSON Lines or CSV"),
    b"SQLite format 3": ("the file is a database", "export the rows as CSV"),
    b"\x89HDF": ("the file is HDF5", "export the rows as Parquet or CSV"),
    b"\x93NUMPY": ("the file is an array of NumPy's", "give the rows as JSON Lines or CSV"),
}
WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|head)", re.IGNORECASE)
TAR_MARK = slice(257, 262)
HEAD_BYTES = 1 << 16
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")

RawRow = tuple[int | str, Any]


@dataclass(kw_only=True, slots=True)
class Notes:
    """What is to be told of a file besides its rows: remarks on how it was read, and parts that were not."""

    remarks: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def remark(self, text: str) -> None:
        """Note a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def leave(self, name: str, reason: str) -> None:
        """Note a part that is not read."""
        self.left_out.append(LeftOut(name=name, reason=reason))


def raw_rows(path: Path, notes: Notes | None = None) -> Iterator[RawRow]:
    """Yield `(line, value)` of every row; `value` is a `UserError` where the row cannot be read.

    `notes` is filled on the way.

    Raises:
        UserError: if the file cannot be read as a whole: permissions, encoding, a broken array, a broken Parquet file.
    """
    notes = Notes() if notes is None else notes
    try:
        if path.is_dir():
            yield from saved_rows(path)
            return
        with path.open("rb") as stream:
            start = stream.read(512)
        refuse_foreign(path, start)
        if start.startswith(b"PAR1"):
            yield from parquet_rows(path)
        elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from arrow_rows(path)
        elif start.startswith(b"PK\x03\x04") and is_workbook(path):
            yield from sheet_rows(path, notes.leave)
        elif start.startswith(b"PK\x03\x04"):
            raise foreign(path, UNPACK, "unpack it first: unzip {file}")
        else:
            yield from text_rows(path, notes)
    except OSError as error:
        raise cannot_read(path, error) from error


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file that begins as one that holds no rows.

    Raises:
        UserError: naming what it is and what to do.
    """
    for mark, (what, fix) in FOREIGN_STARTS.items():
        if start.startswith(mark):
            raise foreign(path, what, fix)
    if WEB_PAGE.match(start.removeprefix(UTF8_MARK)):
        raise foreign(path, "the file is a web page, not the data", "fetch the raw file that the page shows")
    if start[TAR_MARK] == b"ustar":
        raise foreign(path, UNPACK, "unpack it first: tar xf {file}")


def foreign(path: Path, what: str, fix: str) -> UserError:
    """Return the error for a file that holds no rows."""
    return UserError(what, where=str(path), fix=fix.format(file=shlex.quote(str(path))))


def text_rows(path: Path, notes: Notes) -> Iterator[RawRow]:
    """Yield the rows of a file of text, compressed or not: JSON of any layout, or a table.

    Raises:
        UserError: if it is neither.
    """

    def opened() -> Any:
        return unpacked(path)

    with opened() as stream:
        head = stream.read(HEAD_BYTES)
    refuse_packed(path, head)
    read = reader_of(path, head)
    yield from read(path, opened, notes.remark)


def refuse_packed(path: Path, head: bytes) -> None:
    """Refuse what only plain files may hold, where it was found inside a compressed one."""
    refuse_foreign(path, head[:512])
    if head.startswith((b"PAR1", b"PK\x03\x04", b"ARROW1", *UNPACKERS)):
        raise foreign(path, "the file is compressed twice", "unpack it once, and give what comes out")


def reader_of(path: Path, head: bytes) -> Callable[..., Iterator[RawRow]]:
    """Return what reads a text that begins so: as JSON, or as a table.

    Raises:
        UserError: if it is neither, or is JSON in an encoding that JSON may not have.
    """
    wide = wide_encoding(head[:4])
    text = head.decode(wide or "utf-8", "replace").lstrip("\ufeff \t\r\n")
    suffix = kind_suffix(path.name)
    if text.startswith(("{", "[")) or not text:
        if wide:
            raise wrong_encoding(path, 1, wide)
        return json_rows
    if suffix in TABLE_SUFFIXES or looks_like_table(text):
        return table_rows
    if wide:
        raise wrong_encoding(path, 1, wide)
    if suffix in JSON_SUFFIXES:
        return json_rows
    fix = "deft reads JSON, JSON Lines, CSV, TSV, XLSX, Parquet and Arrow, and text also compressed"
    raise UserError("cannot tell what the file holds", got=shorten(text.split("\n")[0], 60), where=str(path), fix=fix)
