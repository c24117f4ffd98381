"""Files that are whole or absent, and the folder of a run: what went in, with which versions, and what came out."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from deft.errors import UserError

RECORDED_PACKAGES = ("deft-llm", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
SAMPLED_BYTES = 1 << 20


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to (a file or a folder); rename it to `path` at the end.

    Whatever interrupts the writing, `path` is left as it was and the temporary is removed.

    Raises:
        UserError: if the place cannot be written (no permission, disk full, a folder in the way).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_file():
            sync(temporary)
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        if temporary_or_target(error, temporary, path):
            raise cannot_write(path, error) from error
        raise
    finally:
        remove(temporary)


def temporary_or_target(error: OSError, temporary: Path, path: Path) -> bool:
    """Say whether an `OSError` is about the place being written, rather than about something that was read."""
    if error.filename is None:
        return True
    name = str(error.filename)
    return name.startswith((str(temporary), str(path))) or str(path).startswith(name)


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error a user sees when `path` cannot be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write {path}", got=reason, fix="free some space, mend the rights, or choose another place"
    )


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there and the system allows it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Have the system put a file's bytes on the disk, so that a rename never reveals an empty file."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none, or it is damaged and so says nothing."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """Return 16 hexadecimal digits that change with any part, or with where one part ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def folder_fingerprint(folder: Path) -> str:
    """Return a fingerprint of the files in a folder: name, size, and the first and last megabyte of each.

    Reading all of a large model takes minutes; training changes its tensors everywhere, so the samples tell.
    """
    parts: list[str | bytes] = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(SAMPLED_BYTES)
            stream.seek(max(size - SAMPLED_BYTES, 0))
            parts += [file.name, str(size), head, stream.read()]
    return fingerprint(parts)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's result."""
    found = {"python": sys.version.split()[0]}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def new_run_folder(parent: Path) -> Path:
    """Create `parent/<date-time>/` and return it; a counter is added where two runs start in one second.

    Raises:
        UserError: if the folder cannot be made.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 100):
            folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise cannot_write(parent, error) from error
    raise UserError(f"{parent} has too many runs of this second", fix="wait a second and start again")


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
