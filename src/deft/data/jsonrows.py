"""A stream of JSON text goes in, in any layout that rows come in; the rows come out, each with its line.

Layouts: one row a line; one array of rows; objects one after another, over as many lines as they like; an array a
line; an object that wraps a list of rows, such as `{"data": […]}`. No more than a row is in memory at once.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO

from deft.data.bounds import MAX_ROW_BYTES, too_long
from deft.data.encodings import UTF8_MARK, decoded
from deft.data.names import first_lost
from deft.errors import UserError

CHUNK_BYTES = 1 << 20
HEAD_CHARACTERS = 1 << 16
"""What is looked at to tell a layout."""
SPACE = re.compile(r"[ \t\r\n]*")
JSON_SHAPES = "a file is one JSON array of rows, or has one JSON row on each line"

ROW_LISTS = ("data", "rows", "examples", "instances", "items", "samples", "records", "train")
"""The keys under which a whole file may wrap its rows."""
SPLITS = ("test", "valid", "validation", "dev", "eval")
ROW_FIELDS = {
    *("messages", "conversations", "conversation", "instruction", "instruction_zh", "input", "output", "target"),
    *("query", "response", "prompt", "completion", "question", "answer"),
}
"""An object with one of these is a row, whatever lists it has besides."""
TEXT = r'"(?:[^"\\]++|\\.)*+"'
MEMBER = rf"{TEXT}\s*:\s*(?:{TEXT}|[\w.+-]+)\s*,\s*"
WRAPPER = re.compile(rf'\s*{{\s*((?:{MEMBER})*)"({"|".join(ROW_LISTS)})"\s*:\s*(?=\[\s*[\[{{\]])')
"""The beginning of an object that wraps rows: numbers and texts, then a list of objects."""

Remark = Callable[[str], None]
"""Told in words what of a file was not used."""


def json_rows(path: Path, opened: Callable[[], Any], remark: Remark) -> Iterator[tuple[int, Any]]:
    """Yield `(line, value)` of every row; `value` is a `UserError` where the row cannot be read.

    `opened` opens the file anew. Where rows stand a line each, a broken one costs only itself.

    Raises:
        UserError: where an array or an object over many lines is broken: nothing shows where the next row begins.
    """
    with opened() as stream:
        in_lines = has_row_lines(path, stream)
    with opened() as stream:
        yield from line_rows(path, stream, remark) if in_lines else value_rows(Window(path, stream), remark)


def has_row_lines(path: Path, stream: BinaryIO) -> bool:
    """Say whether every line holds a row of its own, judged by the first; `stream` is at its beginning."""
    window = Window(path, stream)
    first = window.peek()
    if first != "{":
        return first != "["
    head = window.ahead(HEAD_CHARACTERS)
    if wrapper_head(head):
        return False
    line, line_end, _ = head.partition("\n")
    if not line_end or is_json(line):
        return True
    try:
        window.value()
    except UserError:
        return True
    return False


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | UserError]]:
    """Yield the lines of a stream, numbered from 1; one that is too long is told and passed over."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) <= MAX_ROW_BYTES:
            yield number, line
            continue
        yield number, too_long("line")
        while line and not line.endswith(b"\n"):
            line = stream.readline(CHUNK_BYTES)


def line_rows(path: Path, stream: BinaryIO, remark: Remark) -> Iterator[tuple[int, Any]]:
    """Yield the rows of JSON Lines; empty lines hold none."""
    decoder = RowDecoder()
    for number, line in bounded_lines(stream):
        if isinstance(line, UserError):
            yield number, line
        elif content := line.removeprefix(UTF8_MARK).rstrip():
            value = parsed(decoded(path, number, content), decoder)
            if isinstance(value, dict) and not value.keys().isdisjoint(ROW_FIELDS):
                yield number, value  # what most rows are
            else:
                yield from ((number, row) for row in rows_in(value, remark))


def value_rows(window: "Window", remark: Remark) -> Iterator[tuple[int, Any]]:
    """Yield the rows of JSON values that follow each other, over any number of lines."""
    before = "text"
    while first := window.peek():
        if first == "[":
            yield from array_rows(window)
        elif first != "{":
            raise window.fault(f"something follows the end of the {before}", got=window.ahead())
        elif found := wrapper_head(window.ahead(HEAD_CHARACTERS)):
            yield from wrapped_rows(window, found, remark)
        else:
            line = window.line
            yield from ((line, row) for row in rows_in(window.value(), remark))
        before = "array" if first == "[" else "object"


def array_rows(window: "Window") -> Iterator[tuple[int, Any]]:
    """Yield the elements of the array that begins here; an array of turns is one row.

    Raises:
        UserError: where the array is broken.
    """
    begins, items = window.line, elements(window)
    for line, value in items:
        if is_turn(value):
            yield begins, as_row([value, *(turn for _, turn in items)])
        else:
            yield line, as_row(value)
            yield from ((place, as_row(other)) for place, other in items)


