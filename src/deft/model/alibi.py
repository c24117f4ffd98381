"""ALiBi: attention biased by distance instead of position embeddings (Press et al. 2022, arXiv 2108.12409, section 3).

In: the number of heads, and where queries and keys are. Out: what is added to the scores. Head h adds
slope[h] · (j - i) for query i and key j. Biases are computed in fp32 and rounded last, so what is rounded is the
distance: slope · j, which softmax cannot tell from it, is coarse by 16 near position 4,000 in bfloat16.
"""

import math
from functools import cache

import torch

ALIGNMENT = 16
"""Rows of a bias start at multiples of this many elements: CUDA's kernels would otherwise copy it at every call."""


@cache
def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return the slope of each head, in the heads' order.

    For n heads, n a power of two, they are 2^(-8k/n), k = 1 … n. Otherwise the slopes of the power of two below n come
    first, then every second slope of twice that power.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    between = [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * (num_heads - power), 2)]
    return tuple(slopes + between)


class Alibi:
    """The slopes of a model's heads on one device, fp32 [heads], and the biases made of them during a forward pass.

    All layers add the same bias, so it is made once; a shorter row's is a corner of it. It takes heads · length²
    elements: 1.3 GB for the 13B's 40 heads, 4,096 tokens and two bytes.
    """

    def __init__(self, num_heads: int, device: torch.device) -> None:
        self.slopes = torch.tensor(alibi_slopes(num_heads), dtype=torch.float32, device=device)
        self._made: torch.Tensor | None = None

    def bias(self, queries: int, keys: int, past: int | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the bias `[heads, queries, keys]` for queries that begin at position `past`; later keys are masked.

        The smallest number of `dtype` stands for a masked key.
        """
        device = self.slopes.device
        distance = (torch.arange(queries, device=device) + past)[:, None] - torch.arange(keys, device=device)
        nearest_first = -self.slopes[:, None] * torch.arange(keys, device=device)
        masked = torch.full_like(nearest_first[:, :1], torch.finfo(dtype).min, dtype=dtype)
        values = torch.cat([nearest_first.to(dtype), masked], dim=1)
        return values[:, torch.where(distance < 0, keys, distance)]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Alibi":
        """Return the same on another device, as accelerate asks for where layers are spread over several."""
        return self if self.slopes.device == torch.device(device) else Alibi(len(self.slopes), device)

    def within_row(self, length: int, longest: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the bias `[1, heads, length, length]` of a row that attends to itself, the longest being `longest`."""
        made = self._made
        if made is None or made.dtype != dtype or made.shape[1] < longest:
            width = -(-longest // ALIGNMENT) * ALIGNMENT
            made = self._made = self.bias(longest, width, 0, dtype)
        return made[None, :, :length, :length]
