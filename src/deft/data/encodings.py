"""Bytes of a file go in; text comes out, or the error that names the line and the command that converts the file."""

import codecs
import shlex
from pathlib import Path

from deft.data.bounds import unpacked
from deft.errors import UserError

UTF8_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = {  # in this order: the first mark of UTF-32 begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
CHUNK_BYTES = 1 << 20
NEAR_BYTES = 1 << 16
COMMON_RATIO = 0.8
"""Of the characters of real Chinese text in GB18030, at least so many are in the small set of GB2312."""


def wide_encoding(start: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if a file that starts so has more than a byte for every character."""
    marked = next((name for mark, name in WIDE_MARKS.items() if start.startswith(mark)), None)
    return marked or ("UTF-16" if b"\0" in start[:4] else None)


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
            fix = "the file ends inside a character: it is truncated; download it again"
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


def table_encoding(path: Path) -> str:
    """Find the encoding of a table, from all of it: UTF-8, UTF-16 with its mark (as Excel writes it), or GB18030.

    Raises:
        UserError: if it is none of these, or is UTF-8 with damage.
    """
    with unpacked(path) as stream:
        start = stream.read(4)
        wide = wide_encoding(start)
        if wide == "UTF-16" and start[:2] in WIDE_MARKS:
            if not decodes(path, "utf-16"):
                raise UserError("not valid UTF-16: damaged or truncated", where=f"{path}:1", fix="write the file again")
            return "utf-16"
        if wide:
            raise wrong_encoding(path, 1, wide)
        fault = first_fault(path)
        if fault is None:
            return "utf-8-sig"
    line, near = fault
    if not is_chinese(near) or not decodes(path, "gb18030"):
        raise wrong_encoding(path, line, None)
    return "gb18030"


def first_fault(path: Path) -> tuple[int, bytes] | None:
    """Return the line at which a file stops being UTF-8, and the bytes around that place; None if it never does."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, before = 1, b""
    with unpacked(path) as stream:
        while True:
            data = stream.read(CHUNK_BYTES)
            try:
                decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                return line, before[-NEAR_BYTES:] + data[: error.start + NEAR_BYTES]
            if not data:
                return None
            line += data.count(b"\n")
            before = data


def is_chinese(data: bytes) -> bool:
    """Say whether bytes that are not UTF-8 are Chinese in GB18030, and not UTF-8 with a few bytes damaged."""
    as_utf8 = [ch for ch in data.decode("utf-8", "replace") if ch > "\x7f"]
    if as_utf8.count("\ufffd") < len(as_utf8) / 4:
        return False
    found = [ch for ch in data.decode("gb18030", "replace") if ch > "\x7f"]
    common = sum(bool(ch.encode("gb2312", "ignore")) for ch in found)
    return common >= COMMON_RATIO * len(found)


def decodes(path: Path, encoding: str) -> bool:
    """Say whether all of a file can be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with unpacked(path) as stream:
        try:
            while data := stream.read(CHUNK_BYTES):
                decoder.decode(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
