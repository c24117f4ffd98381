"""One process at a time writes into the folder of a run: a lock, held as long as it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deft.errors import UserError
from deft.locks import held

LOCK_FILE = ".lock"


@contextmanager
def run_held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run.

    Raises:
        UserError: if another process holds it, or it cannot be made.
    """

    def refuse() -> None:
        fix = "wait for it, or stop it (Ctrl-C in its terminal); without --resume-training a new run begins"
        raise UserError("this run is still in progress", where=str(folder), fix=fix)

    with held(folder / LOCK_FILE, when_taken=refuse):
        try:
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)


def is_running(folder: Path) -> bool:
    """Say whether a process is training in a run's folder now."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False
