"""How a run multiplies on a CPU: in which number format, and by which kernels.

In: the settings, the model, the rows. Out: settings with nothing left open, and the kernel that all processes use.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deft.errors import UserError
from deft.files import read_object
from deft.model.device import choose_device
from deft.model.matmul import (
    IN_16_BITS,
    KERNELS,
    Choice,
    Kernel,
    choose_kernel,
    exact_kernels,
    multiplies_in_bfloat16,
)
from deft.screen import say
from deft.training.config import TrainConfig
from deft.types import TokenSequence

NAMES = {"plain": "MKL" if torch.backends.mkl.is_available() else "PyTorch's own", "onednn": "oneDNN"}
WORTH_SAYING = 1.1
"""How many times as fast bfloat16 must be for the log to say so."""


def with_fast_dtype(config: TrainConfig) -> TrainConfig:
    """Return the settings with the number format that `fast` asks for.

    Raises:
        UserError: if they ask for another one as well.
    """
    if not config.fast:
        return config
    if config.dtype not in ("auto", "bfloat16"):
        got = f"fast beside dtype {config.dtype}"
        raise UserError("fast means bfloat16 where the processor has it", got=got, fix="leave one of the two out")
    on_cpu = choose_device(None).type == "cpu"
    return dataclasses.replace(config, dtype="bfloat16") if on_cpu and multiplies_in_bfloat16() else config


def chosen_kernel(
    config: TrainConfig, model: Any, rows: Sequence[TokenSequence], unfinished: Path | None, console: Console
) -> Kernel:
    """Return the kernel for the products of a run, and say what was chosen and what else there is.

    An unfinished run goes on with the one that it began with, since another one rounds other bits.

    Raises:
        UserError: if the settings ask for one whose products are not exact here.
    """
    begun_with = read_object(unfinished / "run.json").get("products") if unfinished is not None else None
    wanted = begun_with if begun_with in KERNELS and config.matmul == "auto" else config.matmul
    if wanted == begun_with and begun_with not in exact_kernels():
        what = "[yellow]note:[/] the run began with {name}, which rounds on this processor: it goes on with {other}"
        say(console, what, name=NAMES[begun_with], other=NAMES["plain"], fold=True)
        wanted = "plain"
    choice = choose_kernel(model, pack_tokens(config, rows), wanted, device=choose_device(None))
    if choice.measured and config.dtype in ("auto", "float32"):
        tell_choice(choice, console)
    return choice.kernel


def pack_tokens(config: TrainConfig, rows: Sequence[TokenSequence]) -> int:
    """Return how many tokens a forward pass of the run holds, about."""
    mean = sum(map(len, rows)) / len(rows)
    return round(min(config.batch_size * mean, config.pack_capacity_tokens))


def tell_choice(choice: Choice, console: Console) -> None:
    """Say which kernel multiplies, how fast, how exactly, and what bfloat16 would bring."""
    other: Kernel = "plain" if choice.kernel == "onednn" else "onednn"
    mine, others = choice.measured[choice.kernel], choice.measured[other]
    say(
        console,
        "matrix products by {name}: {rate:,.0f} GFLOP/s ({other} {other_rate:,.0f}), relative error {error:.0e}",
        name=NAMES[choice.kernel],
        rate=mine.flop_per_s / 1e9,
        other=NAMES[other],
        other_rate=others.flop_per_s / 1e9,
        error=mine.error,
        fold=True,
    )
    gain = choice.times_as_fast(IN_16_BITS, choice.kernel)
    if gain >= WORTH_SAYING:
        say(console, "in bfloat16 they are {gain:.1f} times as fast: --fast", gain=gain, fold=True)
