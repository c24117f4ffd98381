"""Whole runs of deft's trainer: its loss curve beside an unpacked loop, a resumed run's weights, halved packs.

The models are random and have a byte tokenizer, so nothing is downloaded.
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.utils import clip_grad_norm_

from benchmarks.gpu.checks import TEXT, nll_alone, only_kernel
from benchmarks.gpu.parts import Line, checked, measured, tried
from benchmarks.resume_exact import final_weights
from deft.model import likelihood
from deft.model.device import choose_device
from deft.model.likelihood import PackedRows, SupervisedNLL
from deft.model.load import load_model
from deft.prompt.detect import chat_format_to_train
from deft.testing.tiny import save_tiny
from deft.training import run
from deft.training.config import NO_VALIDATION, TrainConfig
from deft.training.order import RowOrder
from deft.training.out_of_memory import free_memory
from deft.training.record import read_metrics
from deft.training.trainer import SupervisedTrainer
from deft.types import Example, Message

QUIET = Console(quiet=True)
CURVE_STEPS = 20
CURVE_ALLOWED = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats by which the loss of a step may be off after up to 20 steps: rounding, and what training makes of it."""
STOP_AFTER, SAVE_STEPS, RESUME_STEPS = 7, 3, 12
HALVING_STEPS = 3
HALVING_ALLOWED = {"float32": 1e-4, "bfloat16": 0.02}
LIMIT_RATIO = 0.65
"""Of the memory that the whole packs took: too little for them, enough for half of one."""


class Interrupted(Exception):
    """Ends a run between two checkpoints, as a crash would."""


def examples(num_rows: int, num_bytes: int) -> list[Example]:
    """Return rows of up to `num_bytes` of text, Chinese and English."""
    made = []
    for number in range(num_rows):
        reply = (TEXT * 16).encode()[number * 11 :][: max(num_bytes - 97 * (number % 4), 30)]
        told = reply.decode(errors="ignore")
        asked = f"第 {number} 题：请背诵。"
        made.append(Example.create([Message(role="user", content=asked), Message(role="assistant", content=told)]))
    return made


def model_in(folder: Path, *, small: bool, **shape: Any) -> Path:
    """Write a random Llama whose training is steady: its weights start as narrow as those of real models."""
    sizes = {"num_layers": 2, "hidden_size": 64} if small else {"num_layers": 8, "hidden_size": 512, "num_heads": 8}
    return save_tiny(folder / "model", "llama", seed=1, **(sizes | {"initializer_range": 0.05} | shape))


def settings(model: Path, folder: Path, **changes: Any) -> TrainConfig:
    """Return settings of a run that measures no validation loss."""
    values: dict[str, Any] = {
        "model": str(model),
        "output_dir": folder,
        "valid": (NO_VALIDATION,),
        "max_length_tokens": 512,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "lr_schedule": "constant",
        "weight_decay": 0.0,
        "show_rows": 0,
        "trainer": {"report_to": "none"},
    }
    return TrainConfig(**(values | changes))


