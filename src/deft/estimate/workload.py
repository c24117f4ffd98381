"""The work of a run: its batches, packs and steps as training will go through them, and the time they will take.

In: the settings and the encoded rows. Out: counts, the largest packs, floating-point operations, seconds.
"""

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deft.model.cost import Method, ModelSize, flop_of
from deft.model.device import choose_device
from deft.model.matmul import Kernel, products_by
from deft.prompt.encode import EncodeResult
from deft.prompt.pack import pack_rows
from deft.training.config import TrainConfig
from deft.training.order import RowOrder, split_evenly

COMPUTE_OVERHEAD = {"cpu": 1.5, "cuda": 2.0, "mps": 2.0}
"""Time of a step over that of its matrix products: 84 % of a profiled step on a CPU; an assumption on a GPU."""
ADAM_BYTES_MOVED_PER_PARAMETER = 28
"""AdamW in fp32 reads weight, gradient and two moments, and writes all but the gradient."""
MEASURED_TOKENS = 512
"""Rows of the product whose rate is measured."""
MEASURED_S = 0.5
"""For how long each of the two rates is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """A pack by its size alone."""

    lengths: tuple[int, ...]
    num_supervised: int

    @property
    def num_tokens(self) -> int:
        """All its tokens."""
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What a run goes through. Tokens and packs are those of one epoch, packs those of the first; steps and batches
    count sequences, of which a row has several where its chat template rewrites earlier turns.

    `largest_first` is the largest pack that begins an optimizer step, `largest_later` the largest of those that find
    gradients already there (None if there are none).
    """

    num_rows: int
    num_sequences: int
    dropped: tuple[tuple[str, int], ...]
    num_shortened: int
    num_tokens: int
    num_supervised: int
    num_packs: int
    steps_per_epoch: int
    num_steps: int
    longest_row_tokens: int
    sum_squared_lengths: int
    largest_first: Pack
    largest_later: Pack | None

    @property
    def largest_pack_tokens(self) -> int:
        """The tokens of the largest pack of all."""
        return max(pack.num_tokens for pack in (self.largest_first, self.largest_later) if pack is not None)

    @property
    def largest_pack_supervised(self) -> int:
        """The most supervised tokens that a pack has."""
        return max(pack.num_supervised for pack in (self.largest_first, self.largest_later) if pack is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpeed:
    """What this machine was measured to do: matrix products, and reading and writing memory."""

    device: str
    matmul_flop_per_s: float
    memory_bytes_per_s: float


# --- the work -------------------------------------------------------------------------------------------------------


def workload(config: TrainConfig, rows: EncodeResult, *, num_devices: int = 1) -> Workload:
    """Lay the rows out in batches and packs for every epoch, as training will, and count.

    The order differs from epoch to epoch, so each is gone through for its largest pack.
    """
    batch_size = config.batch_size * num_devices
    order = RowOrder(len(rows.sequences), batch_size, config.seed)
    steps_per_epoch = math.ceil(len(order) / config.gradient_accumulation)
    num_steps = config.max_steps or steps_per_epoch * config.num_epochs
    first: list[Pack] = []
    later: list[Pack] = []
    num_packs = 0
    for epoch in range(math.ceil(num_steps / steps_per_epoch)):
        order.set_epoch(epoch)
        for number, batch in enumerate(order):
            if epoch * steps_per_epoch + number // config.gradient_accumulation >= num_steps:
                break
            for own in split_evenly([rows.sequences[index] for index in batch], num_devices):
                packs = pack_rows([len(row) for row in own], config.pack_capacity_tokens)
                num_packs += len(packs) if epoch == 0 else 0
                for place, pack in enumerate(packs):
                    found = Pack(
                        lengths=tuple(len(own[index]) for index in pack),
                        num_supervised=sum(own[index].num_supervised for index in pack),
                    )
                    begins = place == 0 and number % config.gradient_accumulation == 0
                    (first if begins else later).append(found)
        first, later = [largest(first)], [largest(later)] if later else []
    return Workload(
        num_rows=rows.num_rows,
        num_sequences=len(rows.sequences),
        dropped=tuple(sorted(Counter(row.reason for row in rows.dropped).items())),
        num_shortened=rows.num_shortened,
        num_tokens=sum(len(row) for row in rows.sequences),
        num_supervised=sum(row.num_supervised for row in rows.sequences),
        num_packs=num_packs,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        longest_row_tokens=max(len(row) for row in rows.sequences),
        sum_squared_lengths=sum(len(row) ** 2 for row in rows.sequences),
        largest_first=first[0],
        largest_later=later[0] if later else None,
    )


def largest(packs: Sequence[Pack]) -> Pack:
    """Return the pack with the most tokens, with the most supervised tokens that any of them has."""
    longest = max(packs, key=lambda pack: pack.num_tokens)
    return dataclasses.replace(longest, num_supervised=max(pack.num_supervised for pack in packs))


# --- time -----------------------------------------------------------------------------------------------------------


def flop_per_epoch(size: ModelSize, work: Workload, attention_width: int, *, method: Method, recomputes: bool) -> float:
    """Return the floating-point operations of one epoch's matrix products."""
    return flop_of(
        size,
        num_tokens=work.num_tokens,
        num_supervised=work.num_supervised,
        sum_squared_lengths=work.sum_squared_lengths,
        attention_width=attention_width,
        method=method,
        recomputes=recomputes,
    )


def run_time_s(flop_an_epoch: float, size: ModelSize, work: Workload, speed: MachineSpeed, num_devices: int) -> float:
    """Return the seconds of a run: its products at the measured rate times an overhead, and its optimizer steps."""
    num_epochs = work.num_steps / work.steps_per_epoch
    products_s = flop_an_epoch * num_epochs / speed.matmul_flop_per_s / num_devices
    step_s = size.num_trainable * ADAM_BYTES_MOVED_PER_PARAMETER / speed.memory_bytes_per_s
    return products_s * COMPUTE_OVERHEAD[speed.device] + work.num_steps * step_s


def measure_speed(hidden_size: int, dtype: torch.dtype, kernel: Kernel) -> MachineSpeed:
    """Measure this machine for about a second, on a product of the model's shape; the median of many counts.

    So other work that the machine is busy with is in it. `kernel` is the one that the run will use.
    """
    device = choose_device(None)
    left = torch.ones(MEASURED_TOKENS, hidden_size, dtype=dtype, device=device)
    right = torch.ones(hidden_size, 3 * hidden_size, dtype=dtype, device=device)
    block = torch.ones(1 << 25, dtype=torch.float32, device=device)
    with products_by(kernel):
        product_s = median_s(lambda: left @ right, device)
    copy_s = median_s(lambda: block.add_(1.0), device)
    return MachineSpeed(
        device=device.type,
        matmul_flop_per_s=2.0 * MEASURED_TOKENS * hidden_size * 3 * hidden_size / product_s,
        memory_bytes_per_s=2.0 * block.numel() * 4 / copy_s,
    )


def median_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time that `work` takes, repeated for `MEASURED_S`."""
    taken: list[float] = []
    ends_at = time.perf_counter() + MEASURED_S
    while time.perf_counter() < ends_at or not taken:
        began_at = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        taken.append(time.perf_counter() - began_at)
    return statistics.median(taken)
