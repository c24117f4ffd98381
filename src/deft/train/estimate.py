"""What a run will take, before it starts: its rows and steps, its time on this machine, its memory on any.

In: the settings, a model's configuration, the encoded rows. Out: an `Estimate`. No weights are loaded and nothing is
written. `dryrun` prints it.
"""

import copy
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig

from deft.errors import UserError
from deft.model.checkpoint_files import first_line
from deft.model.load import choose_device, choose_dtype, quiet_transformers
from deft.prompt.format import EncodeResult
from deft.prompt.pack import pack_rows
from deft.train.config import TrainConfig
from deft.train.memory import (
    SHARDINGS,
    MemoryEstimate,
    Method,
    ModelSize,
    Sharding,
    StepTrace,
    divide,
    meta_model,
    model_size,
    trace_step,
)
from deft.train.order import RowOrder, split_evenly
from deft.train.run import weights_dtype

COMPUTE_OVERHEAD = {"cpu": 1.45, "cuda": 2.0, "mps": 2.0}
"""Time of a step over that of its matrix products at the measured rate; the CPU's was measured (docs/estimate.md)."""
ADAM_BYTES_MOVED_PER_PARAMETER = 28
"""AdamW in fp32 reads weight, gradient and two moments, and writes all but the gradient."""
LIBRARY_BYTES = {"cpu": 150_000_000, "cuda": 800_000_000, "mps": 0}
"""What libraries take once they compute. CPU: buffers, code and thread stacks that were not there after the imports, as
measured with a model of nearly no weights; CUDA: its context and the workspace of cuBLAS (not measured here)."""
PACK_STEP_TOKENS = 64
"""Advice on a pack's length is a multiple of this."""


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
    """What a run goes through. Tokens and packs are those of one epoch, packs those of the first.

    `largest_first` is the largest pack that begins an optimizer step, `largest_later` the largest of those that find
    gradients already there (None if there are none).
    """

    num_rows: int
    dropped: tuple[tuple[str, int], ...]
    num_shortened: int
    num_tokens: int
    num_supervised: int
    num_packs: int
    num_padding_tokens: int
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will take: `chosen` is its own memory, `others` that of other ways to train the same model."""

    workload: Workload
    size: ModelSize
    flop_per_epoch: float
    time_s: float
    speed: MachineSpeed
    chosen: MemoryEstimate
    others: tuple[MemoryEstimate, ...]
    device_memory_bytes: int | None
    advice: str | None


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
        num_rows=len(rows.sequences),
        dropped=tuple(sorted(Counter(row.reason for row in rows.dropped).items())),
        num_shortened=rows.num_shortened,
        num_tokens=sum(len(row) for row in rows.sequences),
        num_supervised=sum(row.num_supervised for row in rows.sequences),
        num_packs=num_packs,
        num_padding_tokens=0,  # rows are laid end to end
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
    """Return the floating-point operations of one epoch's matrix products, two for a multiplication and an addition.

    A weight takes part in one product forward, one backward for what came in, and one for its own gradient if it is
    trained; checkpointing adds a forward pass. Attention's two products see half of the square of a row; its backward
    pass has five of them (Dao 2023, section 3.1).
    """
    base = (3 if method == "full" else 2) + recomputes
    layers = work.num_tokens * (base * size.matrix_parameters + (3 + recomputes) * size.adapter_parameters)
    head = work.num_supervised * (3 if method == "full" else 2) * size.head_parameters
    forward = size.num_layers * work.sum_squared_lengths * attention_width
    return 2.0 * layers + 2.0 * head + forward * 2.0 * (1 + 2.5 + recomputes)


def run_time_s(flop_an_epoch: float, size: ModelSize, work: Workload, speed: MachineSpeed, num_devices: int) -> float:
    """Return the seconds of a run: its products at the measured rate times an overhead, and its optimizer steps."""
    num_epochs = work.num_steps / work.steps_per_epoch
    products_s = flop_an_epoch * num_epochs / speed.matmul_flop_per_s / num_devices
    step_s = size.num_trainable * ADAM_BYTES_MOVED_PER_PARAMETER / speed.memory_bytes_per_s
    return products_s * COMPUTE_OVERHEAD[speed.device] + work.num_steps * step_s


def measure_speed(hidden_size: int, dtype: torch.dtype, *, num_tokens: int = 512, for_s: float = 0.3) -> MachineSpeed:
    """Measure this machine for about a second, on a product of the model's shape; the best of several counts."""
    device = choose_device(None)
    left = torch.ones(num_tokens, hidden_size, dtype=dtype, device=device)
    right = torch.ones(hidden_size, 3 * hidden_size, dtype=dtype, device=device)
    block = torch.ones(1 << 23, dtype=torch.float32, device=device)
    product_s = best_s(lambda: left @ right, device, for_s)
    copy_s = best_s(lambda: block.add_(1.0), device, for_s)
    return MachineSpeed(
        device=device.type,
        matmul_flop_per_s=2.0 * num_tokens * hidden_size * 3 * hidden_size / product_s,
        memory_bytes_per_s=2.0 * block.numel() * 4 / copy_s,
    )


