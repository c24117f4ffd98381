"""The likelihood of supervised tokens: packed rows against each row alone, and the chunked head against PyTorch's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from deft.errors import UserError
from deft.model import likelihood
from deft.model.attention import rows_apart, window_mask
from deft.model.likelihood import ChunkedCrossEntropy, PackedRows, supervised_nll
from deft.testing.tiny import byte_tokenizer, tiny_model
from deft.types import IGNORED_LABEL, TokenSequence

ARCHITECTURES = ["llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope"]
TEXTS = [
    ("用一句话解释光合作用。", "植物用阳光把水和二氧化碳变成糖和氧气。"),
    ("Name a prime between 20 and 30.", "23"),
    ("写一句关于秋天的诗，再译成英文。", "秋风起，落叶黄。The autumn wind rises; leaves turn gold."),
    ("1+1?", "2"),
]


def rows() -> list[TokenSequence]:
    """Rows longer and shorter than the tiny Gemma3's window of attention."""
    tokenizer = byte_tokenizer()
    made = []
    for index, (prompt, reply) in enumerate(TEXTS):
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        reply_ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
        ids = np.array(prompt_ids + reply_ids, dtype=np.int32)
        labels = np.array([IGNORED_LABEL] * len(prompt_ids) + reply_ids, dtype=np.int32)
        made.append(TokenSequence(id=f"row{index}", input_ids=ids, labels=labels))
    return made


def logits_alone(model, row: TokenSequence) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]


def reference_loss(model, sequences: list[TokenSequence]) -> torch.Tensor:
    """The plain way: each row alone, full logits, one mean over all supervised tokens."""
    total, count = torch.zeros(()), 0
    for row in sequences:
        labels = torch.from_numpy(row.labels).long()
        total = total + cross_entropy(logits_alone(model, row)[:-1], labels[1:], reduction="sum")
        count += row.num_supervised
    return total / count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logits_equal_separate_logits(architecture: str) -> None:
    model = tiny_model(architecture, seed=1).eval()
    packed = PackedRows.lay(rows())
    with torch.no_grad():
        alone = torch.cat([logits_alone(model, row) for row in rows()])
        with rows_apart(model):
            together = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                row_lengths=packed.row_lengths,
                use_cache=False,
            ).logits[0]
    assert (together - alone).abs().max() < 1e-5
    assert alone.std() > 0.05, "logits that do not vary would pass any comparison"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_supervised_loss_and_gradients_equal_the_full_logit_reference(
    architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "HEAD_CHUNK_TOKENS", chunk)
    model, reference = tiny_model(architecture, seed=2), tiny_model(architecture, seed=2)
    packed = PackedRows.lay(rows())
    with rows_apart(model):
        nll = supervised_nll(model, packed)
        (nll.total / packed.num_supervised).backward()
    loss = reference_loss(reference, rows())
    loss.backward()
    assert torch.allclose(nll.total / packed.num_supervised, loss, atol=1e-5)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert ours.grad is not None, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-5, name


def weighted_rows() -> list[TokenSequence]:
    """A row as it is, one whose first half weighs 0.25, one of weight 3, and one with another weight at each token."""
    made = rows()
    middle = len(made[1]) - made[1].num_supervised // 2
    halves = np.where(np.arange(len(made[1])) < middle, 0.25, 1.0)
    weights = [None, halves, np.full(len(made[2]), 3.0), np.linspace(0.1, 2.0, len(made[3]))]
    return [
        replace(row, weights=None if own is None else own.astype(np.float32))
        for row, own in zip(made, weights, strict=True)
    ]


