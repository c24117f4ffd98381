"""The variable-length kernel gets what its documentation asks for; on a GPU, it is asked itself."""

import numpy as np
import pytest
import torch

from deft.model import attention
from deft.model.attention import rows_apart
from deft.model.likelihood import PackedRows, supervised_nll
from deft.testing.tiny import tiny_model
from deft.types import TokenSequence


def rows() -> list[TokenSequence]:
    """Three rows of 40, 1 and 23 bytes of Chinese text; the longest crosses the tiny Gemma's window of 16."""
    data = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。".encode()
    made = []
    for number, length in enumerate((40, 2, 23)):
        ids = np.frombuffer(data[:length], dtype=np.uint8).astype(np.int32)
        labels = ids.copy()
        labels[0] = -100
        made.append(TokenSequence(id=f"行{number}", input_ids=ids, labels=labels))
    return made


def documented_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """Attention of `torch.nn.attention.varlen` as its documentation has it, by loops; tensors [tokens, heads, dim]."""
    assert cu_seq_q.dtype == torch.int32 and cu_seq_q.tolist() == cu_seq_k.tolist()
    lengths = cu_seq_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    repeats = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for start, length in zip(cu_seq_q.tolist(), lengths, strict=False):
        for head in range(query.shape[1]):
            for at in range(length):
                first = 0 if left < 0 else max(0, at - left)
                seen = slice(start + first, start + at + right + 1)
                scores = key[seen, head // repeats] @ query[start + at, head] * scale
                out[start + at, head] = scores.softmax(0) @ value[seen, head // repeats]
    return out


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_one_kernel_for_all_rows_gives_what_each_row_alone_gives(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, seed=4)
    packed = PackedRows.lay(rows())
    with torch.no_grad(), rows_apart(model):
        one_by_one = supervised_nll(model, packed).per_token
        monkeypatch.setattr(attention, "has_one_kernel", lambda *_: True)
        monkeypatch.setattr(attention, "varlen_attn", documented_varlen)
        at_once = supervised_nll(model, packed).per_token
    torch.testing.assert_close(at_once, one_by_one, atol=1e-5, rtol=1e-5)


def test_a_kernel_without_grouped_heads_gets_keys_and_values_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def older_varlen(query, key, value, *args, scale, window_size):
        assert query.shape == key.shape == value.shape
        return documented_varlen(query, key, value, *args, scale=scale, window_size=window_size, enable_gqa=False)

    model = tiny_model("llama", seed=4)
    packed = PackedRows.lay(rows())
    with torch.no_grad(), rows_apart(model):
        one_by_one = supervised_nll(model, packed).per_token
        monkeypatch.setattr(attention, "has_one_kernel", lambda *_: True)
        monkeypatch.setattr(attention, "TAKES_GROUPED_HEADS", False)
        monkeypatch.setattr(attention, "varlen_attn", older_varlen)
        at_once = supervised_nll(model, packed).per_token
    torch.testing.assert_close(at_once, one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "baichuan2"])
def test_autocast_reaches_attention_as_it_reaches_other_products(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, seed=4, initializer_range=0.05)
    packed = PackedRows.lay(rows())
    kinds: list[torch.dtype] = []
    has_one_kernel = attention.has_one_kernel

    def noted(query: torch.Tensor, dropout: float) -> bool:
        kinds.append(query.dtype)
        return has_one_kernel(query, dropout)

    monkeypatch.setattr(attention, "has_one_kernel", noted)
    with rows_apart(model):
        exact = supervised_nll(model, packed).per_token
        kinds.clear()
        with torch.autocast("cpu", torch.bfloat16):
            nll = supervised_nll(model, packed)
        nll.total.backward()
    assert set(kinds) <= {torch.bfloat16}, "queries rotated in fp32 would keep the kernel of 16 bits from running"
    assert (nll.per_token - exact).abs().max() < 0.05
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_the_kernel_runs_on_cuda_in_16_bits_only() -> None:
    assert not attention.has_one_kernel(torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16), 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_on_a_gpu_packed_equals_separate(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(architecture, seed=4).to("cuda", torch.bfloat16)
    packed = PackedRows.lay(rows())
    with torch.no_grad(), rows_apart(model):
        kernel = supervised_nll(model, packed).per_token
        monkeypatch.setattr(attention, "has_one_kernel", lambda *_: False)
        sdpa = supervised_nll(model, packed).per_token
        alone = torch.cat([supervised_nll(model, PackedRows.lay([row])).per_token for row in rows()])
    assert (kernel - sdpa).abs().mean() < 0.05
    assert (kernel - alone).abs().mean() < 0.05


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_in_mixed_precision_queries_keys_and_values_are_in_16_bits(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[set[torch.dtype]] = []

    def has_one_kernel(query: torch.Tensor, dropout: float) -> bool:
        met.append({query.dtype})
        return False

    def attend_in_rows(query, key, value, *rest, **options):
        met[-1] |= {key.dtype, value.dtype}
        return plain(query, key, value, *rest, **options)

    plain = attention.attend_in_rows
    monkeypatch.setattr(attention, "has_one_kernel", has_one_kernel)
    monkeypatch.setattr(attention, "attend_in_rows", attend_in_rows)
    model = tiny_model(architecture, seed=4)
    with torch.autocast("cpu", dtype=torch.bfloat16), rows_apart(model):
        supervised_nll(model, PackedRows.lay(rows()))
    assert met and all(kinds == {torch.bfloat16} for kinds in met)