def best_s(work: Callable[[], object], device: torch.device, for_s: float) -> float:
    """Return the shortest time that `work` took within `for_s` seconds."""
    fastest, ends_at = math.inf, time.perf_counter() + for_s
    while time.perf_counter() < ends_at or fastest is math.inf:
        began_at = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        fastest = min(fastest, time.perf_counter() - began_at)
    return fastest


# --- memory ---------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """The formats a run computes with: that of the weights it holds, and of autocast products where it differs."""

    held: torch.dtype
    autocast: torch.dtype | None


def numbers_of(config: TrainConfig, method: Method) -> Numbers:
    """Return the number formats that `train` would use here for a method."""
    place = choose_device(None)
    compute = choose_dtype(place) if config.dtype == "auto" else getattr(torch, config.dtype)
    settings = dataclasses.replace(config, method="full" if method == "full" else "lora")
    name = weights_dtype(settings)
    held = compute if name == "auto" else getattr(torch, name)
    is_mixed = compute == torch.bfloat16 or (compute == torch.float16 and place.type == "cuda")
    return Numbers(held=held, autocast=compute if is_mixed else None)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Traces ways to train one model on one workload."""

    config: TrainConfig
    model_config: PreTrainedConfig
    work: Workload
    train_embeddings: bool

    def trace(
        self, method: Method, checkpointing: bool, *, max_pack_tokens: int | None = None
    ) -> tuple[ModelSize, list[StepTrace]]:
        """Trace the packs that may be the fullest: the largest that finds gradients, and a larger one that does not."""
        first, later = self.work.largest_first, self.work.largest_later
        numbers = numbers_of(self.config, method)
        traces = []
        for pack, has_gradients in ((later, True), (first, False)):
            if pack is None or (pack is first and later is not None and later.num_tokens >= first.num_tokens):
                continue
            lengths = shortened(pack.lengths, max_pack_tokens)
            model = self.model(method, checkpointing, numbers.held)
            num_supervised = min(pack.num_supervised, sum(lengths))
            traces.append(
                trace_step(model, lengths, num_supervised, autocast=numbers.autocast, has_gradients=has_gradients)
            )
        return model_size(self.model(method, False, numbers.held), method), traces

    def model(self, method: Method, checkpointing: bool, held: torch.dtype) -> object:
        """Return the model of one method on the meta device."""
        return meta_model(
            self.model_config,
            method=method,
            dtype=held,
            lora_rank=self.config.lora_rank,
            train_embeddings=self.train_embeddings,
            gradient_checkpointing=checkpointing,
        )

    def memory(
        self,
        method: Method,
        checkpointing: bool,
        traced: tuple[ModelSize, Sequence[StepTrace]],
        *,
        sharding: Sharding = "none",
        num_devices: int = 1,
    ) -> MemoryEstimate:
        """Return one device's memory for a traced way to train."""
        size, traces = traced
        numbers = numbers_of(self.config, method)
        return divide(
            size,
            traces,
            method=method,
            gradient_checkpointing=checkpointing,
            sharding=sharding,
            num_devices=num_devices,
            compute_bytes=(numbers.autocast or numbers.held).itemsize,
            library_bytes=LIBRARY_BYTES[choose_device(None).type],
        )

    def longest_pack(self, method: Method, checkpointing: bool, limit_bytes: int, num_devices: int) -> int | None:
        """Return the longest pack, in tokens, that fits into `limit_bytes`, if one that holds the longest row does."""

        def fits(num_tokens: int) -> bool:
            traced = self.trace(method, checkpointing, max_pack_tokens=num_tokens)
            return self.memory(method, checkpointing, traced, num_devices=num_devices).total_bytes <= limit_bytes

        work = self.work
        shortest = math.ceil(max(work.longest_row_tokens, 1) / PACK_STEP_TOKENS)
        low, high = shortest, work.largest_pack_tokens // PACK_STEP_TOKENS
        if low > high or not fits(low * PACK_STEP_TOKENS):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle * PACK_STEP_TOKENS) else (low, middle - 1)
        return low * PACK_STEP_TOKENS


def shortened(lengths: Sequence[int], max_tokens: int | None) -> tuple[int, ...]:
    """Return the first rows, the last of them cut, that come to at most `max_tokens`."""
    if max_tokens is None:
        return tuple(lengths)
    kept: list[int] = []
    for length in lengths:
        if room := min(length, max_tokens - sum(kept)):
            kept.append(room)
    return tuple(kept)


# --- all of it ------------------------------------------------------------------------------------------------------


