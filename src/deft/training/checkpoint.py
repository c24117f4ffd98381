"""Checkpoints of a run: which are whole, which is best, which may go."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from deft.errors import UserError
from deft.files import DISK_FAULTS, beside, read_regular, remove
from deft.hub.manifest import MANIFEST, find_fault

NAME = re.compile(r"checkpoint-(\d+)")
POSITION_FILE = "position.json"
"""Beside a checkpoint's state: which rows of which epoch were met before it."""
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
"""What holds the optimizer's state: transformers', FSDP's whole and in shards, DeepSpeed's."""


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; half-written and damaged ones carry another name."""
    found = [path for path in run.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def why_not_to_resume(checkpoint: Path, *, verify: bool) -> str | None:
    """Say why a run cannot go on from a checkpoint, or None.

    Its files must be as its manifest has them (`verify`); and it must hold the states of optimizer, schedule and random
    numbers: without them the learning rate would begin again at its first value.
    """
    from transformers import TrainerState  # torch comes with it, and lists of runs need neither

    if verify and (fault := find_fault(checkpoint)) is not None:
        return fault
    if verify and (checkpoint / POSITION_FILE).exists() and not (checkpoint / MANIFEST).exists():
        return f"{MANIFEST} is missing"  # checkpoints of earlier versions had neither
    missing = [name for name in ("scheduler.pt", "trainer_state.json") if not is_filled(checkpoint / name)]
    if not any(is_filled(found) for name in OPTIMIZER_FILES for found in checkpoint.glob(name)):
        missing.insert(0, "optimizer.pt")
    if not any(map(is_filled, checkpoint.glob("rng_state*.pth"))):
        missing.append("rng_state.pth")
    if missing:
        return f"it has no {', '.join(missing)}, so it holds a model and not where its training stood"
    try:
        state = TrainerState(**json.loads(read_regular(checkpoint / "trainer_state.json")))
    except (OSError, ValueError, TypeError, RecursionError):
        return "trainer_state.json is damaged"
    return None if state.global_step == checkpoint_step(checkpoint) else "trainer_state.json is of another step"


def is_filled(path: Path) -> bool:
    """Say whether a path is a file with something in it, or a folder of shards (none of which is called `x.pt`)."""
    return (path.is_dir() and not path.suffix) or (path.is_file() and path.stat().st_size > 0)


def last_whole(run: Path, *, verify: bool) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint that the run can go on from, and the newer ones with what keeps it from them."""
    faulty: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints(run)):
        fault = why_not_to_resume(checkpoint, verify=verify)
        if fault is None:
            return checkpoint, faulty
        faulty.append((checkpoint, fault))
    return None, faulty


def set_aside(checkpoint: Path) -> None:
    """Rename a checkpoint that a run does not go on from, so that its step can be saved again."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    best = checkpoint.with_name("best")
    if best.is_symlink() and best.readlink() == Path(checkpoint.name):
        best.unlink()
    remove(aside)
    checkpoint.rename(aside)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def mark_best(run: Path, step: int) -> None:
    """Point the link `best` of a run at the checkpoint of `step`, if it is there."""
    target = f"checkpoint-{step}"
    if not (run / target).exists():
        return
    link_to(run / "best", target)


def link_to(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, a path relative to the link's folder, replacing an older one at once."""
    temporary = beside(link, "partial")
    temporary.symlink_to(target)
    temporary.replace(link)


def prune_checkpoints(run: Path, *, keep: int, best_step: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one.

    Each is renamed before it is deleted, so that an interrupted deletion never looks like a checkpoint.
    """
    for checkpoint in checkpoints(run)[:-keep]:
        if checkpoint_step(checkpoint) != best_step:
            going = checkpoint.with_name(f".going-{checkpoint.name}")
            checkpoint.rename(going)
            remove(going)


def remove_leftovers(run: Path) -> None:
    """Delete what an interrupted run left half-written or half-deleted."""
    for path in [*run.glob(".going-*"), *run.glob(".*partial")]:
        remove(path)


@contextmanager
def explaining_disk_errors(run: Path) -> Iterator[None]:
    """Turn the errors of a full or broken disk, whichever library meets them, into one that says how to go on.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*DISK_FAULTS, errno.EACCES, errno.EPERM):
            raise
        raise cannot_save(run, error.strerror or str(error)) from error
    except SafetensorError as error:
        if "deserializing" in str(error):  # a file that was read, not one that was written
            raise
        raise cannot_save(run, str(error)) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        free = shutil.disk_usage(run).free
        raise cannot_save(run, f"only part of a file could be written; {free / 1e6:,.1f} MB are free") from error


def cannot_save(run: Path, reason: str) -> UserError:
    """Return the error a user sees when a run's folder can no longer be written."""
    last = next(reversed(checkpoints(run)), None)
    kept = f"{last.name} is whole" if last else "no checkpoint was saved yet"
    return UserError(
        f"cannot write to {run}; {kept}",
        got=reason,
        fix="free some space or set the permissions, then continue with the same command and --resume-training",
    )
