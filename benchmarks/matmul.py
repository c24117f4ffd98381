"""How fast, and how exactly, does each way multiply the matrices of real models on this CPU?

    python -m benchmarks.matmul [--tokens 1024] [--threads 2]

For a layer each of five models: forward, the gradient of the input, the gradient of the weight. `MKL` is PyTorch's
default, `oneDNN` the same products with PyTorch's switch for oneDNN, `linear` oneDNN's operator for linear layers
(forward only; private, so it may be missing), `bfloat16` products of rounded matrices. GFLOP/s of the fastest of
several rounds, and the error relative to float64 (Frobenius norm). Last, what deft chooses.
"""

import argparse
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from deft.model.matmul import IN_16_BITS, KERNELS, Product, Shape, measure, products_of, relative_error, timed

LAYERS = {
    "SmolLM2 135M, up": Shape(576, 1536, 1),
    "Gemma 3 270M, down": Shape(2048, 640, 1),
    "Qwen3 0.6B, up": Shape(1024, 3072, 1),
    "Llama 3.2 1B, up": Shape(2048, 8192, 1),
    "Llama 2 7B, query": Shape(4096, 4096, 1),
}
PASSES = ("forward", "gradient of input", "gradient of weight")
LINEAR = "linear"
NUM_ROUNDS = 7


def by_linear_operator(product: Product) -> tuple[float, torch.Tensor] | None:
    """Return the seconds and the result of oneDNN's linear operator, or None where there is none."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or product.operation is not torch.nn.functional.linear:
        return None
    try:
        began_at = time.perf_counter()
        result = operator(product.left, product.right, None, "none", [], "")
        return time.perf_counter() - began_at, result
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def measured(product: Product) -> dict[str, tuple[float, float]]:
    """Return the operations a second and the relative error of each way that can compute a product."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(NUM_ROUNDS):
        for way in (*KERNELS, LINEAR, IN_16_BITS):
            one = by_linear_operator(product) if way == LINEAR else timed(product, way)
            if one is not None:
                rate, error = product.flop / one[0], relative_error(product, one[1])
                found[way] = (max(rate, found.get(way, (0.0, 0.0))[0]), error)
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024, help="rows of the activations")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"GFLOP/s (relative error), {arguments.tokens} tokens, {arguments.threads} threads")
    for column in ("layer", "product", "MKL", "oneDNN", "linear", "bfloat16", "chosen"):
        table.add_column(column, justify="left" if column in ("layer", "product", "chosen") else "right")
    for name, shape in LAYERS.items():
        choice = measure((shape,), arguments.tokens)
        for place, product in zip(PASSES, products_of(shape, arguments.tokens), strict=True):
            found = measured(product)
            cells = [
                f"{found[way][0] / 1e9:,.0f} ({found[way][1]:.0e})" if way in found else "–"
                for way in (*KERNELS, LINEAR, IN_16_BITS)
            ]
            is_first = place == PASSES[0]
            table.add_row(
                f"{name}, {shape.num_in} → {shape.num_out}" if is_first else "",
                place,
                *cells,
                choice.kernel if is_first else "",
            )
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