def estimate(
    config: TrainConfig,
    model: PreTrainedConfig | str | Path,
    rows: EncodeResult,
    *,
    vocab_size: int | None = None,
    train_embeddings: bool = False,
    num_devices: int = 1,
    device_memory_bytes: int | None = None,
    speed: MachineSpeed | None = None,
    methods: Sequence[Method] = ("full", "lora", "dora", "qlora"),
) -> Estimate:
    """Return what the run that `config` describes will take.

    `model` is a configuration, or the folder of one; `vocab_size` what its embeddings are widened to, with
    `train_embeddings` where an adapter then trains them. Without `speed` this machine is measured. `methods` are the
    ways to compare, each with and without gradient checkpointing. `device_memory_bytes` asks for advice.

    Raises:
        UserError: if the model's configuration cannot be used.
    """
    model_config = model if isinstance(model, PreTrainedConfig) else read_model_config(Path(model))
    text_config = model_config.get_text_config()
    if vocab_size is not None and vocab_size > text_config.vocab_size:
        model_config = copy.deepcopy(model_config)
        text_config = model_config.get_text_config()
        text_config.vocab_size = vocab_size
    work = workload(config, rows, num_devices=num_devices)
    planner = Planner(config=config, model_config=model_config, work=work, train_embeddings=train_embeddings)
    own = (config.method, config.gradient_checkpointing)
    ways = list(dict.fromkeys([own, *((method, chosen) for method in methods for chosen in (False, True))]))
    traced: dict[tuple[Method, bool], tuple[ModelSize, list[StepTrace]]] = {}
    for way in ways:  # QLoRA keeps what LoRA keeps; only its weights are counted otherwise
        alike: tuple[Method, bool] = ("lora", way[1]) if way[0] in ("qlora", "rslora") else way
        if alike in traced:
            held = numbers_of(config, way[0]).held
            traced[way] = (model_size(planner.model(way[0], False, held), way[0]), traced[alike][1])
        else:
            traced[way] = planner.trace(*way)
    memories = [
        planner.memory(*way, traced[way], sharding=sharding, num_devices=num_devices)
        for way in ways
        for sharding in (SHARDINGS if num_devices > 1 else SHARDINGS[:1])
    ]
    size = traced[own][0]
    width = text_config.num_attention_heads * (
        getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    )
    flop = flop_per_epoch(size, work, width, method=own[0], recomputes=own[1])
    numbers = numbers_of(config, own[0])
    speed = speed or measure_speed(text_config.hidden_size, numbers.autocast or numbers.held)
    advice = None
    if device_memory_bytes is not None and memories[0].total_bytes > device_memory_bytes:
        advice = advise(planner, memories, device_memory_bytes, num_devices)
    return Estimate(
        workload=work,
        size=size,
        flop_per_epoch=flop,
        time_s=run_time_s(flop, size, work, speed, num_devices),
        speed=speed,
        chosen=memories[0],
        others=tuple(memories),
        device_memory_bytes=device_memory_bytes,
        advice=advice,
    )


def advise(planner: Planner, memories: Sequence[MemoryEstimate], limit_bytes: int, num_devices: int) -> str:
    """Say what would make a run fit that does not: the smallest change first."""
    own = memories[0]

    def fits(memory: MemoryEstimate) -> bool:
        return memory.total_bytes <= limit_bytes

    for checkpointing in dict.fromkeys((own.gradient_checkpointing, True)):
        flag = "--gradient-checkpointing" if checkpointing != own.gradient_checkpointing else ""
        alike = [m for m in memories if m.method == own.method and m.gradient_checkpointing == checkpointing]
        if flag and any(fits(memory) for memory in alike if memory.sharding == "none"):
            return f"{flag} makes it fit"
        if length := planner.longest_pack(own.method, checkpointing, limit_bytes, num_devices):
            limit = f"--max-length-tokens {length}" if length < planner.config.max_length_tokens else ""
            words = " ".join(filter(None, (flag, limit, f"--pack-length-tokens {length}")))
            return f"{words} makes it fit"
    for sharding in SHARDINGS[1:]:
        if any(fits(m) for m in memories if m.method == own.method and m.sharding == sharding):
            return f"sharding over the {num_devices} devices with {sharding} makes it fit"
    if found := next((memory for memory in memories if fits(memory)), None):
        with_it = " with --gradient-checkpointing" if found.gradient_checkpointing else ""
        return f"{found.method}{with_it} fits"
    return "no setting fits: take a smaller model, more devices (--devices), or shorter rows (--max-length-tokens)"


def read_model_config(folder: Path) -> PreTrainedConfig:
    """Read a model's configuration; no code of the checkpoint runs.

    Raises:
        UserError: if transformers cannot read it.
    """
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        fix = "copy or download its config.json again; an adapter is estimated by naming its base model"
        raise UserError(f"the configuration in {folder} cannot be read", got=first_line(error), fix=fix) from error
