"""What a checkpoint's files must be, byte for byte, so that a damaged one is told and not trained on.

In: a folder that was just written. Out: `deft_manifest.json` in it, with the size and the SHA-256 of each file, written
last; later, the same folder checked against it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import read_object, write_json
from deft.fingerprint import FREE_TO_CHANGE, file_sha256, known_sha256

MANIFEST = "deft_manifest.json"
STATE_FILES = ("optimizer", "scheduler", "rng_state", "scaler", "trainer_state", "rows.", "position.", "global_step")
"""Beginnings of the names of what only a run that goes on needs; a model is whole without it."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder whose other files are all there."""
    files = list(manifest_files(folder))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(known_sha256, files)
        listed = {
            str(file.relative_to(folder)): {"num_bytes": file.stat().st_size, "sha256": digest}
            for file, digest in zip(files, digests, strict=True)
        }
    write_json(folder / MANIFEST, {"files": listed})


def manifest_files(folder: Path) -> Iterator[Path]:
    """Yield the files that a manifest lists, those of subfolders too, in the order of their names."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST and not file.name.startswith(FREE_TO_CHANGE):
            yield file


def find_fault(folder: Path, *, of_model: bool = False) -> str | None:
    """Say which file of a folder is not as it was written, and how; None if all are, or there is no manifest.

    With `of_model`, where training stood does not count.
    """
    if not (folder / MANIFEST).exists():
        return None
    listed = read_object(folder / MANIFEST).get("files")
    if not isinstance(listed, dict) or not listed:
        return f"{MANIFEST} is damaged"
    if of_model:
        listed = {name: expected for name, expected in listed.items() if not name.startswith(STATE_FILES)}
    with ThreadPoolExecutor() as pool:
        faults = pool.map(lambda item: file_fault(folder / item[0], item[1]), sorted(listed.items()))
        return next((fault for fault in faults if fault), None)


def file_fault(file: Path, expected: Any) -> str | None:
    """Say how a file differs from what a manifest has of it, or None."""
    if not isinstance(expected, dict) or not {"num_bytes", "sha256"} <= expected.keys():
        return f"{MANIFEST} is damaged"
    try:
        if not file.is_file():
            return f"{file.name} is missing"
        if (size := file.stat().st_size) != expected["num_bytes"]:
            return f"{file.name} has {size:,} bytes and not {expected['num_bytes']:,}"
        if file_sha256(file) != expected["sha256"]:
            return f"{file.name} has changed since it was written"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror or error}"
    return None


def check_manifest(folder: Path) -> None:
    """Check a model's folder before it is trained on, merged or exported.

    Raises:
        UserError: naming the first file that is not as it was written.
    """
    fault = find_fault(folder, of_model=True)
    if fault is not None:
        fix = "copy or make the folder again; if you changed the file on purpose: --verify none"
        raise UserError("a file of the model has changed since it was written", got=fault, where=str(folder), fix=fix)
