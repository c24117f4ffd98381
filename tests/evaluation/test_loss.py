"""The loss of held-out rows: against a plain forward pass, in order, and averaged by tokens."""

import numpy as np
import pytest
import torch

from deft.errors import UserError
from deft.evaluation.loss import row_losses
from deft.losses import RowLoss, losses_by_ability
from deft.testing.tiny import byte_tokenizer, tiny_model
from deft.types import IGNORED_LABEL, TokenSequence

TEXTS = [
    ("1+1=", "2", "math"),
    ("光合作用是什么？", "植物用光把水和二氧化碳变成糖。", "生物"),
    ("Say hi", "hi there, friend", None),
    ("唐朝首都", "长安", "历史"),
    ("a", "b", "math"),
]


def sequences() -> list[TokenSequence]:
    tokenizer = byte_tokenizer()
    rows = []
    for number, (prompt, reply, ability) in enumerate(TEXTS):
        first, second = tokenizer.encode(prompt), tokenizer.encode(reply)
        ids = np.array(first + second, dtype=np.int32)
        labels = ids.copy()
        labels[: len(first)] = IGNORED_LABEL
        rows.append(TokenSequence(id=f"r{number}", input_ids=ids, labels=labels, ability=ability))
    return rows


def plain_nll(model: torch.nn.Module, row: TokenSequence) -> float:
    """The NLL of one row run alone, without anything of deft's."""
    ids = torch.from_numpy(row.input_ids).long()
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    places = np.flatnonzero(row.labels != IGNORED_LABEL)
    return -sum(float(logits[place - 1, row.labels[place]]) for place in places)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("pack_length_tokens", [72, 512])
def test_losses_are_those_of_rows_run_alone(architecture: str, pack_length_tokens: int) -> None:
    model, rows = tiny_model(architecture), sequences()  # type: ignore[arg-type]
    found = row_losses(model, rows, pack_length_tokens=pack_length_tokens)
    assert [one.id for one in found] == [row.id for row in rows]
    assert [one.ability for one in found] == ["math", "生物", "other", "历史", "math"]
    assert [one.num_supervised for one in found] == [row.num_supervised for row in rows]
    assert [one.nll for one in found] == pytest.approx([plain_nll(model, row) for row in rows], rel=1e-5)


def test_progress_brings_every_row_once_and_the_mode_is_restored() -> None:
    model, rows, seen = tiny_model("llama"), sequences(), []
    model.train()
    attention = model.config._attn_implementation
    found = row_losses(model, rows, pack_length_tokens=72, on_progress=seen.append)
    assert len(seen) > 1
    assert sorted((one for pack in seen for one in pack), key=lambda one: one.id) == found
    assert model.training
    assert model.config._attn_implementation == attention
    assert all(weights.grad is None for weights in model.parameters())


def test_means_weigh_tokens() -> None:
    rows = [
        RowLoss(id="a", ability="数学", nll=6.0, num_supervised=2),
        RowLoss(id="b", ability="数学", nll=10.0, num_supervised=8),
        RowLoss(id="c", ability="code", nll=2.0, num_supervised=10),
    ]
    losses = losses_by_ability(rows)
    assert list(losses) == ["code", "数学", "all"]
    assert losses["数学"].loss == pytest.approx(1.6)
    assert (losses["数学"].num_rows, losses["数学"].num_supervised) == (2, 10)
    assert losses["all"].loss == pytest.approx(0.9)  # 18 / 20, not the mean of 0.2 and 1.6 over abilities
    assert losses["all"].num_rows == 3


def test_nothing_to_average_and_a_taken_name_are_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        losses_by_ability([])
    with pytest.raises(UserError, match="`all`"):
        losses_by_ability([RowLoss(id="a", ability="all", nll=1.0, num_supervised=1)])
