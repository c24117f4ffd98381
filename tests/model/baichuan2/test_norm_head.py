"""The normalised head: its gradient against finite differences, and the loss that runs it a chunk at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from baichuan2_models import differ, logits, rows
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy, normalize

from deft.estimate.trace import Watch
from deft.model import likelihood
from deft.model.attention import rows_apart
from deft.model.baichuan2 import norm_head
from deft.model.baichuan2.norm_head import DirectionHead, Directions
from deft.model.likelihood import PackedRows, has_plain_head, supervised_nll
from deft.testing.tiny import tiny_model

ARCHITECTURES = ["baichuan2", "baichuan2_rope"]


def small_case(dtype: torch.dtype) -> tuple[DirectionHead, torch.Tensor, torch.Tensor]:
    """A head of 7 tokens and 4 dimensions with rows of very different lengths, hidden states, and targets."""
    torch.manual_seed(0)
    head = DirectionHead(4, 7).to(dtype)
    with torch.no_grad():
        head.weight.normal_().mul_(torch.tensor([0.01, 0.3, 1.0, 1.0, 2.0, 7.0, 50.0], dtype=dtype)[:, None])
    return head, torch.randn(5, 4, dtype=dtype) * 3, torch.tensor([0, 6, 3, 3, 1])


def test_logits_are_against_rows_of_length_one() -> None:
    head, hidden, _ = small_case(torch.float64)
    assert differ(head(hidden), hidden @ normalize(head.weight, dim=-1).T) < 1e-12
    assert differ(head.effective_weight(), normalize(head.weight, dim=-1)) < 1e-12


def test_gradients_equal_finite_differences() -> None:
    head, hidden, targets = small_case(torch.float64)
    cross_entropy(head(hidden), targets).backward()
    assert head.weight.grad is not None
    for row in range(7):
        for column in range(4):
            step = 1e-6 * head.weight[row].norm().item()
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    head.weight[row, column] += sign * step
                    losses.append(cross_entropy(head(hidden), targets).item())
                    head.weight[row, column] -= sign * step
            numeric = (losses[0] - losses[1]) / (2 * step)
            assert head.weight.grad[row, column].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)
    along = (head.weight.grad * head.weight).sum(dim=-1)
    assert along.abs().max() < 1e-12, "the length of a row changes nothing"


@pytest.mark.parametrize("chunk", [1, 3, 7, 4096])
def test_directions_and_their_gradient_are_those_of_a_plain_division(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_head, "CHUNK_ROWS", chunk)
    head, _, _ = small_case(torch.float64)
    assert torch.autograd.gradcheck(Directions.apply, (head.weight,))
    plain = head.weight.detach().clone().requires_grad_()
    slopes = torch.randn(7, 4, dtype=torch.float64)
    (Directions.apply(head.weight) * slopes).sum().backward()
    (normalize(plain, dim=-1) * slopes).sum().backward()
    assert head.weight.grad is not None and plain.grad is not None
    assert differ(head.weight.grad, plain.grad) < 1e-12


def test_the_gradient_of_a_head_in_16_bits_widens_few_rows_at_a_time() -> None:
    with FakeTensorMode():  # sizes without numbers
        head = DirectionHead(64, 100 * norm_head.CHUNK_ROWS)
        head.weight = torch.nn.Parameter(head.weight.to(torch.bfloat16))
        with Watch([head.weight]) as watch:
            directions = head.effective_weight()
            directions.sum().backward()
    peak = max(total for total, _ in watch.fullest.values())
    assert 2 < peak / (head.weight.numel() * 2) < 2.3, "the directions, the weight's gradient, and some rows"


def test_a_row_of_zeros_gives_no_infinities() -> None:
    head, hidden, targets = small_case(torch.float32)
    with torch.no_grad():
        head.weight[2] = 0.0
    cross_entropy(head(hidden), targets).backward()
    assert head(hidden)[:, 2].eq(0).all()
    assert head.weight.grad is not None and head.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_its_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    head = DirectionHead(256, 500).to(dtype)
    hidden = torch.randn(20, 256).to(dtype)
    exact = hidden.double() @ normalize(head.weight.double(), dim=-1).T
    unit = torch.finfo(dtype).eps
    for found in (head(hidden), hidden @ head.effective_weight().T):
        assert found.dtype == dtype
        assert differ(found, exact) < 2 * unit * exact.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_the_chunked_loss_and_its_gradients_equal_full_logits(
    architecture: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "HEAD_CHUNK_TOKENS", chunk)
    model, reference = tiny_model(architecture, seed=2), tiny_model(architecture, seed=2)
    assert has_plain_head(model)
    packed = PackedRows.lay(rows())
    with rows_apart(model):
        supervised_nll(model, packed).total.backward()
    total = torch.zeros(())
    for row in rows():
        found = reference(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
        total = total + cross_entropy(found[:-1], torch.from_numpy(row.labels).long()[1:], reduction="sum")
    total.backward()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert differ(ours.grad, theirs.grad) < 1e-4, name


def test_the_head_runs_at_supervised_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baichuan2", seed=2)
    packed = PackedRows.lay(rows())
    shapes = []
    plain = likelihood.ChunkedCrossEntropy.forward

    def seen(ctx: Any, hidden: torch.Tensor, *others: Any) -> Any:
        shapes.append(tuple(hidden.shape))
        return plain(ctx, hidden, *others)

    monkeypatch.setattr(likelihood.ChunkedCrossEntropy, "forward", staticmethod(seen))
    with rows_apart(model):
        supervised_nll(model, packed)
    assert shapes == [(packed.num_supervised, model.config.hidden_size)]
    assert packed.num_supervised < packed.num_tokens


def test_a_frozen_head_gets_no_gradient_and_passes_one_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baichuan2", seed=2)
    model.lm_head.requires_grad_(False)
    asked = []
    plain = likelihood.ChunkedCrossEntropy.forward

    def seen(ctx: Any, *inputs: Any) -> Any:
        asked.append(tuple(ctx.needs_input_grad[:2]))
        return plain(ctx, *inputs)

    monkeypatch.setattr(likelihood.ChunkedCrossEntropy, "forward", staticmethod(seen))
    with rows_apart(model):
        supervised_nll(model, PackedRows.lay(rows())).total.backward()
    assert asked == [(True, False)], "no matrix product is spent on a gradient that nobody wants"
    assert model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad.abs().max() > 0


@contextmanager
def sharded(head: torch.nn.Module) -> Iterator[None]:
    """Have a head's weight there only while the head is called or its gradient made, as FSDP2 and ZeRO-3 do."""
    whole = head.weight.data.clone()

    def gather(*_: Any) -> None:
        head.weight.data.copy_(whole)

    def release(*_: Any) -> None:
        head.weight.data.zero_()

    hooks = [head.register_forward_pre_hook(gather), head.register_forward_hook(release)]
    hooks.append(head.register_full_backward_pre_hook(gather))
    release()
    yield
    for hook in hooks:
        hook.remove()
    gather()


