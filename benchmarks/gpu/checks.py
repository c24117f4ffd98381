"""Packed equals separate, on every attention kernel: the losses, and the gradients, of rows in one pack and alone."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.parts import Line, checked, skipped, tried
from deft.model import attention
from deft.model.attention import rows_apart
from deft.model.device import choose_device
from deft.model.likelihood import PackedRows, supervised_nll
from deft.model.selftest import TOLERANCE_NATS, check_packing
from deft.testing.tiny import Architecture, tiny_model
from deft.types import IGNORED_LABEL, TokenSequence

TEXT = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。The quick brown fox jumps over the lazy dog. "
ROW_LENGTHS = (40, 2, 23, 301, 128)
"""A row of two tokens, rows on both sides of the tiny Gemma's window of 16, and multiples of no block size."""
SHAPE = {"num_layers": 4, "hidden_size": 256, "initializer_range": 0.05}
"""Heads of 64, as small models have them, and weights narrow enough that rounding in 16 bits stays small."""
ALLOWED_TIMES = 2.0
"""How many times as far from the gradient in fp32 a pack in 16 bits may be as rows alone in 16 bits are."""
ROUNDING = 1e-3
"""Relative distance of gradients that may be rounding in fp32; a leak is hundreds of times as far."""


def rows() -> list[TokenSequence]:
    """Return rows of Chinese and English bytes; the first half of each is its prompt."""
    data = (TEXT * 8).encode()
    made = []
    for number, length in enumerate(ROW_LENGTHS):
        ids = np.frombuffer(data[number * 7 : number * 7 + length], dtype=np.uint8).astype(np.int32)
        labels = np.where(np.arange(length) < max(length // 2, 1), IGNORED_LABEL, ids).astype(np.int32)
        made.append(TokenSequence(id=f"行{number}", input_ids=ids, labels=labels))
    return made


def packed(small: bool) -> Iterator[Line]:
    """Compare every architecture in both number formats on both kernels."""
    for architecture, dtype, kernel in product(
        get_args(Architecture), (torch.bfloat16, torch.float32), ("varlen", "SDPA")
    ):
        what = f"{architecture}, {str(dtype).removeprefix('torch.')}, {kernel}"
        if why := why_not(architecture, dtype, kernel):
            yield skipped(what, why)
        else:
            yield from tried(what, partial(compare, architecture, dtype, kernel, what))


def why_not(architecture: str, dtype: torch.dtype, kernel: str) -> str | None:
    """Say why a kernel does not run on something, if it does not."""
    if kernel != "varlen":
        return None
    if dtype == torch.float32:
        return "the kernel computes in 16 bits"
    if architecture == "baichuan2":
        return "the kernel knows no ALiBi"
    return None if torch.cuda.is_available() else "needs CUDA"


def compare(architecture: Architecture, dtype: torch.dtype, kernel: str, what: str) -> Iterator[Line]:
    """Compare losses as deft's own test before a run does, and gradients with those of rows alone in fp32."""
    model = tiny_model(architecture, seed=4, **SHAPE).to(choose_device(None), dtype)
    with only_kernel(kernel) as calls:
        difference = check_packing(model, rows())
        in_pack = gradient(model, rows(), in_pack=True)
    assert bool(calls) == (kernel == "varlen"), f"{len(calls)} calls of the varlen kernel"
    exact = gradient(copy.deepcopy(model).float(), rows(), in_pack=False)
    off, off_alone = (distance(each, exact) for each in (in_pack, gradient(model, rows(), in_pack=False)))
    allowed = max(ALLOWED_TIMES * off_alone, ROUNDING)
    yield checked(
        what,
        f"loss {difference:.1e} nats off, gradient {off:.1e} (rows alone {off_alone:.1e})",
        holds=off <= allowed,
        allowed=f"{TOLERANCE_NATS[dtype]:g} nats, {allowed:.1e}",
        loss_off_nats=difference,
        gradient_off=off,
        gradient_off_alone=off_alone,
    )


@contextmanager
def only_kernel(kernel: str) -> Iterator[list[int]]:
    """Have packs attend by SDPA alone, or as they do; gives a list that grows with each call of the varlen kernel."""
    calls: list[int] = []
    has_one_kernel, varlen = attention.has_one_kernel, attention.varlen_attn

    def counted(query: torch.Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(query))
        return varlen(query, *args, **options)

    attention.varlen_attn = counted
    if kernel != "varlen":
        attention.has_one_kernel = lambda *_: False
    try:
        yield calls
    finally:
        attention.has_one_kernel, attention.varlen_attn = has_one_kernel, varlen


def gradient(model: Any, given: Sequence[TokenSequence], *, in_pack: bool) -> torch.Tensor:
    """Return the gradient of the summed loss by all weights, fp32 [weights]; alone, rows run as the authors wrote."""
    model.zero_grad()
    if in_pack:
        with rows_apart(model):
            supervised_nll(model, PackedRows.lay(given)).total.backward()
    else:
        for row in given:
            nll_alone(model, row).backward()
    return torch.cat([weight.grad.float().flatten() for weight in model.parameters()])


def nll_alone(model: Any, row: TokenSequence) -> torch.Tensor:
    """Return the summed NLL of a row from a plain forward pass over it alone, differentiable."""
    one = PackedRows.lay([row])
    logits = model(input_ids=one.input_ids.to(model.device), use_cache=False).logits[0, one.predicting]
    return nn.functional.cross_entropy(logits.float(), one.targets.to(logits.device), reduction="sum")


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative distance of two gradients."""
    return ((found - exact).norm() / exact.norm()).item()
