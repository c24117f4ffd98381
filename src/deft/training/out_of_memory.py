"""What a run does when a device's memory does not suffice: shorter packs where that helps, else words that do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deft.errors import UserError
from deft.model.likelihood import PackedRows
from deft.model.memory import is_out_of_memory


def shorter_capacity(pack: PackedRows, *, alone: bool) -> int:
    """Return how many tokens packs may have after `pack` did not fit: half of its own.

    `alone`: whether this process trains the whole model by itself. Where several do, one cannot start a step again
    while the others wait for its gradients.

    Raises:
        UserError: if the pack is a single row, which cannot be divided, or the process is not alone.
    """
    half = -(-pack.num_tokens // 2)
    if alone and len(pack.row_ids) > 1:
        return half
    fixes = ["--gradient-checkpointing", "--method lora"]
    if len(pack.row_ids) > 1:
        fixes.insert(0, f"--max-length-tokens {half} --pack-length-tokens {half}")
    raise UserError(
        f"out of memory with a pack of {pack.num_tokens:,} tokens in {len(pack.row_ids)} rows",
        got="rows " + ", ".join(pack.row_ids[:8]),
        fix="try " + ", or ".join(fixes) + "; --dry-run --device-memory says what fits",
    )


def free_memory() -> None:
    """Give back what a failed step has left; its error must have been let go of."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explaining_memory_errors() -> Iterator[None]:
    """Turn running out of memory elsewhere (the optimizer's states, moving the model) into an error that says so.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "--method lora, or more devices; --dry-run --device-memory says what fits"
        what = "out of memory outside of a forward or backward pass: the weights and the optimizer do not fit"
        raise UserError(what, got=str(error).partition("\n")[0], fix=fix) from error
