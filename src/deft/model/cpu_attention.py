"""Attention over the rows of a pack on a CPU, as one operation of autograd.

In: queries, keys and values of a pack. Out: what each row's tokens gather within that row. Left to autograd, a pack of
many short rows costs far more than its attention: the gradient of every slice is a tensor as large as the pack, and
keys shared by several heads are copied for all rows at once. Here each row is read and written in place.

In 16 bits each row is widened to fp32 while it is attended to, which is more exact and, on rows of up to 200 tokens,
twice as fast: a kernel of 16 bits gains where rows are long, and there it was level (AVX512_BF16, two cores).

Products of attention are small, and the oneDNN kernels that `deft.model.matmul` may choose for large ones are slower
at them (2 to 3 times on rows of 60 to 200 tokens), so they are computed by PyTorch's plain kernels, whatever is set.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from deft.model.matmul import products_by

ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTEND_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""What `scaled_dot_product_attention` runs on a CPU; called by name, because autograd is done here."""

Masks = Callable[[int, torch.dtype], torch.Tensor | None]
"""What is added to the scores of a row of that length, `[length, length]` or `[1, heads, length, length]`, in that
format; None where the row is causal and nothing more."""


def can_attend(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Say whether `attend_in_rows` can compute this attention: on a CPU, heads of one size, no dropout."""
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and dropout == 0


def attend_in_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_lengths: Sequence[int],
    *,
    masks: Masks,
    scale: float | None,
) -> torch.Tensor:
    """Attend causally within each row of a pack; shapes as in `deft.model.attention.rows_apart_attention`."""
    return RowsInPlace.apply(query, key, value, tuple(row_lengths), masks, scale)


class RowsInPlace(torch.autograd.Function):
    """Attends row by row, forward and backward, into one tensor each for the whole pack."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd gives them by place
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        row_lengths: tuple[int, ...],
        masks: Masks,
        scale: float | None,
    ) -> torch.Tensor:
        """Keep the inputs, the result and each token's log of the sum of its weights for the backward pass."""
        _, num_heads, num_tokens, size = query.shape
        gathered = query.new_empty(1, num_tokens, num_heads, size)
        log_sums = []
        with products_by("plain"):
            for here, row in rows_of(row_lengths, query, key, value):
                mask, (row_query, row_key, row_value) = widened(masks, row)
                result, log_sum = ATTEND(
                    row_query,
                    for_each_head(row_key, num_heads),
                    for_each_head(row_value, num_heads),
                    0.0,
                    mask is None,
                    attn_mask=mask,
                    scale=scale,
                )
                gathered[:, here] = result.transpose(1, 2)
                log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, gathered, *log_sums)
        ctx.row_lengths, ctx.masks, ctx.scale = row_lengths, masks, scale
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_gathered: torch.Tensor) -> Any:
        """Return the gradients of query, key and value; heads that share a key add theirs up."""
        query, key, value, gathered, *log_sums = ctx.saved_tensors
        num_heads, num_shared = query.shape[1], query.shape[1] // key.shape[1]
        grads = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)]
        of_result = grad_gathered.transpose(1, 2), gathered.transpose(1, 2)
        with products_by("plain"):
            rows = rows_of(ctx.row_lengths, query, key, value, *of_result)
            for (here, row), log_sum in zip(rows, log_sums, strict=True):
                mask, (row_query, row_key, row_value, grad_result, result) = widened(ctx.masks, row)
                row_grads = ATTEND_BACKWARD(
                    grad_result,
                    row_query,
                    for_each_head(row_key, num_heads),
                    for_each_head(row_value, num_heads),
                    result,
                    log_sum,
                    0.0,
                    mask is None,
                    attn_mask=mask,
                    scale=ctx.scale,
                )
                for grad, row_grad, repeats in zip(grads, row_grads, (1, num_shared, num_shared), strict=True):
                    grad[:, :, here] = row_grad.unflatten(1, (-1, repeats)).sum(2) if repeats > 1 else row_grad
        return *grads, None, None, None


def rows_of(row_lengths: Sequence[int], *tensors: torch.Tensor) -> Iterator[tuple[slice, tuple[torch.Tensor, ...]]]:
    """Yield the place of each row in the pack, and its part of each tensor [1, heads, tokens, head_dim]."""
    start = 0
    for length in row_lengths:
        here = slice(start, start + length)
        yield here, tuple(tensor[:, :, here] for tensor in tensors)
        start += length


def widened(masks: Masks, row: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """Return the mask of a row, and the row's tensors in the format to attend in: fp32 or more, or the mask's own."""
    kind = torch.promote_types(row[0].dtype, torch.float32)
    mask = masks(row[0].shape[2], kind)
    kind = kind if mask is None else mask.dtype
    return mask, tuple(each.to(kind) for each in row)


def for_each_head(shared: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Repeat keys or values `[1, key_value_heads, tokens, head_dim]` for the heads that share them."""
    repeats = num_heads // shared.shape[1]
    return shared if repeats == 1 else shared.repeat_interleave(repeats, dim=1)
