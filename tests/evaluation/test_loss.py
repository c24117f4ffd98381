"""The loss of held-out rows: against a plain forward pass, in order, and averaged by tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deft.errors import UserError
from deft.evaluation.loss import row_losses, row_losses_kept
from deft.losses import RowLoss, by_row, losses_by_ability, read_rows_kept
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


def test_means_weigh_tokens_by_their_loss_weights() -> None:
    rows = [
        RowLoss(id="a", ability="数学", nll=6.0, num_supervised=20, weight=2.0),
        RowLoss(id="b", ability="数学", nll=10.0, num_supervised=8),
    ]
    found = losses_by_ability(rows)["数学"]
    assert (found.loss, found.num_rows, found.num_supervised) == (pytest.approx(1.6), 2, 28)


def test_the_sequences_of_a_row_are_added_up_and_what_is_there_twice_counts_once() -> None:
    parts = [
        RowLoss(id="甲", ability="数学", nll=6.0, num_supervised=2),
        RowLoss(id="甲", ability="数学", nll=3.0, num_supervised=4, weight=1.0, part=1),
        RowLoss(id="乙", ability="数学", nll=5.0, num_supervised=5),
    ]
    whole = [
        RowLoss(id="甲", ability="数学", nll=9.0, num_supervised=6, weight=3.0),
        RowLoss(id="乙", ability="数学", nll=5.0, num_supervised=5),
    ]
    assert by_row(parts) == by_row(parts * 2) == by_row(whole) == whole
    assert by_row([replace(parts[0], ability="诗"), parts[0]])[1] == parts[0], "another ability, another row"


def test_weighted_and_divided_rows_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, file = tiny_model("llama"), sequences(), tmp_path / "损失.jsonl"
    rows[3] = replace(rows[3], id=rows[1].id, ability=rows[1].ability, part=1)  # another reply of the same row
    rows[1] = replace(rows[1], weights=np.full(len(rows[1]), 0.5, np.float32))
    plain = {1: plain_nll(model, rows[1]) / 2, 3: plain_nll(model, rows[3])}
    row_losses_kept(model, rows[:2], file=file, pack_length_tokens=512)
    ran: list[RowLoss] = []
    found = row_losses_kept(model, rows, file=file, pack_length_tokens=512, on_progress=ran.extend)
    assert len(ran) == 3, "one of them has the id of a row that is kept"
    assert [found[1].nll, found[3].nll] == pytest.approx([plain[1], plain[3]], rel=1e-5)
    assert [found[1].weight, found[3].weight] == [rows[1].num_supervised / 2, None]
    monkeypatch.setattr("deft.evaluation.loss.row_losses", lambda *_, **__: [])
    assert row_losses_kept(model, rows, file=file, pack_length_tokens=512) == found
    whole = next(row for row in by_row(found) if row.id == "r1")
    assert whole.nll == pytest.approx(plain[1] + plain[3], rel=1e-5)
    assert whole.total_weight == rows[1].num_supervised / 2 + rows[3].num_supervised


def test_losses_that_an_earlier_version_kept_are_read(tmp_path: Path) -> None:
    line = '{"id": "甲", "ability": "数学", "nll": 6.0, "num_supervised": 2}'
    (tmp_path / "旧.jsonl").write_text(line + "\n", encoding="utf-8")
    [row] = read_rows_kept(tmp_path / "旧.jsonl")
    assert (row.total_weight, row.part) == (2, 0)


def test_nothing_to_average_and_a_taken_name_are_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        losses_by_ability([])
    with pytest.raises(UserError, match="`all`"):
        losses_by_ability([RowLoss(id="a", ability="all", nll=1.0, num_supervised=1)])
