"""What a run will take, before it starts: its rows and steps, its time on this machine, its memory on any.

In: the settings, a model's configuration, the encoded rows. Out: an `Estimate`. No weights are loaded and nothing is
written. `dry_run` prints it.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from deft.estimate.memory import BY_DEEPSPEED, SHARDINGS, MemoryEstimate, Sharding, divide, meta_model
from deft.estimate.trace import StepTrace, trace_step
from deft.estimate.workload import MachineSpeed, Workload, flop_per_epoch, measure_speed, run_time_s, workload
from deft.model.cost import ADAM_BYTES_PER_PARAMETER, Method, ModelSize, attention_width, model_size
from deft.model.device import choose_device, choose_dtype
from deft.model.matmul import choose_kernel, multiplies_in_bfloat16
from deft.model.size import read_model_config
from deft.prompt.encode import EncodeResult
from deft.training.arguments import further_settings
from deft.training.config import TrainConfig
from deft.training.prepare import weights_dtype

LIBRARY_BYTES = {"cpu": 20_000_000, "cuda": 800_000_000, "mps": 0}
"""What libraries take once they compute. CPU: code and buffers that were not there after the imports, measured in the
steps of a model with nearly no weights; CUDA: its context and the workspace of cuBLAS (not measured here)."""
SAVING_BYTES = {"cpu": 115_000_000, "cuda": 800_000_000, "mps": 0}
"""What they take when a run has saved its checkpoint and drawn its figure; measured likewise."""
TOKENIZER_BYTES_PER_TOKEN = 680
"""What a tokenizer takes on the CPU for each entry of its vocabulary; measured with SmolLM2's 49,152."""
PACK_STEP_TOKENS = 64
"""Advice on a pack's length is a multiple of this."""


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


class Numbers(NamedTuple):
    """The formats a run computes with: that of the weights it holds, and of autocast products where it differs."""

    held: torch.dtype
    autocast: torch.dtype | None


