"""Files of instruction data go in, in any of the formats of `formats.py`; checked `Example`s come out."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deft.data.cells import with_lists
from deft.data.columns import FieldChoice, without
from deft.data.fields import UnusedField, UnusedFields, check_meanings, check_unused, unused_of
from deft.data.files import LeftOut, look_for_files
from deft.data.formats import find_format, recognised
from deft.data.names import known_names, renamed
from deft.data.rawrows import Notes, raw_rows
from deft.errors import UserError, shorten
from deft.types import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that is no example: where it stands (`file:line`), why it was refused, and what was found there."""

    source: str
    reason: str
    got: str | None = None
    fix: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRead:
    """A file that was read: how many rows it has, broken ones among them, and remarks on how it was read."""

    path: Path
    num_rows: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadResult:
    """What was read, in the order of the files and of the rows in them; `broken` is what was passed over.

    `sources` are the files, `left_out` what stands beside them and was not read. `unused` counts the fields that no
    format uses and that are not known to be harmless; they are kept in `meta`.
    """

    examples: tuple[Example, ...]
    broken: tuple[BrokenRow, ...]
    sources: tuple[FileRead, ...]
    left_out: tuple[LeftOut, ...] = ()
    unused: tuple[UnusedField, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read."""
        return tuple(source.path for source in self.sources)


def read_examples(
    paths: Iterable[Path | str] | Path | str,
    *,
    skip_broken: bool = False,
    ability: str | None = None,
    ignore_fields: Iterable[str] = (),
    fields: Iterable[str] = (),
    written: Path | None = None,
) -> ReadResult:
    """Read every row of files and folders; `ability` is given to rows that name none.

    `ignore_fields` count as absent, in rows and in messages; `fields` says which column is what, as
    `["prompt=question", "response=answer"]`. A file that the caller is going to write (`written`) is never read.
    `Example.source` is `file:line`, in tables `file:row`, counted from 1.

    Raises:
        UserError: if a file cannot be read, if there is no row at all, if most rows of a format in a file hold text in
            a field that it does not use, if no row has a column that `fields` names, or at the first broken row, unless
            `skip_broken` is set: broken rows are then passed over and listed in the result.
    """
    choice = FieldChoice.parse(ignore_fields, fields)
    found = look_for_files(paths, written=written)
    examples: list[Example] = []
    broken: list[BrokenRow] = []
    sources: list[FileRead] = []
    unused, of_files = UnusedFields(), list[UnusedField]()
    for path in found.files:
        notes, counted = Notes(), UnusedFields()
        made, refused = read_file(path, choice=choice, ability=ability, unused=counted, notes=notes)
        if refused and not skip_broken:
            raise first_broken(refused, num_rows=len(made) + len(refused))
        unused.add(counted)
        of_files += counted.result()
        examples += made
        broken += refused
        found.left_out += notes.left_out
        sources.append(FileRead(path=path, num_rows=len(made) + len(refused), remarks=tuple(notes.remarks)))
    if not examples and not broken:
        raise UserError("the data has no rows", got=", ".join(map(str, found.files)), fix="give files with rows")
    choice.check_seen()
    check_unused(of_files)
    return ReadResult(
        examples=tuple(examples),
        broken=tuple(broken),
        sources=tuple(sources),
        left_out=tuple(found.left_out),
        unused=unused.result(),
    )


def read_file(
    path: Path, *, choice: FieldChoice, ability: str | None, unused: UnusedFields, notes: Notes
) -> tuple[list[Example], list[BrokenRow]]:
    """Read one file; return its examples and its broken rows, count the fields that are not used, and fill `notes`.

    Raises:
        UserError: if the file cannot be read as a whole.
    """
    examples, broken = [], []
    for number, value in raw_rows(path, notes):
        source = f"{path}:{number}"
        try:
            if isinstance(value, UserError):
                raise value
            examples.append(make_example(value, source=source, ability=ability, choice=choice, unused=unused))
        except UserError as error:
            got = None if error.got is None else shorten(error.got)
            broken.append(BrokenRow(source=source, reason=error.what, got=got, fix=error.fix))
        except RecursionError:  # shallow enough to be decoded, and not to be looked through
            broken.append(BrokenRow(source=source, reason="the row holds values nested too deeply", fix="take it out"))
    return examples, broken


def make_example(
    row: Any,
    *,
    source: str = "",
    ability: str | None = None,
    choice: FieldChoice | None = None,
    unused: UnusedFields | None = None,
) -> Example:
    """Make the example of one row (a JSON value), as `choice` says; count in `unused` the fields that are not used.

    Raises:
        UserError: if the row is not in any known format, or its content is wrong.
    """
    rest: dict[str, Any] = {}
    if isinstance(row, dict):
        row = with_lists(row, named=() if choice is None else choice.list_columns)
        row = row if choice is None else without(row, choice.ignored)
        check_values(row)
        if choice is not None:
            row, rest = choice.apply(row)
    known, named = recognised(row)
    parsed = known.parse(renamed(row, named) if named else row)
    if parsed.unused and not named and (others := known_names(row)).keys() & parsed.unused.keys():
        again = find_format(renamed(row, others))  # `Input` beside `instruction` and `output`
        used = again.parse(renamed(row, others))
        if len(used.unused) < len(parsed.unused):
            known, named, parsed = again, others, used
    check_meanings(rest)
    made = Example.create(
        parsed.messages,
        ability=parsed.ability or ability,
        source=source,
        meta=rest | dict(parsed.meta),
        tools=parsed.tools,
    )
    if unused is not None:
        contents = [message.content for message in parsed.messages]
        left = parsed.unused | unused_of(rest, contents) if rest else parsed.unused
        mapping = with_names(parsed.mapping, named) if left else ""
        unused.count(known.name, left, source, mapping if choice is None else choice.extended(mapping))
    return made


def with_names(mapping: str, named: Mapping[str, str]) -> str:
    """Return what `--fields` would say, with the columns as the file names them (`named`: theirs to ours)."""
    theirs = {ours: their for their, ours in named.items()}
    return re.sub(r"(?<=[=+])[^=+,]+", lambda found: theirs.get(found[0], found[0]), mapping)


def check_values(row: dict[str, Any]) -> None:
    """Check that a row can be written again as valid JSON in UTF-8.

    Raises:
        UserError: naming the first key with a number or a text that cannot.
    """
    if fault_of(row) is None:
        return
    for key, value in row.items():
        if isinstance(value, UserError):
            raise value
        fault = fault_of({key: value})
        if fault:
            raise UserError(f"`{key}` holds {fault}", got=value, fix="correct the value, or leave the row out")


def fault_of(value: dict[str, Any]) -> str | None:
    """Say what keeps a value from being valid JSON in UTF-8, or None."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is not a character"
    except RecursionError:
        return "values nested too deeply"
    except TypeError:
        return "a value that JSON cannot hold"
    except ValueError:
        return "NaN or an infinite number, which JSON does not allow"
    return None


def first_broken(broken: list[BrokenRow], *, num_rows: int) -> UserError:
    """Return the error for the first broken row of a file, with the number of all of them."""
    first = broken[0]
    count = f"{len(broken):,} of the {num_rows:,} rows of this file are broken"
    remedies = [first.fix or "correct the row"]
    if len(broken) < num_rows:
        remedies.append("or pass over broken rows with --skip-broken")
    return UserError(first.reason, got=first.got, where=first.source, fix=f"{'; '.join(remedies)} ({count})")
