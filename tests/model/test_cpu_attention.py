"""Attention in place equals attention by its definition, forward and backward, whatever the rows of a pack."""

from typing import Any

import pytest
import torch

from deft.model import cpu_attention
from deft.model.alibi import Alibi, alibi_slopes
from deft.model.attention import rows_apart_attention
from deft.model.cpu_attention import can_attend
from deft.model.matmul import products_by

LENGTHS = (5, 1, 9, 2)
HEADS, SHARED_HEADS, SIZE = 4, 2, 8


def by_definition(query, key, value, lengths, *, scale, window=None, slopes=None):
    """Softmax over the tokens that each token sees, one at a time; the result is [1, tokens, heads, size]."""
    out = torch.zeros(1, sum(lengths), query.shape[1], value.shape[-1], dtype=query.dtype)
    start = 0
    for length in lengths:
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            for at in range(length):
                first = 0 if window is None else max(0, at - window + 1)
                seen = slice(start + first, start + at + 1)
                scores = key[0, shared, seen] @ query[0, head, start + at] * scale
                if slopes is not None:
                    scores = scores - slopes[head] * torch.arange(at - first, -1, -1)
                out[0, start + at, head] += scores.softmax(0) @ value[0, shared, seen]
        start += length
    return out


@pytest.mark.parametrize("kind", ["plain", "window", "alibi"])
def test_rows_attend_as_the_definition_says(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    shared = HEADS if kind == "alibi" else SHARED_HEADS
    shapes = [(1, heads, sum(LENGTHS), SIZE) for heads in (HEADS, shared, shared)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"window": {"sliding_window": 3}, "alibi": {"alibi": Alibi(HEADS, torch.device("cpu"))}}.get(kind, {})
    assert can_attend(given[0], given[2], 0.0)
    found, _ = rows_apart_attention(torch.nn.Module(), *given, None, row_lengths=LENGTHS, scaling=0.3, **options)
    wanted = by_definition(
        *given,
        LENGTHS,
        scale=0.3,
        window=3 if kind == "window" else None,
        slopes=alibi_slopes(HEADS) if kind == "alibi" else None,
    )
    torch.testing.assert_close(found, wanted, atol=1e-7 if kind == "alibi" else 1e-12, rtol=0)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), given),
        torch.autograd.grad((wanted * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6 if kind == "alibi" else 1e-12, rtol=0)


def test_attention_keeps_the_plain_kernel_whatever_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    given = [torch.randn(1, HEADS, 200, SIZE, generator=generator, requires_grad=True) for _ in range(3)]
    met: list[tuple[str, str]] = []
    for name in ("ATTEND", "ATTEND_BACKWARD"):
        plain = getattr(cpu_attention, name)

        def noted(*args: object, plain: Any = plain, name: str = name, **options: object) -> Any:
            met.append((name, torch.backends.mkldnn.matmul.fp32_precision))
            return plain(*args, **options)

        monkeypatch.setattr(cpu_attention, name, noted)
    with products_by("onednn"):
        out, _ = rows_apart_attention(torch.nn.Module(), *given, None, row_lengths=(120, 80), scaling=0.3)
        out.sum().backward()
    assert met == [("ATTEND", "ieee")] * 2 + [("ATTEND_BACKWARD", "ieee")] * 2


def test_heads_of_two_sizes_and_dropout_go_through_pytorch() -> None:
    query, value = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 16)
    assert not can_attend(query, value, 0.0)
    assert not can_attend(query, query, 0.1)
    out, _ = rows_apart_attention(torch.nn.Module(), query, query, value, None, row_lengths=(2, 1))
    assert out.shape == (1, 3, 2, 16)
