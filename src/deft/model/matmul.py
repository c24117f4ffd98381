"""Which kernels multiply a model's matrices on this CPU: the fastest of those that are exact.

In: a model and how many tokens it will see at a time. Out: the name of a kernel, and a context in which it is used.

PyTorch carries two libraries for products in fp32: MKL, its default, whose fast kernels are for Intel's processors, and
oneDNN, which is up to 2.2 times as fast on AMD's. The switch to oneDNN is meant for products that may be rounded to
bf16, and where a processor has matrix units (AMX) they are; elsewhere the same switch gives exact ones. So both are
timed on the model's own products and compared with float64, and whoever asks for fp32 gets fp32.

A third candidate would be oneDNN's operator for linear layers, which never rounds. It has no gradients of its own and
works on copies of the weights in a layout of its own; where the switch rounds, MKL is on its own ground anyway.
"""

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear

from deft.errors import UserError
from deft.files import cache_folder, write_json

Kernel = Literal["plain", "onednn"]
KERNELS: tuple[Kernel, ...] = ("plain", "onednn")
IN_16_BITS = "bfloat16"
"""The name under which products in bfloat16 are measured, where the processor has instructions for them."""
PRECISION = {"plain": "ieee", "onednn": "bf16"}
"""What each is called where PyTorch is told which products oneDNN may take over, and how they may be rounded."""
MAX_ERROR = 1e-6
"""Relative error (Frobenius norm, against float64) up to which a product is fp32: MKL and oneDNN have 2e-7 to 6e-7 at
the inner dimensions of models, bf16 has 2e-3."""
WORTH_IT = 0.97
"""oneDNN is taken where its time is below this share of the other's: a choice that noise decides helps nobody."""
MAX_TOKENS = 1024
MAX_FLOP = 2.5e9
"""A product that is timed has at most so many operations, or a large model would be timed for minutes."""
MAX_WEIGHTS = 1 << 24
"""A layer that is timed has at most so many weights (64 MB): a head has ten times that, and multiplies no faster."""
BLOCK = 64
"""Rows and columns of a result that are compared with float64."""
NUM_ROUNDS = 3
VERSION = 2
"""Raised when a measurement means something else, so that older ones are not read."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls a processor's instructions for products in bfloat16: on x86 two kinds, on ARM one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A model's products, forward and both gradients, by one kernel: operations a second, and the largest error."""

    flop_per_s: float
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The kernel for a model's products, and what was measured of each; nothing where there is no choice."""

    kernel: Kernel
    measured: dict[str, Measured]

    def times_as_fast(self, name: str, other: str) -> float:
        """Return how many times as fast the products are by `name` as by `other`; 1 where that was not measured."""
        if name not in self.measured or other not in self.measured:
            return 1.0
        return self.measured[name].flop_per_s / self.measured[other].flop_per_s


@dataclass(frozen=True, order=True, slots=True)
class Shape:
    """A linear layer of `num_out` × `num_in` weights, of which a model has `count`."""

    num_in: int
    num_out: int
    count: int


def choose_kernel(model: Any, num_tokens: int, wanted: str = "auto", *, device: torch.device | None = None) -> Choice:
    """Return the kernel for the products of a model that sees `num_tokens` at a time.

    `wanted` "plain" or "onednn" overrules what would be measured; `device` is where the model will run, if not where it
    is. What was measured is kept for this processor, version of PyTorch and number of threads, so that a second run
    begins at once and computes the same bits.

    Raises:
        UserError: if oneDNN is asked for and its products are not exact here.
    """
    on_cpu = (device or model.device).type == "cpu"
    if not on_cpu or model.dtype != torch.float32 or not torch.backends.mkldnn.is_available() or wanted == "plain":
        return Choice(kernel="plain", measured={})
    choice = measured_once(shapes_of(model), min(power_of_4_below(num_tokens), MAX_TOKENS))
    if wanted == "auto":
        return choice
    if (error := choice.measured["onednn"].error) > MAX_ERROR:
        fix = "--matmul plain, or --dtype bfloat16 if rounding is wanted"
        raise UserError("oneDNN's products are not exact here", got=f"relative error {error:.1e}", fix=fix)
    return Choice(kernel="onednn", measured=choice.measured)


@contextmanager
def products_by(kernel: Kernel) -> Iterator[None]:
    """Have fp32 products on the CPU computed by this kernel while the context is open.

    Open it around the work itself: transformers and accelerate set the same switch when they are set up.
    """
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when the package is imported
    before = switch.fp32_precision
    switch.fp32_precision = PRECISION[kernel]
    try:
        yield
    finally:
        switch.fp32_precision = before


def shapes_of(model: Any) -> tuple[Shape, ...]:
    """Return the linear layers of a model, the head among them."""
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    counts = Counter((layer.in_features, layer.out_features) for layer in layers)
    return tuple(sorted(Shape(*sizes, count) for sizes, count in counts.items()))


