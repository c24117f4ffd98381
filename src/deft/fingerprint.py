"""What something is, in a few digits: of texts, files and folders, and the versions of what computes with them."""

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from deft.errors import UserError
from deft.files import cache_folder, write_text

RECORDED_PACKAGES = ("deft-llm", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
SMALLEST_KEPT_BYTES = 1 << 20
"""The digest of a smaller file is not kept: computing it is as fast as looking it up."""
FREE_TO_CHANGE = ("README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
"""Beginnings of the names of files that people write by hand beside a model."""
SETTLED_S = 2.0
"""A file that was changed so recently may change again within the same tick of the file system's clock."""


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """Return 16 hexadecimal digits that change with any part, or with where one part ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def folder_fingerprint(folder: Path) -> str:
    """Return a fingerprint of the files in a folder, but for notes and hidden ones: the name and all bytes of each.

    It begins with `sha256:`; those of earlier versions, which read a part of each file, are without.
    """
    ignored = (".", *FREE_TO_CHANGE)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(ignored))
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = list(pool.map(known_sha256, files))
    parts = (part for file, digest in zip(files, digests, strict=True) for part in (file.name, digest))
    return f"sha256:{fingerprint(parts)}"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read once: it is kept under the file's path, inode, size and time of change."""
    status = path.stat()
    kept = cache_folder("sha256")
    if kept is None or status.st_size < SMALLEST_KEPT_BYTES:
        return file_sha256(path)
    state = (
        os.path.realpath(path),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    place = kept / fingerprint(map(str, state))
    with suppress(OSError):
        found = place.read_text(encoding="ascii")
        if len(found) == hashlib.sha256().digest_size * 2:
            return found
    digest = file_sha256(path)
    if time.time() - status.st_mtime > SETTLED_S:
        with suppress(OSError, UserError):  # a home that cannot be written
            write_text(place, digest)
    return digest


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's result."""
    found = {"python": sys.version.split()[0]}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
