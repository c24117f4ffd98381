"""One process at a time writes into the folder of a run: a lock, held as long as it trains.

The system frees it when the process ends, however it ends, so a lock is never stale.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deft.errors import UserError
from deft.rundir import cannot_write

LOCK_FILE = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a system says of a disk that knows no locks."""


@contextmanager
def run_held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run; a network disk that knows no locks is written to without one.

    Raises:
        UserError: if another process holds it, or it cannot be made.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        fix = "wait for it, or stop it (Ctrl-C in its terminal); without --resume-training a new run begins"
        raise UserError("this run is still going", where=str(folder), fix=fix) from error
    except NotImplementedError:  # what filelock makes of ENOSYS
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


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
