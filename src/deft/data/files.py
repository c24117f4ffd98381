"""Paths that a user gives go in; the data files they stand for come out, in an order that no machine changes.

What a folder holds besides is named, with the reason why it is not read.
"""

import difflib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deft.errors import UserError

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".parquet", ".arrow")
PACKED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files in which other tools describe data sets; they hold no rows."""
WHY_NOT = {
    ".xls": "an old Excel file; save it as .xlsx or .csv",
    ".ods": "an OpenDocument sheet; save it as .xlsx or .csv",
    ".zip": "an archive; unpack it",
    ".tar": "an archive; unpack it",
    ".tgz": "an archive; unpack it",
    ".7z": "an archive; unpack it",
    ".rar": "an archive; unpack it",
    ".partial": "half-written",
}
NO_DATA_NAME = "no data by the name"
NUM_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Something in a folder or a file that was not read: its name, and why."""

    name: str
    reason: str


@dataclass(kw_only=True, slots=True)
class Found:
    """The data files that paths stand for, once each (a saved data set, a folder, counts as one), and the rest."""

    files: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def leave(self, path: Path, reason: str) -> None:
        """Note that `path` is not read."""
        self.left_out.append(LeftOut(name=str(path), reason=reason))


def find_files(paths: Iterable[Path | str] | Path | str) -> tuple[Path, ...]:
    """Return every file that `paths` stand for, once each; `look_for_files` also says what is left out."""
    return tuple(look_for_files(paths).files)


