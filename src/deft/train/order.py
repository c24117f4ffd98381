"""Which rows a step trains on: a function of (seed, epoch, step) alone, so that a resumed run sees the same order.

The rows of a step do not depend on the number of processes that share them either; only who takes which does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Sampler

from deft.model.likelihood import PackedRows
from deft.prompt.pack import pack_rows
from deft.types import TokenSequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One process among those that train together: `rank` counts from 0 to `world_size` - 1."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """What one process does of an accumulation batch.

    Every process runs the same number of packs, because sharded models exchange weights in each; a process with fewer
    packs of its own runs one again as an `idle` pack, whose loss counts nothing. `num_supervised` counts the supervised
    tokens of all processes together.
    """

    packs: tuple[PackedRows, ...]
    idle_packs: tuple[PackedRows, ...]
    num_supervised: int

    @property
    def passes(self) -> list[tuple[PackedRows, bool]]:
        """Every pack to run, with whether it counts."""
        return [(pack, True) for pack in self.packs] + [(pack, False) for pack in self.idle_packs]


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
    """The batches of one process: its share of each batch of rows, laid out in packs of at most `capacity` tokens."""

    def __init__(self, rows: Sequence[TokenSequence], order: RowOrder, capacity: int, share: Share) -> None:
        collate = partial(share_of_batch, capacity=capacity, share=share)
        super().__init__(rows, batch_sampler=order, collate_fn=collate)  # type: ignore[arg-type]
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.order.set_epoch(epoch)


def share_of_batch(rows: Sequence[TokenSequence], capacity: int, share: Share) -> Batch:
    """Return what the process `share` does of a batch of rows; every process computes the whole plan alike."""
    plans = [lay_in_packs(own, capacity) for own in split_evenly(rows, share.world_size)]
    num_packs = max(len(plan) for plan in plans)
    packs = plans[share.rank]
    idle = [packs[0] if packs else PackedRows.lay(rows[:1])] * (num_packs - len(packs))
    return Batch(packs=tuple(packs), idle_packs=tuple(idle), num_supervised=sum(row.num_supervised for row in rows))


def split_evenly(rows: Sequence[TokenSequence], num_parts: int) -> list[list[TokenSequence]]:
    """Split rows into parts of nearly equal numbers of tokens: the longest first, each to the part with the fewest."""
    parts: list[list[TokenSequence]] = [[] for _ in range(num_parts)]
    tokens = [0] * num_parts
    for row in sorted(rows, key=lambda row: (-len(row), row.id)):
        least = tokens.index(min(tokens))
        parts[least].append(row)
        tokens[least] += len(row)
    return parts


def lay_in_packs(rows: Sequence[TokenSequence], capacity: int) -> list[PackedRows]:
    """Lay rows into as few packs of at most `capacity` tokens as best-fit decreasing finds."""
    packs = pack_rows([len(row) for row in rows], capacity)
    return [PackedRows.lay([rows[index] for index in pack]) for pack in packs]