def losses_of(config: TrainConfig, rows: Sequence[Example]) -> list[float]:
    """Train, and return the loss of each step."""
    folder = run.train(config, rows, [], QUIET).folder
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def most_apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Return the largest difference of two curves."""
    return max(abs(one - other) for one, other in zip(found, wanted, strict=True))


# --- the curve ------------------------------------------------------------------------------------------------------


def curve(small: bool) -> Iterator[Line]:
    """Compare 20 steps of the trainer with a loop that knows no packs, in both number formats."""
    with tempfile.TemporaryDirectory() as name:
        model = model_in(Path(name), small=small)
        rows = examples(12, 200 if small else 450)
        for dtype in ("float32", "bfloat16"):
            yield from tried(f"20 steps, {dtype}", partial(compare_curves, model, Path(name) / dtype, rows, dtype))


def compare_curves(model: Path, folder: Path, rows: Sequence[Example], dtype: str) -> Iterator[Line]:
    """Compare the curves in one number format; the weights themselves are in fp32 in both."""
    config = settings(model, folder, max_steps=CURVE_STEPS, dtype=dtype, max_grad_norm=1.0, pack_length_tokens=1024)
    with only_kernel("varlen") as calls:
        packed = losses_of(config, rows)
    alone = unpacked_losses(config, rows)
    off = most_apart(packed, alone)
    by_kernel = dtype == "bfloat16" and torch.cuda.is_available()
    yield checked(
        f"20 steps, {dtype}",
        f"loss {packed[0]:.3f} to {packed[-1]:.3f}; at most {off:.1e} nats off; varlen kernel {len(calls)} times",
        holds=off <= CURVE_ALLOWED[dtype] and packed[-1] < packed[0] and bool(calls) == by_kernel,
        allowed=f"{CURVE_ALLOWED[dtype]:g} nats, it falls, kernel {'used' if by_kernel else 'not used'}",
        packed=packed,
        alone=alone,
    )


def unpacked_losses(config: TrainConfig, examples: Sequence[Example]) -> list[float]:
    """Train as `config` says in a plain loop, each row in a forward pass of its own, and return the losses."""
    device = choose_device(None)
    loaded = load_model(config.model, dtype="float32")
    chat_format, _ = chat_format_to_train(loaded.tokenizer, loaded.path, config.chat_format)
    rows = run.encode(examples, loaded.tokenizer, chat_format, config, split="training", console=QUIET).sequences
    weights = list(loaded.model.parameters())
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate or 0.0, betas=betas, weight_decay=0.0)
    order = RowOrder(len(rows), config.batch_size, config.seed)
    in_16_bits = config.dtype == "bfloat16"
    found: list[float] = []
    loaded.model.train()
    while len(found) < CURVE_STEPS:
        order.set_epoch(len(found) // len(order))
        for batch in list(order)[: CURVE_STEPS - len(found)]:
            num_supervised = sum(rows[index].num_supervised for index in batch)
            loss = 0.0
            for index in batch:
                with torch.autocast(device.type, torch.bfloat16) if in_16_bits else nullcontext():
                    part = nll_alone(loaded.model, rows[index]) / num_supervised
                part.backward()
                loss += part.item()
            clip_grad_norm_(weights, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss)
    return found


# --- a resumed run --------------------------------------------------------------------------------------------------


def resume(small: bool) -> Iterator[Line]:
    """Compare a resumed run's weights with an uninterrupted one's: with deterministic kernels, and as kernels come."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA begins
    with tempfile.TemporaryDirectory() as name:
        model = model_in(Path(name), small=small)
        for method, deterministic in (("full", True), ("lora", True), ("full", False)):
            torch.use_deterministic_algorithms(deterministic)
            what = f"{method}, " + ("deterministic kernels" if deterministic else "kernels as they come")
            folder = Path(name) / what.replace(" ", "_")
            yield from tried(what, partial(compare_resumed, model, folder, method, what, deterministic))


def compare_resumed(model: Path, folder: Path, method: str, what: str, deterministic: bool) -> Iterator[Line]:
    """Compare one way to train; kernels as they come may differ, which is no fault."""
    rows = examples(12, 200)
    further = {"method": method, "max_steps": RESUME_STEPS, "save_steps": SAVE_STEPS}
    config = settings(model, folder / "whole", **further)
    run.train(config, rows, [], QUIET)
    stopped = settings(model, folder / "stopped", **further)
    with interrupted_after(STOP_AFTER):
        try:
            run.train(stopped, rows, [], QUIET)
        except Interrupted:
            pass
        else:
            raise AssertionError("the run was not interrupted")
    run.train(settings(model, folder / "stopped", resume_training=True, **further), rows, [], QUIET)
    wanted, found = (final_weights(folder / each) for each in ("whole", "stopped"))
    assert wanted.keys() == found.keys()
    off = max((wanted[each].float() - found[each].float()).abs().max().item() for each in wanted)
    same = all(torch.equal(wanted[each], found[each]) for each in wanted)
    seen = f"{len(wanted)} tensors " + ("identical" if same else f"differ by up to {off:.1e}")
    values = {"identical": same, "most_off": off}
    if deterministic:
        yield checked(what, seen, holds=same, allowed="identical", **values)
    else:
        yield measured(what, seen, **values)


