"""Memory of the machine: what was freed is kept for the next step, and running out of it is told from other faults.

glibc gives large blocks back to the system as soon as they are freed, and the system has to clear every page of the
next one: up to a fifth of a training step on a CPU (LOG.md). It keeps them when told to, and large pages are cleared
with fewer faults.
"""

import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's `mallopt` (malloc.h)."""
NEVER = 2**31 - 1
TOP_PAD_BYTES = 64 << 20
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How PyTorch's allocators say it, on CUDA, on a CPU, on Apple's GPUs."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step, in large pages where the system offers them; say whether it does.

    What the environment says of malloc (`MALLOC_…_`, `GLIBC_TUNABLES`) or of another allocator (`LD_PRELOAD`) is left
    alone.
    """
    set_by_user = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ)
    if sys.platform != "linux" or set_by_user:
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it at its first tensor
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = ((M_MMAP_THRESHOLD, NEVER), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD_BYTES))
    taken = [mallopt(option, value) for option, value in wanted]
    return all(taken)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