def test_the_loss_runs_through_the_heads_own_call() -> None:
    """A tensor saved for the backward pass must not have changed, so it is the forward pass that is looked at."""
    model = tiny_model("baichuan2", seed=2)
    packed = PackedRows.lay(rows())
    with rows_apart(model), torch.no_grad():
        expected = supervised_nll(model, packed).total
        with sharded(model.lm_head):
            found = supervised_nll(model, packed).total
    assert differ(found, expected) < 1e-3


@pytest.mark.parametrize("mean_resizing", [True, False])
def test_more_tokens_keep_a_head_that_normalises(mean_resizing: bool) -> None:
    model = tiny_model("baichuan2", seed=2)
    ids = torch.arange(20)
    before = logits(model, ids)
    model.resize_token_embeddings(263, mean_resizing=mean_resizing)
    assert isinstance(model.lm_head, DirectionHead)
    assert model.get_output_embeddings() is model.lm_head
    found = logits(model, ids)
    assert found.shape[-1] == 263
    assert differ(found[:, :260], before) < 1e-5
    assert model.config.vocab_size == 263


def test_z_loss_by_hand() -> None:
    model = tiny_model("baichuan2", seed=2)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = model(input_ids=ids, labels=ids)
        model.config.z_loss_weight = 0.01
        weighted = model(input_ids=ids, labels=ids)
    largest = plain.logits[0, :-1].max(dim=-1).values
    assert weighted.loss.item() == pytest.approx(plain.loss.item() + 0.01 * (largest**2).mean().item(), abs=1e-6)