@contextmanager
def interrupted_after(num_steps: int) -> Iterator[None]:
    """Have a run fail in the step after so many."""
    run_batch = SupervisedTrainer.run_batch

    def failing(self: SupervisedTrainer, *args: Any) -> Any:
        if self.state.global_step >= num_steps:
            raise Interrupted
        return run_batch(self, *args)

    with replaced(SupervisedTrainer, "run_batch", failing):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put something else in the place of an attribute while the context is open."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- halved packs ---------------------------------------------------------------------------------------------------


def halving(small: bool) -> Iterator[Line]:
    """Let a run have too little memory: it goes on with half packs, and the losses stay what they would have been."""
    on_gpu = torch.cuda.is_available()
    how = "memory of the device limited" if on_gpu else "an error put in, because there is no CUDA device"
    yield from tried(how, partial(compare_halved, how, small=small, on_gpu=on_gpu))


def compare_halved(how: str, *, small: bool, on_gpu: bool) -> Iterator[Line]:
    """Train with enough memory and with too little, and compare the losses."""
    num_rows = 8 if small else 32
    rows = examples(num_rows, 200 if small else 490)
    dtype = "bfloat16" if on_gpu else "float32"
    with tempfile.TemporaryDirectory() as name:
        model = model_in(Path(name), small=small)
        further = {
            "batch_size": num_rows,
            "max_steps": HALVING_STEPS,
            "pack_length_tokens": 512 * num_rows,
            "dtype": dtype,
            "learning_rate": 1e-4,
        }
        wanted = losses_of(settings(model, Path(name) / "whole", **further), rows)
        taken = torch.cuda.max_memory_reserved() if on_gpu else 0
        gc.collect()
        free_memory()
        with device_limited(round(taken * LIMIT_RATIO)) if on_gpu else packs_limited(200 * num_rows // 2):
            result = run.train(settings(model, Path(name) / "halved", **further), rows, [], QUIET)
        lines = read_metrics(result.folder)
    capacities = [line["pack_capacity_tokens"] for line in lines if "pack_capacity_tokens" in line]
    off = most_apart([line["loss"] for line in lines if "loss" in line], wanted)
    yield checked(
        how,
        f"packs of at most {' then '.join(map(str, capacities)) or 'as many as before'} tokens; {off:.1e} nats off",
        holds=bool(capacities) and off <= HALVING_ALLOWED[dtype],
        allowed=f"shorter packs, {HALVING_ALLOWED[dtype]:g} nats",
        capacities_tokens=capacities,
        most_off_nats=off,
        taken_bytes=taken,
    )


@contextmanager
def device_limited(num_bytes: int) -> Iterator[None]:
    """Let PyTorch have so much of the CUDA device's memory, and no more."""
    total = torch.cuda.get_device_properties(choose_device(None)).total_memory
    torch.cuda.set_per_process_memory_fraction(num_bytes / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def packs_limited(num_tokens: int) -> Any:
    """Have packs of more tokens run out of memory while they train."""
    plain: Callable[..., SupervisedNLL] = likelihood.supervised_nll

    def limited(model: Any, packed: PackedRows) -> SupervisedNLL:
        if torch.is_grad_enabled() and packed.num_tokens > num_tokens:
            raise torch.OutOfMemoryError("out of memory, said for a test")
        return plain(model, packed)

    return replaced(likelihood, "supervised_nll", limited)
