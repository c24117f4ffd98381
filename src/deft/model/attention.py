"""Attention row by row inside a pack: each row sees itself alone, exactly as if it had been run alone.

A pack is several rows laid end to end in one sequence `[1, tokens]`. Block masks are how others keep such rows apart;
they cost the square of the pack's length and are lost silently when a cache or an all-ones mask is passed
(transformers 5.23, `masking_utils.py`). Here the attention function is told the rows' lengths and attends within each,
so there is no mask to lose: called without lengths it refuses.

On a CUDA GPU in 16 bits all rows go through one variable-length kernel (`torch.nn.attention.varlen`), on a CPU through
one operation that reads and writes each in place (`deft.model.cpu_attention`); elsewhere each goes through
`scaled_dot_product_attention` on its own.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from deft.errors import UserError
from deft.model.cpu_attention import attend_in_rows, can_attend, for_each_head, rows_of

if TYPE_CHECKING:
    from deft.model.alibi import Alibi

ROWS_APART = "deft_rows_apart"
"""The name under which transformers finds this attention function."""
UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias")
"""Options of an attention layer that scaled dot products alone cannot express; a model that uses one is refused."""


class RowLengths(Sequence[int]):
    """The lengths of a pack's rows, of a class of its own: torch.compile would compile anew for each tuple."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = tuple(lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        return self._lengths[place]


LARGEST_KERNEL_HEAD = 256
"""Head dimension up to which flash attention is built."""
TAKES_GROUPED_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether several heads may share keys and values there: from PyTorch 2.12 on. Before, they are copied for each."""


def rows_apart_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    alibi: "Alibi | None" = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each row of a pack; the signature is the one transformers calls.

    Shapes: `query` [1, heads, tokens, head_dim]; `key`, `value` [1, key_value_heads, tokens, head_dim];
    the result [1, tokens, heads, head_dim]. `row_lengths` sum to `tokens`. `alibi` biases the scores by distance.
    """
    if row_lengths is None or sum(row_lengths) != query.shape[2]:
        raise RuntimeError("the attention layer was not given the lengths of the rows in its pack")
    if used := [name for name in UNSUPPORTED_OPTIONS if options.get(name) is not None]:
        fix = "choose another model: deft models"
        raise UserError("this model's attention cannot run row by row", got=", ".join(used), fix=fix)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotary positions in fp32 make queries and keys fp32, values stay in 16 bits
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    if alibi is None and has_one_kernel(query, dropout):
        return all_rows_at_once(query, key, value, row_lengths, scale=scaling, window=sliding_window), None
    device, held = query.device, query.dtype  # the queries themselves must not be kept for the masks

    def mask_of(length: int, dtype: torch.dtype) -> torch.Tensor | None:
        if alibi is not None:  # as large as it is, it stays in the format that the model computes in
            return alibi.within_row(length, max(row_lengths), held)
        if sliding_window is not None and length > sliding_window:
            return window_mask(length, sliding_window, dtype, device)
        return None

    if can_attend(query, value, dropout):
        return attend_in_rows(query, key, value, row_lengths, masks=mask_of, scale=scaling), None
    rows = []
    for here, (row_query, row_key, row_value) in rows_of(row_lengths, query, key, value):
        mask = mask_of(here.stop - here.start, held)
        rows.append(
            scaled_dot_product_attention(
                row_query,
                for_each_head(row_key, query.shape[1]),
                for_each_head(row_value, query.shape[1]),
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def has_one_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Say whether the variable-length kernel can run: on CUDA, in 16 bits, heads of at most 256, no dropout."""
    in_16_bits = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and in_16_bits and query.shape[-1] <= LARGEST_KERNEL_HEAD and dropout == 0


def all_rows_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_lengths: Sequence[int],
    *,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend causally within each row in one kernel; shapes as in `rows_apart_attention`."""
    starts = torch.tensor([0, *accumulate(row_lengths)], dtype=torch.int32, device=query.device)
    longest = max(row_lengths)
    options: dict[str, Any] = {}
    if TAKES_GROUPED_HEADS:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = for_each_head(key, query.shape[1]), for_each_head(value, query.shape[1])
    out = varlen_attn(
        query[0].transpose(0, 1),  # [tokens, heads, head_dim]
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    return out[None]  # type: ignore[call-overload]  # a tensor, because no further values were asked for


def window_mask(length: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the mask `[length, length]` by which a token sees itself and the `window` - 1 before it.

    It is what is added to the scores: 0, or minus infinity.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


AttentionInterface.register(ROWS_APART, rows_apart_attention)


@contextmanager
def rows_apart(model: PreTrainedModel) -> Iterator[None]:
    """Have `model` attend row by row inside packs while the context is open (forward and backward)."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ROWS_APART)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
