"""Which rows a step trains on: a function of (seed, epoch, step) alone, so that a resumed run sees the same order."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Sampler

from deft.model.likelihood import PackedRows
from deft.prompt.pack import pack_rows
from deft.types import TokenSequence


class RowOrder(Sampler[list[int]]):
    """Batches of row indices: every row once per epoch, shuffled by (seed, epoch)."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        for start in range(0, self.num_rows, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class BatchLoader(DataLoader):
    """Batches of rows, each laid out as packs of at most `capacity` tokens."""

    def __init__(self, rows: Sequence[TokenSequence], order: RowOrder, capacity: int) -> None:
        super().__init__(rows, batch_sampler=order, collate_fn=lambda batch: lay_in_packs(batch, capacity))  # type: ignore[arg-type]
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.order.set_epoch(epoch)


def lay_in_packs(rows: Sequence[TokenSequence], capacity: int) -> list[PackedRows]:
    """Lay rows into as few packs of at most `capacity` tokens as best-fit decreasing finds."""
    packs = pack_rows([len(row) for row in rows], capacity)
    return [PackedRows.lay([rows[index] for index in pack]) for pack in packs]