def weighted_reference(model, sequences: list[TokenSequence]) -> torch.Tensor:
    """Σ weight · nll / Σ weight in float64, each row alone, token by token, and the gradients of that."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in sequences:
        likelihoods = logits_alone(model, row).log_softmax(-1)
        for place in np.flatnonzero(row.labels != IGNORED_LABEL):
            own = 1.0 if row.weights is None else float(row.weights[place])
            total = total - own * likelihoods[place - 1, int(row.labels[place])]
            weight += own
    loss = total / weight
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("architecture", ["llama", "baichuan2"])
@pytest.mark.parametrize("has_plain_head", [True, False])
@pytest.mark.parametrize("alone", [False, True])
def test_weighted_loss_and_gradients_equal_a_float64_reference(
    architecture: str, has_plain_head: bool, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "HEAD_CHUNK_TOKENS", 7)
    monkeypatch.setattr(likelihood, "has_plain_head", lambda _: has_plain_head)
    sequences = weighted_rows()
    model, reference = tiny_model(architecture, seed=2), tiny_model(architecture, seed=2).double()
    expected = weighted_reference(reference, sequences)
    packs = [PackedRows.lay([row]) for row in sequences] if alone else [PackedRows.lay(sequences)]
    weight = sum(pack.total_weight for pack in packs)
    loss, per_row = 0.0, []
    with rows_apart(model):
        for pack in packs:
            nll = supervised_nll(model, pack)
            (nll.total / weight).backward()
            loss += nll.total.item() / weight
            per_row += nll.per_row(pack).tolist()
    assert weight == pytest.approx(sum(row.total_weight for row in sequences))
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert sum(per_row) / weight == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-5, name


def test_weights_of_one_change_no_bit_and_are_laid_for_no_plain_pack() -> None:
    assert PackedRows.lay(rows()).weights is None
    ones = [replace(row, weights=np.ones(len(row), np.float32)) for row in rows()]
    found = []
    for sequences in (rows(), ones):
        model = tiny_model("llama", seed=4)
        with rows_apart(model):
            nll = supervised_nll(model, PackedRows.lay(sequences))
        nll.total.backward()
        found.append([nll.total, nll.per_token, *(weights.grad for weights in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_row_does_not_see_another(architecture: str) -> None:
    model = tiny_model(architecture, seed=3).eval()
    first, second = rows()[:2]
    other = TokenSequence(id="x", input_ids=(first.input_ids + 1) % 200, labels=first.labels)
    with torch.no_grad(), rows_apart(model):
        one = supervised_nll(model, PackedRows.lay([first, second]))
        two = supervised_nll(model, PackedRows.lay([other, second]))
    assert torch.equal(one.per_token[-second.num_supervised :], two.per_token[-second.num_supervised :])
    assert not torch.equal(one.per_token, two.per_token)


def test_per_row_sums_add_up_by_hand() -> None:
    packed = PackedRows.lay(rows()[:2])
    per_token = torch.arange(packed.num_supervised, dtype=torch.float32)
    nll = likelihood.SupervisedNLL(total=per_token.sum(), per_token=per_token)
    split = rows()[0].num_supervised
    first, second = per_token[:split].sum().item(), per_token[split:].sum().item()
    assert nll.per_row(packed).tolist() == [first, second]
    weighted = [replace(rows()[0], weights=np.full(len(rows()[0]), 0.5, np.float32)), rows()[1]]
    assert nll.per_row(PackedRows.lay(weighted)).tolist() == [first / 2, second]
    assert PackedRows.lay(weighted).total_weight == split / 2 + packed.num_supervised - split


def test_positions_predict_the_next_token_and_never_cross_a_row() -> None:
    one = TokenSequence(id="a", input_ids=np.array([5, 6, 7], np.int32), labels=np.array([-100, 6, 7], np.int32))
    two = TokenSequence(id="b", input_ids=np.array([8, 9], np.int32), labels=np.array([-100, 9], np.int32))
    packed = PackedRows.lay([one, two])
    assert packed.predicting.tolist() == [0, 1, 3]
    assert packed.targets.tolist() == [6, 7, 9]
    assert packed.row_of.tolist() == [0, 0, 1]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "neither"])
def test_chunked_cross_entropy_matches_pytorch(frozen: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "HEAD_CHUNK_TOKENS", 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, requires_grad=frozen != "hidden")
    weight = torch.randn(17, 6, generator=generator, requires_grad=frozen != "weight")
    targets = torch.randint(0, 17, (11,), generator=generator)
    token_weights = torch.rand(11, generator=generator) if weighted else None
    total, per_token = ChunkedCrossEntropy.apply(hidden, weight, targets, token_weights)
    (3 * total).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected_total = expected.sum() if token_weights is None else (token_weights * expected).sum()
    (3 * expected_total).backward()
    assert torch.allclose(per_token, expected, atol=1e-6), "the plain losses"
    assert torch.allclose(total, expected_total, atol=1e-5)
    for mine, reference in zip(ours, (hidden.grad, weight.grad), strict=True):
        assert (mine is None) == (reference is None)
        assert mine is None or torch.allclose(mine, reference, atol=1e-5)


def test_in_mixed_precision_the_head_multiplies_in_16_bits_and_sums_in_32() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(700, 16, generator=generator, requires_grad=True)  # two chunks
    weight = torch.randn(40, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 40, (700,), generator=generator)
    exact = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    wanted = torch.autograd.grad(exact / 700, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, per_token = ChunkedCrossEntropy.apply(hidden, weight, targets, None)
    assert (total.dtype, per_token.dtype) == (torch.float32, torch.float32)
    assert total.item() == pytest.approx(exact.item(), rel=2e-3)
    for mine, reference in zip(torch.autograd.grad(total / 700, (hidden, weight)), wanted, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() / reference.norm() < 0.01
        scale = (mine * reference).sum() / (reference * reference).sum()
        assert scale == pytest.approx(1.0, abs=1e-3), "what is known last is not rounded to 16 bits"


def test_attention_without_row_lengths_refuses_rather_than_leaks() -> None:
    model = tiny_model("llama", seed=0)
    with rows_apart(model), pytest.raises(RuntimeError, match="lengths of the rows"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_a_model_that_caps_attention_scores_is_refused() -> None:
    from deft.model.attention import rows_apart_attention

    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UserError, match="row by row"):
        rows_apart_attention(torch.nn.Identity(), query, query, query, None, row_lengths=(3,), softcap=50.0)


def test_window_mask_by_hand() -> None:
    assert (window_mask(4, 2, torch.float32, torch.device("cpu")) == 0).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_attention_implementation_is_restored() -> None:
    model = tiny_model("qwen3", seed=0)
    before = model.config._attn_implementation
    with rows_apart(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_no_gradient_is_made_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=1).eval()
    wanted: list[tuple[bool, ...]] = []
    plain = ChunkedCrossEntropy.forward

    def seen(ctx: Any, *inputs: torch.Tensor) -> Any:
        wanted.append(ctx.needs_input_grad)
        return plain(ctx, *inputs)

    monkeypatch.setattr(ChunkedCrossEntropy, "forward", staticmethod(seen))
    with torch.no_grad():
        measured = supervised_nll(model, PackedRows.lay(rows()))
    trained = supervised_nll(model, PackedRows.lay(rows()))
    assert wanted == [(False,) * 4, (True, True, False, False)]
    assert torch.equal(measured.per_token, trained.per_token)
