"""Checkpoints of a run: which are whole, which is best, which may go."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from deft.errors import UserError
from deft.rundir import remove

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first; half-written ones carry another name."""
    found = [path for path in run.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return sorted(found, key=checkpoint_step)


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
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
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
    for path in [run / ".partial", *run.glob(".going-*"), *run.glob(".*.partial")]:
        remove(path)


@contextmanager
def disk_faults_told(run: Path) -> Iterator[None]:
    """Turn the errors of a full or broken disk, whichever library meets them, into one that says how to go on.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise cannot_save(run, error.strerror or str(error)) from error
    except SafetensorError as error:
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
        fix="free some space or mend the rights, then continue with the same command and --resume-training",
    )