def numbers_of(config: TrainConfig, method: Method) -> Numbers:
    """Return the number formats that `train` would use here for a method."""
    place = choose_device(None)
    compute = choose_dtype(place) if config.dtype == "auto" else getattr(torch, config.dtype)
    settings = dataclasses.replace(config, method="full" if method == "full" else "lora")
    held = getattr(torch, weights_dtype(settings))
    is_mixed = compute == torch.bfloat16 or (compute == torch.float16 and place.type == "cuda")
    return Numbers(held=held, autocast=compute if is_mixed else None)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Traces ways to train one model on one workload."""

    config: TrainConfig
    model_config: PreTrainedConfig
    work: Workload
    train_embeddings: bool
    for_another_device: bool = False

    def trace(
        self,
        method: Method,
        checkpointing: bool,
        *,
        max_pack_tokens: int | None = None,
        numbers: Numbers | None = None,
    ) -> tuple[ModelSize, list[StepTrace]]:
        """Trace the packs that may be the fullest: the largest that finds gradients, and a larger one that does not.

        An adapter's gradients are so small that the larger of the two is traced alone, as if it found them. `numbers`
        are those that `train` would use, unless given.
        """
        first, later = self.work.largest_first, self.work.largest_later
        candidates = [(first, False)]
        if later is not None and (method != "full" or later.num_tokens >= first.num_tokens):
            candidates = [(max(later, first, key=lambda pack: pack.num_tokens), True)]
        elif later is not None:
            candidates.append((later, True))
        numbers = numbers or numbers_of(self.config, method)
        traces = []
        for pack, has_gradients in candidates:
            lengths = shortened(pack.lengths, max_pack_tokens)
            model = self.model(method, checkpointing, numbers.held)
            num_supervised = min(pack.num_supervised, sum(lengths))
            traces.append(
                trace_step(model, lengths, num_supervised, autocast=numbers.autocast, has_gradients=has_gradients)
            )
        return model_size(self.model(method, False, numbers.held), method), traces

    def trace_as_deepspeed(
        self, method: Method, checkpointing: bool, *, max_pack_tokens: int | None = None
    ) -> tuple[ModelSize, list[StepTrace]]:
        """Trace a fully trained model as DeepSpeed holds it in mixed precision: the model itself in 16 bits.

        Beside AdamW's moments, and divided as they are, is a copy of the weights in fp32 (Rajbhandari et al. 2020,
        section 3.1).
        """
        in_16_bits = numbers_of(self.config, method).autocast
        assert in_16_bits is not None
        numbers = Numbers(held=in_16_bits, autocast=None)
        size, traces = self.trace(method, checkpointing, max_pack_tokens=max_pack_tokens, numbers=numbers)
        states_bytes = size.num_trainable * (ADAM_BYTES_PER_PARAMETER + torch.float32.itemsize)
        return dataclasses.replace(size, optimizer_bytes=states_bytes), traces

    def model(self, method: Method, checkpointing: bool, held: torch.dtype) -> object:
        """Return the model of one method on the meta device."""
        return meta_model(
            self.model_config,
            method=method,
            dtype=held,
            lora_rank=self.config.lora_rank,
            lora_targets=self.config.lora_targets,
            lora_dropout=self.config.lora_dropout,
            train_embeddings=self.train_embeddings,
            gradient_checkpointing=checkpointing,
            checkpointing_keeps=self.config.checkpointing_keeps,
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
        place = choose_device(None).type
        if place == "cpu" and numbers.autocast and (self.for_another_device or not multiplies_in_bfloat16()):
            place = "cuda"  # nobody trains in 16 bits here: the run is planned for a GPU
        vocabulary = self.model_config.get_text_config().vocab_size
        tokenizer_bytes = vocabulary * TOKENIZER_BYTES_PER_TOKEN if place == "cpu" else 0
        return divide(
            size,
            traces,
            method=method,
            gradient_checkpointing=checkpointing,
            sharding=sharding,
            num_devices=num_devices,
            compute_bytes=(numbers.autocast or numbers.held).itemsize,
            library_bytes=LIBRARY_BYTES[place] + tokenizer_bytes,
            saving_bytes=SAVING_BYTES[place] + tokenizer_bytes,
        )

    def holds_16_bits(self, method: Method, sharding: Sharding) -> bool:
        """Say whether DeepSpeed holds the weights, in 16 bits."""
        return sharding in BY_DEEPSPEED and method == "full" and numbers_of(self.config, method).autocast is not None

    def longest_pack(self, own: MemoryEstimate, checkpointing: bool, limit_bytes: int) -> int | None:
        """Return the longest pack, in tokens, that fits into `limit_bytes`, if one that holds the longest row does."""
        trace = self.trace_as_deepspeed if self.holds_16_bits(own.method, own.sharding) else self.trace

        def fits(num_tokens: int) -> bool:
            traced = trace(own.method, checkpointing, max_pack_tokens=num_tokens)
            shared = {"sharding": own.sharding, "num_devices": own.num_devices}
            return self.memory(own.method, checkpointing, traced, **shared).total_bytes <= limit_bytes  # type: ignore[arg-type]

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
    planner = Planner(
        config=config,
        model_config=model_config,
        work=work,
        train_embeddings=train_embeddings,
        for_another_device=num_devices > 1 or device_memory_bytes is not None,
    )
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
    shardings = SHARDINGS if num_devices > 1 else SHARDINGS[:1]
    as_deepspeed = {
        way: planner.trace_as_deepspeed(*way)
        for way in ways
        if any(planner.holds_16_bits(way[0], sharding) for sharding in shardings)
    }
    memories = [
        planner.memory(
            *way,
            as_deepspeed[way] if planner.holds_16_bits(way[0], sharding) else traced[way],
            sharding=sharding,
            num_devices=num_devices,
        )
        for way in ways
        for sharding in shardings
    ]
    chosen = memories[shardings.index(sharding_of(config) if num_devices > 1 else "none")]
    size = traced[own][0]
    flop = flop_per_epoch(size, work, attention_width(text_config), method=own[0], recomputes=own[1])
    numbers = numbers_of(config, own[0])
    if speed is None:
        shaped = planner.model(own[0], False, numbers.held)
        kernel = choose_kernel(shaped, work.largest_pack_tokens, config.matmul, device=choose_device(None)).kernel
        speed = measure_speed(text_config.hidden_size, numbers.autocast or numbers.held, kernel)
    advice = None
    if device_memory_bytes is not None and chosen.total_bytes > device_memory_bytes:
        advice = advise(planner, chosen, memories, device_memory_bytes)
    return Estimate(
        workload=work,
        size=size,
        flop_per_epoch=flop,
        time_s=run_time_s(flop, size, work, speed, num_devices),
        speed=speed,
        chosen=chosen,
        others=tuple(memories),
        device_memory_bytes=device_memory_bytes,
        advice=advice,
    )


def sharding_of(config: TrainConfig) -> Sharding:
    """Return how the settings share a model among devices."""
    settings = further_settings(config.trainer)
    if settings.get("fsdp"):
        return "fsdp2"
    deepspeed = settings.get("deepspeed")
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0) if isinstance(deepspeed, dict) else 0
    return SHARDINGS[stage] if stage in (1, 2, 3) else "none"


def advise(planner: Planner, own: MemoryEstimate, memories: Sequence[MemoryEstimate], limit_bytes: int) -> str:
    """Say what would make a run fit that does not: the smallest change first."""

    def fits(memory: MemoryEstimate) -> bool:
        return memory.total_bytes <= limit_bytes

    for checkpointing in dict.fromkeys((own.gradient_checkpointing, True)):
        flag = "--gradient-checkpointing" if checkpointing != own.gradient_checkpointing else ""
        alike = [m for m in memories if m.method == own.method and m.gradient_checkpointing == checkpointing]
        if flag and any(fits(memory) for memory in alike if memory.sharding == own.sharding):
            return f"{flag} makes it fit"
        fixed_bytes = own.weights_bytes + own.optimizer_bytes + own.library_bytes
        if fixed_bytes < limit_bytes and (length := planner.longest_pack(own, checkpointing, limit_bytes)):
            limit = f"--max-length-tokens {length}" if length < planner.config.max_length_tokens else ""
            words = " ".join(filter(None, (flag, limit, f"--pack-length-tokens {length}")))
            return f"{words} makes it fit"
    for sharding in SHARDINGS[1:]:
        if any(fits(m) for m in memories if m.method == own.method and m.sharding == sharding):
            return f"sharding over the {own.num_devices} devices with {sharding} makes it fit"
    if found := next((memory for memory in memories if fits(memory)), None):
        with_it = " with --gradient-checkpointing" if found.gradient_checkpointing else ""
        return f"{found.method}{with_it} fits"
    return "no setting fits: take a smaller model, more devices (--devices), or shorter rows (--max-length-tokens)"
