"""Tell running out of memory from other faults of a computation: an error in, yes or no out."""

import torch

WORDS = ("out of memory", "can't allocate memory", "not enough memory")
"""How PyTorch's allocators say it, on CUDA, on a CPU, on Apple's GPUs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)
