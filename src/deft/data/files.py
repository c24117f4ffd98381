"""Paths that a user gives go in; the data files they stand for come out, in an order that no machine changes."""

import difflib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from deft.errors import UserError, did_you_mean

DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
NUM_NAMES_SHOWN = 20


def find_files(paths: Iterable[Path | str] | Path | str) -> tuple[Path, ...]:
    """Return every file that `paths` stand for, once each.

    A file stands for itself, whatever its name. A folder stands for every `*.json`, `*.jsonl` and `*.parquet` in it
    and in its subfolders, sorted by name; hidden files and folders and half-written files (`*.partial`) are left out.

    Raises:
        UserError: if a path is missing, is neither file nor folder, or is a folder without data files, or if a name is
            not UTF-8, which no record of a run could hold.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        except (OSError, ValueError) as error:
            raise cannot_read(path, error) from error
        if stat.S_ISDIR(mode):
            files = files_in(path)
        elif stat.S_ISREG(mode):
            files = [path]
        else:
            raise UserError("not a regular file", got=str(path), fix="write the data to a file and give its name")
        for file in files:
            check_name(file)
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise UserError("no data was given", fix="give one or more files or folders")
    return tuple(found.values())


def files_in(folder: Path) -> list[Path]:
    """Return the data files in a folder and its subfolders, sorted by name; links are followed.

    Raises:
        UserError: if there are none, a folder cannot be listed, or a link leads nowhere.
    """

    def stop(error: OSError) -> None:
        raise cannot_read(Path(error.filename or folder), error) from error

    files, seen = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=stop):
        seen.add(os.path.realpath(parent))
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in seen
        ]
        files += [Path(parent, name) for name in names if is_data_name(name)]
    for file in files:
        if file.is_symlink() and not file.exists():
            fix = "mend or delete the link"
            raise UserError("a link in the folder leads nowhere", got=str(file.readlink()), where=str(file), fix=fix)
    files = [file for file in files if file.is_file()]
    if not files:
        fix = f"data files end in {', '.join(DATA_SUFFIXES)}; hidden and .partial files are left out"
        raise UserError("the folder has no data files", got=str(folder), fix=fix)
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def is_data_name(name: str) -> bool:
    """Say whether a file of this name, met in a folder, is data."""
    return not name.startswith(".") and name.lower().endswith(DATA_SUFFIXES)


def check_name(path: Path) -> None:
    """Refuse a path that is not UTF-8, such as a name in GBK out of a zip file."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        fix = "rename it, e.g. convmv -f gbk -t utf-8 --notest FILE"
        raise UserError("the name of the file is not UTF-8", got=str(path), fix=fix) from error


def missing(path: Path) -> UserError:
    """Return the error for a path that does not exist, with the nearest names that do."""
    parent = path.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        return UserError("no such file or folder", got=str(path), fix=f"the folder {parent} cannot be listed either")
    near = difflib.get_close_matches(path.name, names, n=3)
    known = sorted({*near, *[name for name in names if not name.startswith(".")][:NUM_NAMES_SHOWN]})
    fix = did_you_mean(path.name, known) if known else f"the folder {parent} is empty"
    return UserError("no such file or folder", got=str(path), fix=fix)


def cannot_read(path: Path, error: Exception) -> UserError:
    """Return the error a user sees when the system refuses to read `path`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot read {path}", got=reason, fix="check the name and the rights (ls -l)")