def elements(window: "Window") -> Iterator[tuple[int, Any]]:
    """Yield the elements of the array that begins here, one at a time, and go past its end."""
    window.step()
    mark = window.peek()
    while mark != "]":
        yield window.line, window.value()
        mark = window.peek()
        if mark not in (",", "]"):
            raise window.fault("a row of the array is not followed by ',' or ']'")
        if mark == ",":
            window.step()
            window.peek()
    window.step()


def wrapped_rows(window: "Window", found: re.Match[str], remark: Remark) -> Iterator[tuple[int, Any]]:
    """Yield the rows of the list in an object that begins here, and look at what else the object holds.

    Raises:
        UserError: where the object is broken, or holds several lists of rows.
    """
    beside = parsed("{" + found[1].rstrip().removesuffix(",") + "}")
    window.step(found.end())
    yield from array_rows(window)
    while (mark := window.peek()) == ",":
        window.step()
        window.peek()
        name = window.value()
        if window.peek() != ":":
            raise window.fault("a name is not followed by ':'")
        window.step()
        if window.peek() == "[" and name in (*ROW_LISTS, *SPLITS):
            raise window.explained(several_lists([found[2], name]))
        beside[name] = window.value()
    if mark != "}":
        raise window.fault("the list of rows is not followed by ',' or '}'")
    window.step()
    if fault := lost_beside(beside, found[2], remark):
        raise fault.at(f"{window.path}:{window.line}")


def wrapper_head(text: str) -> re.Match[str] | None:
    """Return the match of the beginning of an object that wraps a list of rows, and is no row itself."""
    found = WRAPPER.match(text.removeprefix("\ufeff"))
    if found is None:
        return None
    beside = parsed("{" + found[1].rstrip().removesuffix(",") + "}")
    if isinstance(beside, UserError) or beside.keys() & ROW_FIELDS:
        return None
    try:  # an object that holds a list of turns is a row
        first, _ = JSONDecoder().raw_decode(text[text.index("[", found.end()) + 1 :].lstrip())
    except (ValueError, RecursionError):
        return found
    return None if is_turn(first) else found


def rows_in(value: Any, remark: Remark) -> list[Any]:
    """Return the rows of one JSON value: those in a list, in an object that wraps one, or the value itself."""
    if isinstance(value, dict) and not value.keys() & ROW_FIELDS:
        lists = [name for name in (*ROW_LISTS, *SPLITS) if has_rows(value.get(name))]
        if len(lists) > 1:
            return [several_lists(lists)]
        if lists:
            found, beside = value[lists[0]], {name: other for name, other in value.items() if name != lists[0]}
            if found and is_turn(found[0]):
                return [beside | as_row(found)]
            if fault := lost_beside(beside, lists[0], remark):
                return [fault]
            value = found
    if not isinstance(value, list) or not all(isinstance(item, dict | list) for item in value):
        return [as_row(value)]
    return [as_row(value)] if value and is_turn(value[0]) else [as_row(item) for item in value]


def has_rows(value: Any) -> bool:
    """Say whether a value is a list that may be one of rows."""
    return isinstance(value, list) and all(isinstance(item, dict | list) for item in value)


def is_turn(value: Any) -> bool:
    """Say whether a value is one turn of a conversation."""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def as_row(value: Any) -> Any:
    """Return a row that is a bare list of turns, or stands inside an object of a hub's viewer, as a row of its own."""
    if isinstance(value, list) and value and all(is_turn(item) for item in value):
        return {"messages" if "role" in value[0] else "conversations": value}
    if isinstance(value, dict) and {"row_idx", "row"} <= value.keys():
        return value["row"]
    return value


def lost_beside(beside: dict[str, Any], rows: str, remark: Remark) -> UserError | None:
    """Tell which keys beside the list of rows are not used; return the error where that would lose what rows say."""
    if beside:
        remark(f"beside `{rows}`, not used: {', '.join(map(str, beside))}")
    name, fix = first_lost(beside), "write it into each of the rows, or take it out of the file"
    what = f"`{name}` beside the list of rows (`{rows}`) would be lost"
    return None if name is None else UserError(what, got=beside[name], fix=fix)


def several_lists(names: list[str]) -> UserError:
    """Return the error for an object in which several lists could be the rows."""
    fix = "write the list to be read to a file of its own"
    return UserError("the object holds several lists of rows", got=", ".join(names), fix=fix)