def power_of_4_below(number: int) -> int:
    """Return the largest power of four that is no larger: numbers of tokens near each other share a measurement."""
    return 4 ** ((max(number, 1).bit_length() - 1) // 2)


def processor() -> str:
    """Return what tells kinds of processors apart, as far as the system says."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model", "flags", "cpu family", "Features", "CPU")))
    return f"{platform.machine()} {platform.processor()}"


def multiplies_in_bfloat16() -> bool:
    """Say whether the processor has instructions for products in bfloat16; without them they are many times slower."""
    return not BF16_FLAGS.isdisjoint(processor().split())


# --- measuring ----------------------------------------------------------------------------------------------------


@cache
def exact_kernels() -> tuple[Kernel, ...]:
    """Return the kernels whose fp32 products are exact on this processor."""
    product, *_ = products_of(Shape(256, 256, 1), 256)
    return tuple(kernel for kernel in KERNELS if relative_error(product, timed(product, kernel)[1]) <= MAX_ERROR)


@cache
def measured_once(shapes: tuple[Shape, ...], num_tokens: int) -> Choice:
    """Return the choice for these layers from the cache on disk, or measure, and keep it there."""
    folder = cache_folder("products")
    if folder is None:
        return measure(shapes, num_tokens)
    file = folder / f"{measurement_key(shapes, num_tokens)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged
        return read_choice(file)
    choice = measure(shapes, num_tokens)
    with suppress(OSError, ValueError, KeyError, TypeError):  # whoever measured first decides for all
        return read_choice(file)
    with suppress(OSError, UserError):  # a full disk, or a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(choice))
    return choice


def measurement_key(shapes: tuple[Shape, ...], num_tokens: int) -> str:
    """Return a name for what decides a measurement: the processor, PyTorch, the threads, the products."""
    what = (VERSION, processor(), torch.__version__, torch.get_num_threads(), shapes, num_tokens)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def read_choice(file: Path) -> Choice:
    """Read a choice that was kept.

    Raises:
        OSError, ValueError, KeyError, TypeError: if the file is absent or damaged.
    """
    stored = json.loads(file.read_text(encoding="utf-8"))
    measured = {name: Measured(**values) for name, values in stored["measured"].items()}
    if stored["kernel"] not in KERNELS or not measured.keys() >= set(KERNELS):
        raise ValueError(file)
    return Choice(kernel=stored["kernel"], measured=measured)


def measure(shapes: tuple[Shape, ...], num_tokens: int) -> Choice:
    """Time all ways on the products of these layers, in turn, compare them with float64, and choose."""
    ways = [*KERNELS, *([IN_16_BITS] if multiplies_in_bfloat16() else [])]
    seconds, errors = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    flop = 0.0
    for shape in shapes:
        for product in products_of(shape, num_tokens):
            shortest = dict.fromkeys(ways, float("inf"))
            for _ in range(NUM_ROUNDS):
                for way in ways:  # in turn, so that a slow spell of the machine meets all alike
                    taken, result = timed(product, way)
                    shortest[way] = min(shortest[way], taken)
                    errors[way] = max(errors[way], relative_error(product, result))
            for way in ways:
                seconds[way] += shape.count * shortest[way]
            flop += shape.count * product.flop
    measured = {way: Measured(flop_per_s=flop / max(seconds[way], 1e-9), error=errors[way]) for way in ways}
    is_exact, is_faster = errors["onednn"] <= MAX_ERROR, seconds["onednn"] < WORTH_IT * seconds["plain"]
    return Choice(kernel="onednn" if is_exact and is_faster else "plain", measured=measured)


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two matrices, as a layer computes it."""

    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    left: torch.Tensor
    right: torch.Tensor

    def __call__(self) -> torch.Tensor:
        """Compute it."""
        return self.operation(self.left, self.right)

    def to(self, dtype: torch.dtype) -> "Product":
        """Return the same product in another format."""
        return Product(self.operation, self.left.to(dtype), self.right.to(dtype))

    def block(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Compute some rows and columns of it in float64."""
        right = self.right.T if self.operation is linear else self.right
        return self.left[rows].to(torch.float64) @ right[:, columns].to(torch.float64)

    @property
    def flop(self) -> float:
        """The operations that it takes."""
        return 2.0 * self.left.numel() * self.right.numel() / self.left.shape[1]


def products_of(shape: Shape, num_tokens: int) -> tuple[Product, Product, Product]:
    """Return a layer's products: forward, and the gradients of its input and its weight.

    A layer too large to be timed in an instant sees fewer tokens, and one too large for that memory is made narrower.
    """
    num_out = min(shape.num_out, max(1, MAX_WEIGHTS // shape.num_in))
    rows = max(1, min(num_tokens, max(64, int(MAX_FLOP / (2 * shape.num_in * num_out)))))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, shape.num_in, generator=generator)
    weight = torch.randn(num_out, shape.num_in, generator=generator)
    grads = torch.randn(rows, num_out, generator=generator)
    return Product(linear, inputs, weight), Product(torch.mm, grads, weight), Product(torch.mm, grads.T, inputs)


def timed(product: Product, way: str) -> tuple[float, torch.Tensor]:
    """Return the seconds that a product takes one way, and its result."""
    product = product.to(torch.bfloat16) if way == IN_16_BITS else product
    with products_by("onednn" if way == "onednn" else "plain"):
        began_at = time.perf_counter()
        result = product()
        return time.perf_counter() - began_at, result


def relative_error(product: Product, result: torch.Tensor) -> float:
    """Return how far a result is off, relative to its size (Frobenius norm), on a block of its rows and columns.

    All of a head's product in float64 would take more memory than a training step of a small model.
    """
    rows, columns = (spread(size) for size in result.shape)
    exact = product.block(rows, columns)
    return float((result[rows][:, columns] - exact).norm() / exact.norm())


def spread(size: int) -> torch.Tensor:
    """Return `BLOCK` places spread evenly over so many, or all of them where there are fewer."""
    return torch.linspace(0, size - 1, min(size, BLOCK)).long()
