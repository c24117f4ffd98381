"""Files that are whole or absent, however the writing ends; and reading those that others wrote."""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deft.errors import UserError

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Faults of a disk, whatever file they name; others are about the place being written only if they name it."""
CACHE_VARIABLE = "DEFT_CACHE_DIR"
"""Names another folder than `~/.cache/deft`; empty: nothing is kept."""
LARGEST_READ_BYTES = 512 << 20
"""Of a file that is read whole; far above the largest tokenizer (35 MB)."""
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.(?P<kind>partial|old)")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to (a file or a folder); put it in the place of `path` at the end.

    Whatever interrupts the writing, `path` is left as it was and the temporary is removed. A folder in the way is moved
    aside, and back if the new one cannot take its place. What a killed process left beside `path` is cleaned up.

    Raises:
        UserError: if the place cannot be written (no permission, disk full, a folder in the way).
    """
    temporary = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_up_beside(path)
        yield temporary
        sync(temporary)
        take_place(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if is_about(error, temporary, path):
            raise cannot_write(path, error) from error
        raise
    finally:
        remove(temporary)


def beside(path: Path, kind: str) -> Path:
    """Return a path beside `path` that nobody can foresee, and that says whose it is once its process is gone."""
    return path.with_name(f".{path.name}.{host_digits()}-{os.getpid()}-{secrets.token_hex(8)}.{kind}")


def host_digits() -> str:
    """Return eight digits that stand for this computer; processes of others that share a disk are not known here."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def clean_up_beside(path: Path) -> None:
    """Remove what processes of this computer that are gone left half-written, and bring back what they moved aside."""
    for leftover in path.parent.glob(".*"):
        found = PARTIAL.fullmatch(leftover.name)
        if found is None or found["name"] != path.name or found["host"] != host_digits():
            continue
        if is_alive(int(found["process"])):
            continue
        if found["kind"] == "old" and not path.exists():
            leftover.rename(path)
        else:
            remove(leftover)


def is_alive(process: int) -> bool:
    """Say whether a process of this computer is there."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def take_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a folder that is there already is moved aside first, and deleted last."""
    if not (path.is_dir() and new.is_dir()):
        new.replace(path)
        return
    old = beside(path, "old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    remove(old)


def is_about(error: OSError, temporary: Path, path: Path) -> bool:
    """Say whether an error is about the place being written, rather than a network or a file that was read."""
    if error.errno in DISK_FAULTS:
        return True
    name = os.fspath(error.filename) if isinstance(error.filename, str | Path) else ""
    return name.startswith((str(temporary), str(path))) or (bool(name) and str(path).startswith(name))


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error a user sees when `path` cannot be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write {path}", got=reason, fix="free some space, set the permissions, or choose another place"
    )


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there and the system allows it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Have the system put a file's bytes, or those of all files in a folder, on the disk.

    Otherwise a rename may outlive a crash and reveal an empty file.
    """
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            sync(entry)
        sync_folder(path)
    elif path.is_file():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have the system put the names in a folder on the disk, where it can (Windows cannot)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_regular(file: Path) -> bytes:
    """Return the content of what must be a file of a sane size: a pipe or a device would be read without end.

    Raises:
        OSError: if it is something else, or cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "this should be a file, but is a folder, a pipe or a device", str(file))
    if status.st_size > LARGEST_READ_BYTES:
        raise OSError(errno.EFBIG, "this file is far too large to be what its name says", str(file))
    return file.read_bytes()


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none, or it is damaged and so says nothing."""
    try:
        value = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def cache_folder(name: str) -> Path | None:
    """Return the folder in which deft keeps what it need not compute twice, or None if nothing is to be kept."""
    named = os.environ.get(CACHE_VARIABLE)
    if named == "":
        return None
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deft"
    return base.expanduser() / name


def check_writable(folder: Path) -> None:
    """Fail early, before any long work, if `folder` cannot be made or written; nothing of the trial stays.

    Raises:
        UserError: saying what the system said.
    """
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