class Window:
    """The part of a JSON text that is in memory, read on where it ends, and the place in it."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.text, self.position, self.ended = "", 0, False
        self.rows = RowDecoder()
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.counted, self.line_counted = 0, 1
        self.column_before = 0
        while not self.text and not self.ended:
            self.fill()
        if self.text.startswith("\ufeff"):
            self.position = 1

    @property
    def line(self) -> int:
        """The line of the place, counted from 1."""
        self.line_counted += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.line_counted

    def step(self, num_characters: int = 1) -> None:
        """Go on by so many characters."""
        self.position += num_characters

    def ahead(self, limit: int = 40) -> str:
        """Return the text after the place, so many characters of it if there are."""
        while len(self.text) - self.position < limit and not self.ended:
            self.fill()
        return self.text[self.position : self.position + limit]

    def peek(self) -> str:
        """Go past white space; return the character there, or "" at the end."""
        while True:
            found = SPACE.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self.fill()

    def value(self) -> Any:
        """Return the JSON value at the place, or the `UserError` that refuses it as a row, and go past it.

        Raises:
            UserError: if there is none, or it is too long.
        """
        while True:
            try:
                value, end = self.rows.row_at(self.text, self.position)
                if end - self.position > MAX_ROW_BYTES:
                    raise self.explained(too_long("row"))
                if end < len(self.text) or self.ended:
                    self.position = end
                    return value
            except JSONDecodeError as error:
                if self.ended or not may_go_on(error):
                    raise self.broken(error) from error
            except (ValueError, RecursionError) as error:
                raise self.broken(error) from error
            if len(self.text) - self.position > MAX_ROW_BYTES:
                raise self.explained(too_long("row"))
            self.fill()

    def fill(self) -> None:
        """Drop the text before the place, and read at least as much as is left."""
        line = self.line
        last = self.text.rfind("\n", 0, self.position)
        self.column_before = self.column_before + self.position if last < 0 else self.position - last - 1
        self.text, self.position, self.counted = self.text[self.position :], 0, 0
        data = self.stream.read(max(CHUNK_BYTES, len(self.text)))
        self.ended = not data
        try:
            self.text += self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            decoded(self.path, line + self.text.count("\n"), error.object)
            raise

    def broken(self, error: ValueError | RecursionError) -> UserError:
        """Return the error for JSON that cannot be read, with the line and the column in the file."""
        if not isinstance(error, JSONDecodeError):
            return self.explained(json_fault(error))
        last = self.text.rfind("\n", 0, error.pos)
        column = self.column_before + error.pos + 1 if last < 0 else error.pos - last
        self.position = error.pos if error.pos >= self.counted else self.position
        return self.explained(json_fault(error, column))

    def fault(self, what: str, got: str | None = None) -> UserError:
        """Return the error for JSON whose parts do not follow each other as they should."""
        return self.explained(UserError(f"not valid JSON: {what}", got=got, fix=JSON_SHAPES))

    def explained(self, error: UserError) -> UserError:
        """Return an error with its place: it cannot be passed over as one of a line can."""
        fix = (
            "correct the file there; --skip-broken cannot help, as nothing shows where the next row of the array begins"
        )
        return UserError(error.what, got=error.got, where=f"{self.path}:{self.line}", fix=fix)


def may_go_on(error: JSONDecodeError) -> bool:
    """Say whether the text may only be cut where the error stands, rather than be wrong there."""
    return error.msg.startswith("Unterminated string") or len(error.doc[error.pos :].strip()) < 16


def is_json(text: str) -> bool:
    """Say whether a text is one JSON value."""
    try:
        RowDecoder().decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def parsed(text: str, decoder: "RowDecoder | None" = None) -> Any:
    """Return the value of one JSON text, or the `UserError` that says why it has none."""
    decoder = decoder or RowDecoder()
    decoder.fault = None
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
            fix = "take one of the two out: nothing says which is meant"
            self.fault = UserError(
                f"`{key}` appears twice in one object", got=[v for k, v in pairs if k == key], fix=fix
            )
        return found

    def row_at(self, text: str, position: int) -> tuple[Any, int]:
        """Return the value that begins at a position, or the `UserError` that refuses it, and where it ends."""
        self.fault = None
        value, end = self.raw_decode(text, position)
        return self.fault or value, end


def json_fault(error: ValueError | RecursionError, column: int | None = None) -> UserError:
    """Say in a user's words why JSON could not be read; `column` (from 1) where the text begins within a line."""
    if isinstance(error, RecursionError):
        return UserError("the JSON is nested too deeply", fix="a row is an object of texts, numbers and short lists")
    if isinstance(error, JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        what = f"not valid JSON: {error.msg.removesuffix(' at')} at column {column or error.colno}"
        return UserError(what, got=near, fix=JSON_SHAPES)
    return UserError("a number has too many digits", fix="put long numbers in quotes")
