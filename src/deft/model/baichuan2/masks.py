"""Which keys a query of Baichuan2 sees, and with what bias: masks as the attention functions take them.

In: a 2-D mask (1 for a token, 0 for padding, or a row's number for tokens of several rows in one sequence), a cache.
Out: the argument `attention_mask` of an attention function. A token sees itself and the tokens before it that carry
its own number; 0 is never seen.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from deft.errors import UserError
from deft.model.alibi import Alibi
from deft.model.attention import ROWS_APART

BY_SCORES = ("eager", "sdpa")
"""Attention functions that add a mask to the scores, and so can bias them by distance."""


def check_alibi(implementation: str | None) -> None:
    """Check that an attention function can bias by distance.

    Raises:
        UserError: for flash attention and others that take no mask of numbers.
    """
    if implementation not in (None, *BY_SCORES, ROWS_APART):
        raise UserError(
            "this model biases attention by distance (ALiBi), which that attention function cannot",
            got=implementation,
            fix="load the model with attn_implementation sdpa, or eager",
        )


def numbers_rows(attention_mask: torch.Tensor | None) -> bool:
    """Say whether a mask tells rows apart rather than tokens from padding: it is 2-D and counts further than 1."""
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.is_floating_point():
        return False
    return attention_mask.dtype != torch.bool and bool((attention_mask > 1).any())


def rows_by_position(position_ids: torch.Tensor) -> torch.Tensor:
    """Number the rows of a sequence whose positions start again with each, int64 [batch, length], from 1."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts.cumsum(dim=1)


def score_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the type that scores will be in: under autocast, queries are in another one than the hidden states.

    A mask that is cast only there would end up with minus infinities, and a row of them is no softmax.
    """
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def visible(rows: torch.Tensor, queries: int, keys: int, past: int | torch.Tensor) -> torch.Tensor:
    """Return which keys each query sees, bool `[batch, 1, queries, keys]`.

    `rows` `[batch, keys or less]` is the number of each token's row, 0 for padding; a cache may hold room for more
    keys than there are tokens. The first query is token `past`.
    """
    rows = torch.nn.functional.pad(rows.long(), (0, keys - rows.shape[1]))
    places = torch.arange(queries, device=rows.device) + past
    causal = places[:, None] >= torch.arange(keys, device=rows.device)
    seen = causal & (rows[:, places, None] == rows[:, None]) & (rows[:, None] != 0)
    return seen[:, None]


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a key is seen, the smallest number of `dtype` elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def rotary_mask(
    config: PreTrainedConfig,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any,
    position_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return the mask of a model whose positions are in the queries and keys: transformers' own."""
    return create_causal_mask(config, hidden, attention_mask, cache, position_ids=position_ids)


def alibi_mask(
    alibi: Alibi,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any,
    position_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return the bias of the scores `[1 or batch, heads, queries, keys]`, the smallest number where nothing is seen.

    `attention_mask` is 2-D as above, or 4-D: bool (true is seen) or numbers to add. Without one and without a cache,
    positions that start again tell rows apart.
    """
    queries, dtype = hidden.shape[1], score_dtype(hidden)
    past = cache.get_seq_length() if cache is not None else 0
    keys = cache.get_mask_sizes(queries, 0)[0] if cache is not None else queries
    if attention_mask is not None and attention_mask.ndim == 4:
        keys = attention_mask.shape[-1]
    bias = alibi.bias(queries, keys, past, dtype)[None]
    if attention_mask is None:
        if position_ids is None or cache is not None:
            return bias
        attention_mask = rows_by_position(position_ids)
    if attention_mask.ndim == 2:
        attention_mask = visible(attention_mask.to(hidden.device), queries, keys, past)
    smallest = torch.finfo(dtype).min
    if attention_mask.dtype == torch.bool:
        return torch.where(attention_mask, bias, smallest)
    return (bias + attention_mask).clamp(min=smallest)