def look_for_files(paths: Iterable[Path | str] | Path | str, *, written: Path | None = None) -> Found:
    """Find every file that `paths` stand for, once each; `written`, which the caller will write, is not among them.

    A file stands for itself, whatever its name. A folder stands for every data file in it and in its subfolders
    (`DATA_SUFFIXES`, also compressed), sorted by name. A folder that `datasets` saved stands for itself.

    Raises:
        UserError: if a path is missing, is neither file nor folder, or is a folder without data files, or if a name is
            not UTF-8, which no record of a run could hold; or if `written` is itself given to be read.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found = Found()
    seen: set[str] = set()
    out = None if written is None else os.path.realpath(written)
    for path in map(Path, paths):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        except (OSError, ValueError) as error:
            raise cannot_read(path, error) from error
        if stat.S_ISDIR(mode):
            inside = files_in(path, out)
        elif not stat.S_ISREG(mode):
            raise UserError("not a regular file", got=str(path), fix="write the data to a file and give its name")
        elif os.path.realpath(path) == out:
            raise UserError("the file to write is also to be read", got=str(path), fix="write to another file")
        else:
            inside = Found(files=[path])
        found.left_out += inside.left_out
        for file in inside.files:
            check_name(file)
            if (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                found.files.append(file)
    if not found.files:
        raise UserError("no data was given", fix="give one or more files or folders")
    return found


def files_in(folder: Path, written: str | None = None) -> Found:
    """Find the data files in a folder and its subfolders, sorted by name; links are followed.

    `written` is the real path of a file that is not to be read.

    Raises:
        UserError: if there are none, a folder cannot be listed, or a link leads nowhere.
    """
    found = Found()
    for path in entries_of(folder, found):
        reason = why_left_out(path, written)
        if reason is None:
            found.files.append(path)
        elif reason:
            found.leave(path, reason)
    found.files.sort(key=lambda file: file.relative_to(folder).parts)
    found.left_out.sort(key=lambda one: one.name)
    if not found.files:
        there = ", ".join(f"{Path(one.name).name} ({one.reason})" for one in found.left_out[:NUM_NAMES_SHOWN])
        got = f"{folder}, which holds {there}" if there else str(folder)
        fix = f"data files end in {', '.join(DATA_SUFFIXES)}, also with {', '.join(PACKED_SUFFIXES)}"
        raise UserError("the folder has no data files", got=got, fix=f"{fix}; a file given by its own name is read")
    return found


def entries_of(folder: Path, found: Found) -> Iterator[Path]:
    """Yield what a folder and its subfolders hold: files, and folders that `datasets` saved.

    Folders of models and of runs are left out and noted in `found`; hidden folders are left out.

    Raises:
        UserError: if a folder cannot be listed, or holds several splits of a saved data set.
    """

    def stop(error: OSError) -> None:
        raise cannot_read(Path(error.filename or folder), error) from error

    seen = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=stop):
        place = Path(parent)
        seen.add(os.path.realpath(place))
        if reason := why_folder_left_out(names):
            if place == folder:
                raise UserError(f"the folder is {reason}, not data", got=str(folder), fix="give a folder of data")
            found.leave(place, reason)
            subfolders[:] = []
            continue
        if is_saved(names):
            subfolders[:] = []
            yield place
            continue
        if "dataset_dict.json" in names:
            check_one_split(place, subfolders)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "__MACOSX")) and os.path.realpath(place / name) not in seen
        ]
        yield from (place / name for name in names)


def why_folder_left_out(names: Iterable[str]) -> str | None:
    """Say why a folder that holds these names is no data: it is a run's, or a model's."""
    if "run.json" in names:
        return "a run of deft's"
    if "tokenizer_config.json" in names or "adapter_config.json" in names:
        return "a model"
    return None


def is_saved(names: Iterable[str]) -> bool:
    """Say whether a folder that holds these names is one data set, saved by `save_to_disk`."""
    return "state.json" in names and "dataset_info.json" in names


def check_one_split(folder: Path, splits: list[str]) -> None:
    """Refuse a saved data set with several splits: to train on the test split is never meant."""
    if len(splits) > 1:
        names = ", ".join(sorted(splits))
        fix = f"name the one to read, e.g. {folder / sorted(splits)[-1]}"
        raise UserError("the folder holds several splits of a data set", got=names, where=str(folder), fix=fix)


def why_left_out(path: Path, written: str | None) -> str | None:
    """Say why an entry of a folder is not read: "" where that goes without saying, None where it is read.

    Raises:
        UserError: if it is a link named like data that leads nowhere.
    """
    name, reason = path.name, None
    if path.is_dir():
        return None  # a saved data set
    if name.startswith("~$"):
        reason = ""  # Excel's mark that the file is open
    elif name.startswith("."):
        reason = "hidden" if is_data_name(name) else ""
    elif path.suffix.lower() in WHY_NOT or not is_data_name(name):
        reason = WHY_NOT.get(path.suffix.lower(), NO_DATA_NAME)
    elif name in DESCRIPTIONS:
        reason = "describes a data set, holds no rows"
    elif path.is_symlink() and not path.exists():
        fix = "repair or delete the link"
        raise UserError("a link in the folder is broken", got=str(path.readlink()), where=str(path), fix=fix)
    elif written is not None and os.path.realpath(path) == written:
        reason = "this command writes it"
    elif not path.is_file():
        reason = "not a regular file"
    return reason


def kind_suffix(name: str) -> str:
    """Return the ending that hints at what a file holds, in lower case, past one that says it is compressed."""
    lower = name.lower()
    bare = next((lower.removesuffix(packed) for packed in PACKED_SUFFIXES if lower.endswith(packed)), lower)
    return Path(bare).suffix


def is_data_name(name: str) -> bool:
    """Say whether a file of this name, met in a folder, is data."""
    return kind_suffix(name) in DATA_SUFFIXES


def check_name(path: Path) -> None:
    """Refuse a path that is not UTF-8, such as a name in GBK out of a zip file."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        fix = "rename it, e.g. convmv -f gbk -t utf-8 --notest FILE"
        raise UserError("the name of the file is not UTF-8", got=str(path), fix=fix) from error


def missing(path: Path) -> UserError:
    """Return the error for a path that does not exist, with the names it may stand for: near ones, or those of data."""
    parent = path.parent
    try:
        entries = sorted(entry for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return UserError("no such file or folder", got=str(path), fix=f"the folder {parent} cannot be listed either")
    if near := difflib.get_close_matches(path.name, [entry.name for entry in entries], n=1, cutoff=0.7):
        fix = f"did you mean {near[0]!r}?"
    elif names := [entry.name for entry in entries if is_data_name(entry.name) or entry.is_dir()]:
        more = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
        fix = f"data files and folders there: {', '.join(names[:NUM_NAMES_SHOWN])}{more}"
    else:
        fix = f"the folder {parent.absolute()} has no data files"
    return UserError("no such file or folder", got=str(path), fix=fix)


def cannot_read(path: Path, error: Exception) -> UserError:
    """Return the error a user sees when the system refuses to read `path`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot read {path}", got=reason, fix="check the name and the permissions (ls -l)")
