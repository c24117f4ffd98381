"""Which rows a step trains on: a function of (seed, epoch, step) alone, so that a resumed run sees the same order.

The rows of a step do not depend on the number of processes that share them either; only who takes which does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Pass(NamedTuple):
    """One forward and backward pass over a pack; one that does not count only keeps step with the other processes."""

    pack: PackedRows
    counts: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """The rows of an accumulation batch, of all processes together, and which process this is."""

    rows: tuple[TokenSequence, ...]
    share: Share

    @property
    def num_supervised(self) -> int:
        """The supervised tokens of all processes together."""
        return sum(row.num_supervised for row in self.rows)

    def passes(self, capacity: int) -> list[Pass]:
        """Return what this process runs: its rows in packs of at most `capacity` tokens (a longer row is one alone).

        Every process computes the whole plan alike and runs as many packs as the others, because sharded models
        exchange weights in each; one with fewer packs of its own runs one again, and it counts nothing.
        """
        plans = [lay_in_packs(own, capacity) for own in split_evenly(self.rows, self.share.world_size)]
        packs = plans[self.share.rank]
        num_idle = max(map(len, plans)) - len(packs)
        idle = packs[0] if packs else PackedRows.lay(self.rows[:1])
        return [Pass(pack, counts=True) for pack in packs] + [Pass(idle, counts=False)] * num_idle


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
    """The batches of one process, in the order of a `RowOrder`."""

    def __init__(self, rows: Sequence[TokenSequence], order: RowOrder, share: Share) -> None:
        super().__init__(rows, batch_sampler=order, collate_fn=lambda rows: Batch(rows=tuple(rows), share=share))  # type: ignore[arg-type]
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.order.set_epoch(epoch)


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
    """Lay rows into as few packs of at most `capacity` tokens, or the longest row's, as best-fit decreasing finds."""
    lengths = [len(row) for row in rows]
    packs = pack_rows(lengths, max(capacity, *lengths, 1))
    return [PackedRows.lay([rows[index] for index in pack]) for pack in packs]
