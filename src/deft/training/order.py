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
    def total_weight(self) -> float:
        """The loss weights of the supervised tokens of all processes together, added up."""
        return sum(row.total_weight for row in self.rows)

    def passes(self, capacity: int) -> list[Pass]:
        """Return what this process runs: its rows in packs of at most `capacity` tokens (a longer row is one alone).

        Every process computes the whole plan alike and runs as many packs as the others, because sharded models
        exchange weights in each; one with fewer packs of its own runs one again, and it counts nothing. A batch without
        rows, which an epoch that was cut in two may have, runs nothing anywhere.
        """
        if not self.rows:
            return []
        plans = [lay_in_packs(own, capacity) for own in split_evenly(self.rows, self.share.world_size)]
        packs = plans[self.share.rank]
        num_idle = max(map(len, plans)) - len(packs)
        idle = packs[0] if packs else PackedRows.lay(self.rows[:1])
        return [Pass(pack, counts=True) for pack in packs] + [Pass(idle, counts=False)] * num_idle


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands after `step` optimizer steps: it has met `num_met` rows of an `epoch`, counted from 0."""

    step: int = 0
    epoch: int = 0
    num_met: int = 0


class RowOrder(Sampler[list[int]]):
    """Batches of row indices: every row once per epoch, shuffled by (seed, epoch).

    A run that goes on at a `position` in the middle of an epoch, perhaps with other numbers of rows in a step, meets
    the rows that are left of it and no other: that epoch begins with as many empty batches as are to be skipped.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, *, accumulation: int = 1, position: Position | None = None
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.accumulation = accumulation
        self.position = position or Position()
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch."""
        return math.ceil(len(self) / self.accumulation)

    @property
    def steps_left(self) -> int:
        """Optimizer steps of the epoch at `position` that are still to be taken."""
        return math.ceil((self.num_rows - self.position.num_met) / (self.batch_size * self.accumulation))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows).tolist()
        if self.epoch == self.position.epoch and self.position.num_met:
            yield from self.rest(order[self.position.num_met :])
            return
        for start in range(0, self.num_rows, self.batch_size):
            yield order[start : start + self.batch_size]

    def rest(self, rows: list[int]) -> Iterator[list[int]]:
        """Yield the batches of an epoch of which only `rows` are left.

        Each step has as many batches as it has in a whole epoch (the last one may have fewer), so some may be empty;
        they come first, because gradients are exchanged after the last batch of a step.
        """
        num_skipped = self.steps_per_epoch - self.steps_left
        yield from [[]] * (num_skipped * self.accumulation)
        in_last_step = len(self) - (self.steps_per_epoch - 1) * self.accumulation
        rows_per_step = self.batch_size * self.accumulation
        for number in range(self.steps_left):
            step = rows[number * rows_per_step : (number + 1) * rows_per_step]
            num_batches = in_last_step if number == self.steps_left - 1 else self.accumulation
            size = max(self.batch_size, math.ceil(len(step) / num_batches))
            starts = range(len(step) - num_batches * size, len(step), size)
            yield from (step[max(start, 0) : max(start + size, 0)] for start in starts)


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
