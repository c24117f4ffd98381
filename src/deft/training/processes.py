"""The processes that train together: joined and left the same way on every path, and of one mind about stopping."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

from deft.errors import UserError

T = TypeVar("T")
LEAVING_S = 0.5
LONGEST_WAIT = timedelta(days=7)
"""For what one process does while the others have nothing to do; if it fails, they learn of it at once."""


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


def first_of_machine(find: Callable[[], T], *, waits: bool = True) -> T:
    """Return what `find` finds: it runs in one process of each machine first, and in the others when that is done.

    It is for what takes long and leaves on disk what makes it quick for the others. Where it leaves nothing (`waits`
    False, which machines may differ in), the others do not wait.

    The timeout of all processes together is for exchanges, and may be minutes: those of a machine wait in a group of
    their own. It ends with the group of all, since freeing one of gloo's needs the pause that `leave` makes.

    Raises:
        UserError: in all processes of the machine, the one that `find` raised in the first.
    """
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not waits or num_here == 1 or not (distributed.is_initialized() and distributed.is_gloo_available()):
        return find()
    place = PartialState().local_process_index
    first = distributed.get_rank() - place
    here = distributed.new_group(
        list(range(first, first + num_here)), timeout=LONGEST_WAIT, backend="gloo", use_local_synchronization=True
    )
    found: T | UserError | None = None
    if place == 0:
        try:
            found = find()
        except UserError as error:
            found = error
    told = [found if isinstance(found, UserError) else None]
    distributed.broadcast_object_list(told, src=first, group=here)
    if told[0] is not None:
        raise told[0]
    return cast(T, found) if place == 0 else find()


def any_of_them(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is set in any of the processes; all must ask at the same time."""
    if PartialState().num_processes == 1:
        return flag
    votes = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return bool(votes.item())
