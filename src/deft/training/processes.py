"""The processes that train together: joined and left the same way on every path, and of one mind about stopping."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from deft.errors import UserError

T = TypeVar("T")
LEAVING_S = 0.5


@contextmanager
def joined() -> Iterator[PartialState]:
    """Join the processes that torchrun started, if it did, and leave them at the end, whatever ended it.

    A process that ended with its group still open was aborted ("terminate called without an active exception"): the
    threads of gloo and of its store were still running when the library that owns them was torn down. It happened
    wherever an error, or a SystemExit, passed by the one place that left the group.
    """
    processes = PartialState()
    try:
        yield processes
    except BaseException:
        leave(processes)
        raise
    if processes.num_processes > 1:
        with suppress(RuntimeError):  # a signal has ended another one since: its work was done, as is this one's
            processes.wait_for_everyone()
    leave(processes)


def leave(processes: PartialState) -> None:
    """Leave the group of processes that trained together.

    Gloo's threads need Python's lock to let go of the last tensors they sent. Whoever frees the group holds the lock
    and waits for them, so both would wait forever (seen with torch 2.13); a pause without the lock lets them finish.
    """
    if processes.num_processes > 1:
        time.sleep(LEAVING_S)
    processes.destroy_process_group()


def agreed(find: Callable[[], T]) -> T:
    """Return in all processes what the first one finds; if it finds an error, all raise that.

    Raises:
        UserError: the one that `find` raised in the first process.
    """
    found: T | UserError | None = None
    if PartialState().is_main_process:
        try:
            found = find()
        except UserError as error:
            found = error
    [found] = broadcast_object_list([found])
    if isinstance(found, UserError):
        raise found
    return cast(T, found)


def any_of_them(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is set in any of the processes; all must ask at the same time."""
    if PartialState().num_processes == 1:
        return flag
    votes = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return bool(votes.item())
