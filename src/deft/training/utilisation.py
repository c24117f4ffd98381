"""How much of a machine a run uses: its matrix products each second, over the most that the machine was seen to do.

Model FLOP utilisation (MFU) counts what the model needs: computing activations again in the backward pass is not in it
(Chowdhery et al. 2022, PaLM, appendix B).
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from deft.model.cost import Method, ModelSize, attention_width, flop_of, model_size
from deft.model.likelihood import PackedRows
from deft.model.matmul import KERNELS, exact_kernels, products_by

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Side of the square matrices: large enough that a product runs at the machine's limit."""
MEASURED_S = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Utilisation:
    """What the passes of one model need, and the limit they are held against, in floating-point operations a second."""

    size: ModelSize
    attention_width: int
    method: Method
    limit_flop_per_s: float

    @classmethod
    def of(cls, model: Any, method: Method, device: torch.device, dtype: torch.dtype) -> "Utilisation":
        """Count a model's sizes and measure the machine for under a second."""
        return cls(
            size=model_size(model, method),
            attention_width=attention_width(model.config.get_text_config()),
            method=method,
            limit_flop_per_s=product_limit(device, dtype),
        )

    def flop(self, pack: PackedRows) -> float:
        """Return the floating-point operations that forward and backward over a pack need."""
        return flop_of(
            self.size,
            num_tokens=pack.num_tokens,
            num_supervised=pack.num_supervised,
            sum_squared_lengths=sum(length**2 for length in pack.row_lengths),
            attention_width=self.attention_width,
            method=self.method,
            recomputes=False,
        )


@cache
def product_limit(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest of many large products, by any kernel that is exact here.

    It is the machine's, so a process measures it once.
    """
    side = PRODUCT_SIZE.get(device.type, 2048)
    generator = torch.Generator(device).manual_seed(0)  # random, because a GPU multiplies equal numbers faster
    left, right = (torch.randn(side, side, generator=generator, dtype=dtype, device=device) for _ in range(2))
    kernels = exact_kernels() if device.type == "cpu" and dtype == torch.float32 else KERNELS[:1]
    fastest_s = float("inf")
    for kernel in kernels:
        ends_at = time.perf_counter() + MEASURED_S / len(kernels)
        with products_by(kernel):
            while time.perf_counter() < ends_at or fastest_s == float("inf"):
                began_at = time.perf_counter()
                (left @ right)[0, 0].item()  # waits for the device
                fastest_s = min(fastest_s, time.perf_counter() - began_at)
    return 2.0 * side**3 / fastest_s
