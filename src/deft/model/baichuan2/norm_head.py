"""The head of Baichuan2: each token's score is the hidden state against a direction, whatever its length.

In: hidden states. Out: logits `hidden @ normalize(weight).T` (Yang et al. 2023, "NormHead"). The official code
overwrites the weight with its normalised self at the first evaluation; under sharding, or beside master weights in
fp32, the two then part. Here the weight stays as it is, and every forward pass normalises, with its gradient.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

SMALLEST_LENGTH = 1e-12
"""Shorter rows are not stretched any further; the same as in `torch.nn.functional.normalize`."""

CHUNK_ROWS = 4096
"""Rows that are widened to fp32 at a time: 80 MB for the 13B, whose whole head would be 2.6 GB."""


class DirectionHead(nn.Linear):
    """A linear layer `[hidden] -> [vocab]` without bias, whose weight counts with rows of length 1.

    Its name is not the paper's, because accelerate takes a layer beside the decoder whose class has "Norm" in its name
    for the final norm, and shards it twice (FSDP2 with adapters, accelerate 1.15).
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits `[…, vocab]` of `hidden` `[…, hidden]`.

        The logits are scaled rather than the weight: when one token is decoded, writing a scaled weight would take
        longer than all the rest of the head.
        """
        logits = super().forward(hidden)
        return (logits / row_norms(self.weight).squeeze(-1)).to(logits.dtype)

    def effective_weight(self) -> torch.Tensor:
        """Return the weight whose product with the hidden states is the logits, `[vocab, hidden]`, differentiable."""
        return Directions.apply(self.weight)


class Directions(torch.autograd.Function):
    """The rows of a weight `[rows, width]` at length 1, and the gradient of that, a few rows in fp32 at a time.

    Autograd's own gradient of `weight / length` holds five copies of the weight in fp32: 13 GB for Baichuan2-13B, which
    would be the fullest moment of a step where the rest is sharded.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        """Return the directions in the format of `weight`."""
        lengths = row_norms(weight)
        directions = torch.empty_like(weight)
        for start in range(0, len(weight), CHUNK_ROWS):
            here = slice(start, start + CHUNK_ROWS)
            directions[here] = weight[here] / lengths[here]
        ctx.save_for_backward(weight, lengths)
        return directions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return what of the gradient is across each row, over the row's length: along it nothing changes."""
        weight, lengths = ctx.saved_tensors
        grad_weight = torch.empty_like(weight)
        for start in range(0, len(weight), CHUNK_ROWS):
            here = slice(start, start + CHUNK_ROWS)
            direction = weight[here] / lengths[here]
            along = (grad[here] * direction).sum(dim=-1, keepdim=True)
            grad_weight[here] = (grad[here] - along * direction) / lengths[here]
        return grad_weight


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return the L2 length of each row, `[rows, 1]`, in fp32 at least."""
    kind = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, dim=-1, keepdim=True, dtype=kind).clamp_min(SMALLEST_LENGTH)


def keep_normalising(head: nn.Module) -> nn.Module:
    """Return a head that normalises: a plain linear layer, as resizing a vocabulary makes one, becomes one."""
    if type(head) is nn.Linear and head.bias is None:
        head.__class__ = DirectionHead  # in place, so that hooks on it stay
    return head
