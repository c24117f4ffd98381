"""One process at a time works on a place: locks that the system frees when a process ends, so none is ever stale."""

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deft.errors import UserError
from deft.files import cannot_write
from deft.fingerprint import fingerprint

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a system says of a disk that knows no locks."""


@contextmanager
def held(lock: Path, *, when_taken: Callable[[], None], mode: int = 0o644) -> Iterator[None]:
    """Hold a file lock; a network disk that knows no locks is worked on without one.

    Where another process holds it, `when_taken` is called, which raises the error to end with or says what is waited
    for. `mode` are the permissions of the file.

    Raises:
        UserError: if the lock file cannot be made or opened.
    """
    found = FileLock(lock, mode=mode)
    try:
        try:
            found.acquire(timeout=0)
        except Timeout:
            when_taken()
            found.acquire()
    except NotImplementedError:  # what filelock makes of ENOSYS
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise cannot_write(lock, error) from error
    try:
        yield
    finally:
        found.release()


def lock_of(place: Path) -> Path:
    """Return the lock file of a file or folder that is written, the same however its path is.

    It lies in the temporary folder and is never deleted: were it deleted while somebody waits for it, they and the next
    would lock two different files. A place on a network disk is guarded against the processes of this computer only.
    """
    target = place.parent.resolve() / place.name
    return Path(tempfile.gettempdir()) / f"deft-{fingerprint([str(target)])}.lock"


@contextmanager
def place_held(place: Path, *, when_taken: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder that is being written.

    Raises:
        UserError: if another process holds it and no `when_taken` is there to wait, or the lock file cannot be made.
    """

    def refuse() -> None:
        raise UserError(
            "another deft process is writing there", where=str(place), fix="wait for it, or name another place"
        )

    # Several users may write to one place, a models folder for instance.
    with held(lock_of(place), when_taken=when_taken or refuse, mode=0o666):
        yield
