"""A file goes in; its bytes come out, unpacked where it is compressed, and never more than it can honestly hold."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deft.errors import UserError

MAX_ROW_BYTES = 16_000_000
"""The longest row, line or cell: about four million tokens."""
SMALL_BYTES = 64_000_000
CHUNK_BYTES = 1 << 16
MAX_EXPANSION = 250
"""A file may hold this many times its own size, and `SMALL_BYTES` in any case; real text packs some 30 times."""


class Growth:
    """Counts what comes out of a file, and refuses what can only be a trap: little on disk, endless in memory."""

    def __init__(self, path: Path, num_bytes_stored: int) -> None:
        self.path, self.num_bytes_stored = path, num_bytes_stored
        self.num_bytes, self.num_rows = 0, 0
        self.limit = max(SMALL_BYTES, MAX_EXPANSION * num_bytes_stored)

    def add(self, num_bytes: int) -> None:
        """Count further bytes.

        Raises:
            UserError: if they are more than any honest file of this size holds.
        """
        self.num_bytes += num_bytes
        self.check(self.num_bytes)

    def check(self, num_bytes: int) -> None:
        """Refuse a file that holds, or says that it holds, so many bytes, as `add` does."""
        if num_bytes > self.limit:
            held = f"{human_size(self.num_bytes_stored)} on disk, more than {human_size(self.limit)} of text"
            fix = "do not use it; if you trust it, unpack it or write it again as JSON Lines"
            raise UserError("the file holds far more than its size allows", got=held, where=str(self.path), fix=fix)


def too_long(what: str) -> UserError:
    """Return the error for a row, line or cell (`what`) that is longer than any row to train on."""
    fix = "split it or take it out; real rows are far shorter"
    return UserError(f"the {what} is longer than {human_size(MAX_ROW_BYTES)}", fix=fix)


def open_zstd(stream: BinaryIO) -> Any:
    """Unpack Zstandard with the codec that comes with pyarrow."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


class Parts:
    """Unpacks streams that stand one after another in a file; unlike the standard library's, it ignores none."""

    def __init__(self, stream: BinaryIO, make: Callable[[], Any]) -> None:
        self.stream, self.make = stream, make
        self.unpacker = make()

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end.

        Raises:
            EOFError: if the file ends within a stream.
        """
        while True:
            if self.unpacker.eof:
                rest = self.unpacker.unused_data.lstrip(b"\0")  # xz may pad
                while not rest:
                    if not (more := self.stream.read(CHUNK_BYTES)):
                        return b""
                    rest = more.lstrip(b"\0")
                self.unpacker = self.make()
            else:
                rest = self.stream.read(CHUNK_BYTES) if self.unpacker.needs_input else b""
                if not rest and self.unpacker.needs_input:
                    raise EOFError("the file ends too early")
            if data := self.unpacker.decompress(rest, size):
                return bytes(data)


UNPACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"\x28\xb5\x2f\xfd": open_zstd,
    b"\xfd7zXZ\x00": lambda stream: Parts(stream, lzma.LZMADecompressor),
    b"BZh": lambda stream: Parts(stream, bz2.BZ2Decompressor),
}
"""By the first bytes of the file, what unpacks it."""

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
"""What unpackers raise where the file is damaged or cut short."""


class Unpacked(io.RawIOBase):
    """The content of a compressed file; damage and boundless growth are told as a user's error."""

    def __init__(self, path: Path, inner: Any, growth: Growth) -> None:
        self.path, self.inner, self.growth = path, inner, growth

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the unpacker gives bytes; 0 is the end."""
        try:
            data = self.inner.read(len(buffer))
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk's fault, not the file's
            fix = "download it again, or compress it again"
            where = str(self.path)
            raise UserError(
                "the compressed file is damaged or truncated", got=str(error), where=where, fix=fix
            ) from error
        self.growth.add(len(data))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked if its first bytes say that it is compressed."""
    with path.open("rb") as stream:
        start = stream.read(8)
        stream.seek(0)
        unpack = next((unpack for mark, unpack in UNPACKERS.items() if start.startswith(mark)), None)
        if unpack is None:
            yield stream
            return
        content = Unpacked(path, unpack(stream), Growth(path, path.stat().st_size))
        with io.BufferedReader(content, 1 << 16) as reader:
            yield reader


def human_size(num_bytes: int) -> str:
    """Return a number of bytes as people read it, such as 1.7 kB or 64 MB (powers of 1,000)."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
